"""Several processes learn what one would have learnt; what a launcher lacks is told before a run, and jobs are exported whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from app import cli
from finetune import launch as launching
from finetune.job import execute
from finetune.launch import check, job, launch
from finetune.recipe import RecipeError, load_recipe
from finetune.runs import Runs, TrainingRun
from finetune.schema import TrainedRecipe
from tests.finetune.tiny import bert, reviews, tracking, trained
from tests.live import ROOT

pytestmark = pytest.mark.timeout(400)
TWO = {"kind": "torchrun", "processes": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    bert(folder / "base")
    reviews(folder / "train.jsonl", 35, 1)
    reviews(folder / "eval.jsonl", 10, 2)
    return folder


def recipe(made: Path, **more: Any) -> TrainedRecipe:
    given = {"task": "classify", "method": "full", "name": "reviews", "base_model": str(made / "base"), "threads": 1}
    given |= {"data": {"train": str(made / "train.jsonl"), "eval": str(made / "eval.jsonl")}, "max_length": 32, "dropout": 0}
    given |= {"batch_size": 8, "training_duration": "2ep", "learning_rate": 3e-3, "log_every": 1, "eval_interval": "1ep"}
    loaded = load_recipe(given | more)
    assert isinstance(loaded, TrainedRecipe)
    return loaded


def told(run: TrainingRun, kind: str, key: str) -> list[float]:
    return [event[key] for event in run.events() if event["event"] == kind]


Pairs = dict[str, tuple[TrainingRun, TrainingRun]]
SHARED = {"micro_batch_size": 2, "ema": 0.5, "checkpoint_interval": "3ba", "training_duration": "9ba"}
IN_TURN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
from finetune import rank, ranks
leave, ranks.leave = ranks.leave, lambda: None  # the second run joins the processes that the first one did
codes = [rank.train(Path(folder)) for folder in sys.argv[1:]]
leave()
rank.train = lambda folder: max(codes)
rank.main()
"""


