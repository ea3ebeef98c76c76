"""A search over a recipe's keys: Optuna proposes, each trial is a run, and MLflow has them all under one parent.

The study is a database beside the runs, named after the recipe: the same command goes on where an earlier one was ended, with the
very trial it was ended in. Trials run one after the other in this process.

Source: https://optuna.readthedocs.io/en/stable/tutorial/20_recipes/009_ask_and_tell.html
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import yaml

from finetune.duration import Duration
from finetune.perform import perform
from finetune.publish import quiet
from finetune.recipe import RecipeError, load_recipe
from finetune.runs import Runs, TrainingRun
from finetune.schema import Range, Recipe, SweepRecipe, TrainedRecipe

if TYPE_CHECKING:
    from optuna import Study, Trial

LOOKS = 4
"""Evaluations of a trial where the recipe does not say how often: what lags is seen at these."""
Told = Callable[[str], None]


@dataclass(frozen=True)
class Swept:
    """What a sweep found: the best values, its score, the run that has the model, and how each trial went."""

    best: Mapping[str, Any]
    score: float
    run: TrainingRun
    parent_run_id: str
    trials: tuple[Mapping[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values for machines."""
        told = {"best": dict(self.best), "score": self.score, "run": self.run.id, "mlflow_run_id": self.parent_run_id}
        return {**told, "trials": [dict(trial) for trial in self.trials], "result": self.run.state().get("result")}


def sweep(recipe: TrainedRecipe, runs: Runs, tracking_uri: str, told: Told = lambda line: None) -> Swept:
    """Run a recipe's `sweep`, or go on with it, and train (and register) what it found to be best.

    Parameters
    ----------
    runs: where the trials' folders and the study's database lie.
    told: gets a line for each trial.

    Raises
    ------
    RecipeError: the recipe has no `sweep` or no `data.eval`, a value of the space is none of its key's, or no trial succeeded.
    """
    import optuna

    plan = recipe.sweep
    if plan is None:
        raise RecipeError("sweep: the recipe has none; add it, or give --space KEY=VALUES.")
    if recipe.data.eval is None:  # pyright: ignore[reportAttributeAccessIssue] - every recipe that is trained has data
        raise RecipeError("data.eval: a sweep needs rows to judge its trials on.")
    values = _values(recipe)
    for key, choices in plan.space.items():
        for value in (choices.low, choices.high) if isinstance(choices, Range) else choices:
            _child(values, {key: value})  # told now, not by a trial
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = runs.root / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / _name(recipe, values)}.db",
        study_name=recipe.name,
        load_if_exists=True,
        direction="maximize",
        pruner=_pruner(plan),
    )
    # another seed each time it is gone on with, or the first draws would be drawn again
    seed, random_trials = recipe.seed + 1000 * len(study.trials), max(4, plan.trials // 4)
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=random_trials)
    parent = _parent(study, recipe, tracking_uri)
    states = optuna.trial.TrialState
    while True:
        left = [each for each in study.trials if each.state == states.RUNNING]
        if len(study.trials) - len(left) >= plan.trials:
            break
        trial = optuna.trial.Trial(study, left[0]._trial_id) if left else study.ask()
        _attempt(study, trial, values, plan, runs, tracking_uri, parent, told)
    done = [trial for trial in study.trials if trial.state == states.COMPLETE]
    if not done:
        why = study.trials[-1].user_attrs.get("message", "")
        raise RecipeError(f"sweep: none of {len(study.trials)} trials succeeded; the last one: {why}")
    best = study.best_trial
    final = _final(study, recipe, values, runs, tracking_uri, parent)
    rows = tuple(
        {"number": t.number, "state": t.state.name, "score": t.value, "run": t.user_attrs.get("run"), **t.params}
        for t in study.trials
    )
    _draw(study, parent, tracking_uri)
    return Swept(best.params, float(best.value or 0), final, parent, rows)


