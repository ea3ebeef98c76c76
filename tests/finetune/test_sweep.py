"""A search over a recipe: trials under one parent in MLflow, laggards ended early, gone on with after an interruption."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest

from finetune import sweep as sweeping
from finetune.recipe import RecipeError, load_recipe
from finetune.runs import Runs
from finetune.schema import TrainedRecipe
from tests.finetune.tiny import bert, reviews, tracking

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    bert(folder / "base")
    reviews(folder / "train.jsonl", 96, 1)
    reviews(folder / "eval.jsonl", 40, 2)
    return folder


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def recipe(made: Path, **more: Any) -> TrainedRecipe:
    given = {"task": "classify", "method": "full", "name": "swept", "base_model": str(made / "base"), "threads": 1}
    given |= {"data": {"train": str(made / "train.jsonl"), "eval": str(made / "eval.jsonl")}, "max_length": 32}
    given |= {"batch_size": 16, "training_duration": "4ep", "register_to": "main.default.swept"}
    space = {"learning_rate": ["1e-7", 5e-3], "dropout": {"low": 0.0, "high": 0.2}}
    loaded = load_recipe(given | {"sweep": {"space": space, "trials": 5, "whole_trials": 2}} | more)
    assert isinstance(loaded, TrainedRecipe)
    return loaded


def test_the_best_of_the_trials_is_registered_and_all_are_under_one_parent(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, uri, real = Runs(tmp_path / "finetune"), tracking(tmp_path), sweeping.perform
    calls: list[str] = []

    def interrupted(run: Any, watch: Any = None) -> str:
        calls.append(run.id)
        if len(calls) != 2:
            return real(run, watch)

        def stop(kind: str, what: Mapping[str, Any]) -> bool:
            if kind == "evaluation":
                raise KeyboardInterrupt
            return watch(kind, what)

        return real(run, stop)

    monkeypatch.setattr(sweeping, "perform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweeping.sweep(recipe(made), runs, uri)
    lines: list[str] = []
    done = sweeping.sweep(recipe(made), runs, uri, lines.append)
    assert calls[1] == calls[2]  # the trial that was interrupted went on
    assert len(done.trials) == 5
    assert {trial["state"] for trial in done.trials} <= {"COMPLETE", "PRUNED"}
    assert done.best["learning_rate"] == 5e-3
    assert done.score == max(trial["score"] for trial in done.trials if trial["state"] == "COMPLETE")
    assert any("trial 1:" in line for line in lines)
    result = done.as_dict()["result"]
    assert result["metrics"]["macro_recall"] == pytest.approx(done.score)
    assert result["baseline"]
    assert result["registered"]["champion"]
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    children = client.search_runs(
        [client.get_run(done.parent_run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{done.parent_run_id}'"
    )
    assert len(children) == 5
    parent = client.get_run(done.parent_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best_score"] == pytest.approx(done.score)
    assert "sweep.png" in {file.path for file in client.list_artifacts(done.parent_run_id)}

    count = len(calls)
    again = sweeping.sweep(recipe(made), runs, uri)  # nothing is left to do
    assert (again.run.id, len(calls)) == (done.run.id, count)


def test_what_lags_behind_is_ended_early(made: Path, tmp_path: Path) -> None:
    import optuna

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    study.add_trial(optuna.trial.create_trial(value=1.0, intermediate_values={1: 1.0, 6: 1.0, 12: 1.0, 18: 1.0, 24: 1.0}))
    study.set_user_attr("parent_run_id", None)
    trial = study.ask()
    wanted = recipe(made, sweep={"space": {"learning_rate": ["1e-7"]}})
    assert wanted.sweep is not None
    runs, uri = Runs(tmp_path / "finetune"), tracking(tmp_path)
    parent = sweeping._parent(study, wanted, uri)
    sweeping._attempt(study, trial, sweeping._values(wanted), wanted.sweep, runs, uri, parent, lambda line: None)
    assert study.trials[1].state == optuna.trial.TrialState.PRUNED
    [run] = runs.list()
    assert (run.status, run.state()["step"]) == ("CANCELED", 1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sweep": None}, "give --space"),
        ({"sweep": {"space": {"colour": [1]}}}, "colour is not a key of it"),
        ({"sweep": {"space": {"batch_size": [0]}}}, "batch_size: Input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_swept_is_told_before_any_trial(made: Path, tmp_path: Path, changes: Any, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        sweeping.sweep(recipe(made, **changes), Runs(tmp_path), f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "sweeps").exists()
    wide = sweeping.with_space(recipe(made), ["batch_size={low: 8, high: 32, step: 8}"], 3)
    assert wide.sweep is not None
    assert (wide.sweep.trials, len(wide.sweep.space)) == (3, 3)
    with pytest.raises(RecipeError, match="write KEY="):
        sweeping.with_space(recipe(made), ["batch_size"], None)