@pytest.fixture(scope="module")
def pairs(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Each strategy's run by one process and by two, which a single torchrun starts: most of its time is their imports."""
    root = tmp_path_factory.mktemp("runs")
    runs, uri = Runs(root / "finetune"), tracking(root)
    found: Pairs = {}
    for strategy, more in (("ddp", {}), ("fsdp", SHARED)):
        launcher = {"kind": "torchrun", "processes": 2, "strategy": strategy}
        several = runs.create(recipe(made, launcher=launcher, **more), tracking_uri=uri)
        several.set_state(status="PENDING", started=0, first_event=0)
        found[strategy] = trained(recipe(made, **more), root), several
    alone, several = found["fsdp"]
    shutil.copytree(alone.folder / "checkpoints" / "step-00000006", several.folder / "checkpoints" / "step-00000006")
    script = root / "in_turn.py"
    script.write_text(IN_TURN)
    with pytest.MonkeyPatch.context() as patch:
        both = [str(script), str(ROOT), *(str(two.folder) for _, two in found.values())]
        real = launching.command
        patch.setattr(launching, "command", lambda *given: [*real(*given)[:-3], *both])
        with found["ddp"][1].lock(), several.lock():
            launch(found["ddp"][1])
    return found


@pytest.mark.timeout(400)
def test_two_processes_learn_what_one_learns(made: Path, pairs: Pairs) -> None:
    assert launching.command(recipe(made, launcher=TWO).launcher, made)[-3:] == ["-m", "finetune.rank", str(made)]
    alone, several = pairs["ddp"]
    assert several.state()["status"] == "COMPLETED", several.state()
    assert told(several, "progress", "loss") == pytest.approx(told(alone, "progress", "loss"), rel=1e-4)
    assert told(several, "evaluation", "macro_recall") == told(alone, "evaluation", "macro_recall")
    last = [load_file(run.folder / "checkpoints" / "step-00000010" / "tensors.safetensors") for run in (alone, several)]
    weights = [name for name in last[0] if name.startswith("model/")]
    assert weights
    for name in weights:
        assert (last[0][name] - last[1][name]).abs().max() < 2e-4, name
    assert [event["event"] for event in several.events()].count("completed") == 1


def test_weights_are_shared_out_and_checkpoints_go_from_one_process_to_two_and_back(
    made: Path, tmp_path: Path, pairs: Pairs
) -> None:
    alone, several = pairs["fsdp"]
    assert several.state()["status"] == "COMPLETED", several.state()
    assert told(several, "resumed", "step") == [6]
    [every], [here] = told(several, "started", "parameters"), told(several, "started", "held_parameters")
    assert here < 0.6 * every
    assert told(several, "progress", "loss") == pytest.approx(told(alone, "progress", "loss")[6:], rel=5e-3)
    assert told(several, "evaluation", "log_loss")[-1] == pytest.approx(told(alone, "evaluation", "log_loss")[-1], rel=5e-3)
    back = Runs(tmp_path / "finetune").create(recipe(made, **SHARED), tracking_uri=tracking(tmp_path))
    shutil.copytree(several.folder / "checkpoints", back.folder / "checkpoints")
    result = execute(back)
    back.set_state(status="COMPLETED", result=result)
    assert told(back, "resumed", "step") == [9]
    assert result["metrics"]["log_loss"] == pytest.approx(alone.state()["result"]["metrics"]["log_loss"], rel=5e-3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"launcher": "ray"}, r"pip install 'ray\[train\]'"),
        ({"launcher": "databricks"}, "smalti finetune export"),
        ({"launcher": {"processes": 2}}, "kind: torchrun, accelerate or ray"),
        ({"launcher": {"strategy": "fsdp"}}, "kind: torchrun, processes: 2, strategy: fsdp"),
        (
            {"task": "cpt", "method": "qlora", "data": {"train": "a"}, "base_model": "all-MiniLM-L6-v2"},
            "qlora needs .*bitsandbytes",
        ),
    ],
)
def test_what_is_missing_is_told_before_a_run(made: Path, changes: Any, says: str) -> None:
    wanted = recipe(made, **changes) if "task" not in changes else load_recipe({"name": "x", **changes})
    assert isinstance(wanted, TrainedRecipe)
    with pytest.raises(RecipeError, match=says):
        check(wanted)


def test_a_job_of_databricks_names_what_it_needs(made: Path, tmp_path: Path) -> None:
    wanted = recipe(made, launcher={"kind": "databricks", "processes": 8, "accelerator": "GPU_8xH100"})
    found = job(wanted, Path("recipes/reviews.yaml"))
    assert found["compute"] == {"num_accelerators": 8, "accelerator_type": "GPU_8xH100"}
    assert "finetune run recipes/reviews.yaml 'launcher={kind: torchrun, processes: 8}'" in found["command"]
    assert any(need.startswith("torch<") for need in found["environment"]["dependencies"])
    assert not any(need.startswith("ruff") for need in found["environment"]["dependencies"])
    with pytest.raises(RecipeError, match="machine of 8: set processes: 8"):
        job(recipe(made, launcher={"kind": "databricks", "accelerator": "GPU_8xH100"}), Path("r.yaml"))

    arguments = ["--home", str(tmp_path), "finetune", "export", "finetune/recipes/tweet_sentiment.yaml", "launcher=databricks"]
    printed = CliRunner().invoke(cli, [*arguments, "batch_size=64", "data.max_rows=6000"])
    exported = yaml.safe_load(printed.stdout)
    assert exported["experiment_name"] == "tweet_sentiment"
    assert "tweet_sentiment.yaml batch_size=64 data.max_rows=6000 launcher=process" in exported["command"]
    (tmp_path / "r.yaml").write_text((ROOT / "finetune" / "recipes" / "tweet_sentiment.yaml").read_text())
    elsewhere = CliRunner().invoke(cli, [*arguments[:4], str(tmp_path / "r.yaml"), "launcher=databricks"])
    assert "is not in" in str(elsewhere.exception)