def with_space(recipe: TrainedRecipe, space: Sequence[str], trials: int | None) -> TrainedRecipe:
    """The recipe with more keys to sweep, `KEY=VALUES` as YAML, and another number of trials.

    Raises
    ------
    RecipeError: one of them is not written so.
    """
    given: dict[str, Any] = recipe.sweep.model_dump(mode="json") if recipe.sweep else {"space": {}}
    given["space"] = dict(given["space"])
    for each in space:
        key, equals, values = each.partition("=")
        if not equals or not key:
            raise RecipeError(f"--space {each!r}: write KEY=[…] or KEY={{low: …, high: …}}.")
        try:
            given["space"][key.strip()] = yaml.safe_load(values)
        except yaml.YAMLError:
            raise RecipeError(f"--space {each!r}: the values are not YAML.") from None
    if trials is not None:
        given["trials"] = trials
    return cast(TrainedRecipe, load_recipe({**recipe.model_dump(mode="json", exclude={"sweep"}), "sweep": given}))


def _attempt(
    study: Study,
    trial: Trial,
    values: Mapping[str, Any],
    plan: SweepRecipe,
    runs: Runs,
    tracking_uri: str,
    parent: str,
    told: Told,
) -> None:
    """One trial from its values to its score; one that was ended by a crash goes on from its last checkpoint."""
    from optuna.trial import TrialState

    chosen = {key: _suggested(trial, key, choices) for key, choices in plan.space.items()}
    known = trial.user_attrs.get("run")
    run = runs.get(known) if known else None
    if run is None:
        run = runs.create(_child(values, chosen), tracking_uri=tracking_uri, created_by="sweep", parent_run_id=parent)
        trial.set_user_attr("run", run.id)
    seen: dict[int, float] = {}
    reported = set(study.trials[trial.number].intermediate_values)
    pruned = False

    def watch(kind: str, what: Mapping[str, Any]) -> bool:
        nonlocal pruned
        if kind == "evaluation":
            seen[what["step"]] = what["score"]
            if what["step"] not in reported:
                trial.report(what["score"], what["step"])
            pruned = trial.should_prune()
        return pruned

    run.set_state(started=time.time(), first_event=run.size())
    with run.hold():
        status = perform(run, watch)
    state = run.state()
    if status == "COMPLETED":
        score = max(seen.values()) if run_stops_early(run) else _last(seen, state)
        study.tell(trial, score)
        told(f"trial {trial.number}: {score:.4f}  {_words(chosen)}")
    elif pruned:
        study.tell(trial, state=TrialState.PRUNED)
        told(f"trial {trial.number}: ended early at {_last(seen, state):.4f}  {_words(chosen)}")
    elif status == "CANCELED":
        raise KeyboardInterrupt
    else:
        trial.set_user_attr("message", state.get("message", ""))
        study.tell(trial, state=TrialState.FAIL)
        told(f"trial {trial.number}: failed: {state.get('message', '')}  {_words(chosen)}")
    _note(study, parent, tracking_uri)


def run_stops_early(run: TrainingRun) -> bool:
    return bool(run.spec["recipe"].get("early_stopping"))


def _last(seen: Mapping[int, float], state: Mapping[str, Any]) -> float:
    """The score of the last evaluation; a run that only had its end to do again told none, and has it in its result."""
    if seen:
        return seen[max(seen)]
    return float(((state.get("result") or {}).get("metrics") or {}).get("score", 0.0))


def _values(recipe: TrainedRecipe) -> dict[str, Any]:
    """The recipe that each trial changes: evaluated now and then, and not registered."""
    values = recipe.model_dump(mode="json", exclude={"sweep"})
    if recipe.eval_interval is None:
        whole = Duration.parse(recipe.training_duration)
        values["eval_interval"] = str(
            Duration(whole.amount / LOOKS if whole.unit == "ep" else max(1, whole.amount // LOOKS), whole.unit)
        )
    return values


def _child(values: Mapping[str, Any], chosen: Mapping[str, Any]) -> TrainedRecipe:
    return cast(TrainedRecipe, load_recipe(values, [f"{key}={json.dumps(value)}" for key, value in chosen.items()]))


def _suggested(trial: Trial, key: str, choices: Range | tuple[Any, ...]) -> Any:
    if not isinstance(choices, Range):
        return trial.suggest_categorical(key, list(choices))
    whole = all(isinstance(each, int) for each in (choices.low, choices.high, choices.step or 1))
    if whole:
        return trial.suggest_int(key, int(choices.low), int(choices.high), step=int(choices.step or 1), log=choices.log)
    return trial.suggest_float(key, choices.low, choices.high, step=choices.step, log=choices.log)


def _pruner(plan: SweepRecipe) -> Any:
    import optuna

    if plan.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=plan.whole_trials)


def _name(recipe: TrainedRecipe, values: Mapping[str, Any]) -> str:
    """The study's name: another recipe or another space is another study, more trials are not."""
    assert recipe.sweep is not None
    about = json.dumps([values, recipe.sweep.model_dump(mode="json", exclude={"trials"})], sort_keys=True)
    return f"{recipe.name}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"


def _words(chosen: Mapping[str, Any]) -> str:
    return "  ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in chosen.items())


def _final(
    study: Study, recipe: TrainedRecipe, values: Mapping[str, Any], runs: Runs, tracking_uri: str, parent: str
) -> TrainingRun:
    """The run of the best values, judged beside its baseline and registered.

    It goes on from the trial's last checkpoint, which has the trained weights, so nothing is trained twice.

    Raises
    ------
    RecipeError: it failed; the message says why.
    """
    best = study.best_trial
    known = study.user_attrs.get("final")
    if known and known["trial"] == best.number:
        run = runs.get(known["run"])
        if run.status == "COMPLETED":
            return run
    else:
        run = runs.create(_child(values, best.params), tracking_uri=tracking_uri, created_by="sweep")
        shutil.copytree(runs.get(best.user_attrs["run"]).folder / "checkpoints", run.folder / "checkpoints")
        study.set_user_attr("final", {"trial": best.number, "run": run.id})
    run.set_state(started=time.time(), first_event=run.size())
    with run.hold():
        status = perform(run)
    if status != "COMPLETED":
        raise RecipeError(f"sweep: the best trial could not be finished: {run.state().get('message', '')}")
    return run


# ---- MLflow


def _parent(study: Study, recipe: TrainedRecipe, tracking_uri: str) -> str:
    """The run under which MLflow shows the trials."""
    if known := study.user_attrs.get("parent_run_id"):
        return known
    with quiet():
        import mlflow

        from finetune.train import alone, experiment, flat

        mlflow.set_tracking_uri(tracking_uri)
        with alone(tracking_uri):
            client = mlflow.MlflowClient()
            number = experiment(client, recipe.name, tracking_uri, None)
        made = client.create_run(number, run_name=f"sweep {recipe.name}", tags={"smalti.sweep": study.study_name}).info.run_id
        for key, value in flat(cast(Recipe, recipe)).items():
            client.log_param(made, key, value)
    study.set_user_attr("parent_run_id", made)
    return made


def _note(study: Study, parent: str, tracking_uri: str) -> None:
    """The best score so far, on the parent's curve."""
    import mlflow
    from optuna.trial import TrialState

    if any(trial.state == TrialState.COMPLETE for trial in study.trials):
        with quiet():
            mlflow.MlflowClient(tracking_uri).log_metric(parent, "best_score", float(study.best_value), step=len(study.trials))


def _draw(study: Study, parent: str, tracking_uri: str) -> None:
    """The parent's end: the best values, and a picture of scores by trial and by value."""
    import mlflow
    from optuna.trial import TrialState

    from finetune.plots import panels

    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    keys = list(study.best_params)
    figure, axes = panels(1 + len(keys))
    best = [max(float(t.value or 0) for t in done[: i + 1]) for i in range(len(done))]
    axes[0].plot([t.number for t in done], [t.value for t in done], "o")
    axes[0].step([t.number for t in done], best, where="post")
    axes[0].set(title=f"best {study.best_value:.4f}", xlabel="trial", ylabel="score")
    for key, place in zip(keys, axes[1:], strict=True):
        given = [t.params[key] for t in done]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
        place.plot(given if numbers else [str(value) for value in given], [t.value for t in done], "o")
        if numbers and min(given) > 0 and max(given) > 20 * min(given):
            place.set_xscale("log")
        place.set(title=key, xlabel=key, ylabel="score")
    with quiet():
        client = mlflow.MlflowClient(tracking_uri)
        client.log_figure(parent, figure, "sweep.png")
        for key, value in study.best_params.items():
            client.set_tag(parent, f"best.{key}", str(value))
        client.log_metric(parent, "best_score", float(study.best_value), step=len(study.trials) + 1)
        client.set_terminated(parent, "FINISHED")
