"""A run trains an encoder in a process of its own, survives being killed, and its model serves what was trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.recipe import RecipeError, load_recipe
from finetune.runs import RunError, Runs, TrainingRun
from finetune.schema import EncoderRecipe
from tests.finetune.tiny import bert, reviews
from tests.live import wait_until


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    bert(folder / "base")
    reviews(folder / "train.jsonl", 160, 1)
    reviews(folder / "eval.jsonl", 60, 2)
    return folder


def recipe(made: Path, *overrides: str) -> EncoderRecipe:
    data = {"train": str(made / "train.jsonl"), "eval": str(made / "eval.jsonl")}
    given = {"task": "classify", "method": "full", "name": "reviews", "base_model": str(made / "base"), "data": data}
    given |= {"learning_rate": 3e-3, "batch_size": 16, "training_duration": "4ep", "threads": 1, "checkpoint_interval": "5ba"}
    loaded = load_recipe(given | {"ema": 0.8, "max_length": 32}, overrides)
    assert isinstance(loaded, EncoderRecipe)
    return loaded


def start(made: Path, root: Path, *overrides: str) -> TrainingRun:
    run = Runs(root / "finetune").create(recipe(made, *overrides), tracking_uri=f"sqlite:///{root}/mlflow.db")
    run.start()
    return run


def finished(run: TrainingRun) -> str:
    wait_until(lambda: run.state()["status"] not in ("PENDING", "RUNNING"), 100)
    return run.state()["status"]


LOADED = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
client = mlflow.MlflowClient()
version = client.get_model_version_by_alias("main.default.reviews", "champion")
model = mlflow.pyfunc.load_model("models:/main.default.reviews@champion")
rows = [json.loads(line) for line in open(sys.argv[2])]
frame = model.predict(pd.DataFrame({"text": [row["text"] for row in rows]}))
steps = [metric.step for metric in client.get_metric_history(version.run_id, "loss")]
requirements = mlflow.artifacts.download_artifacts("models:/main.default.reviews@champion/requirements.txt")
print(json.dumps({
    "right": sum(a == row["label"] for a, row in zip(frame["label"], rows)) / len(rows),
    "sums": frame[["p_bad", "p_good"]].sum(axis=1).tolist(), "tags": version.tags, "card": version.description, "steps": steps,
    "torch": "torch" in sys.modules, "requirements": open(requirements).read(), "version": version.version,
    "inputs": [column.name for column in mlflow.models.get_model_info(version.source).signature.inputs],
}))
"""


def test_from_rows_to_a_registered_champion(made: Path, tmp_path: Path) -> None:
    run = start(made, tmp_path, "register_to=main.default.reviews")
    kinds = [event["event"] for event in run.events(follow=True)]
    assert finished(run) == "COMPLETED", (run.state(), (run.folder / "log.txt").read_text())
    assert kinds[-1] == "completed"
    assert kinds.count("completed") == 1
    assert {"validated", "started", "progress", "evaluation", "checkpoint", "baseline"} <= set(kinds)
    result = run.state()["result"]
    assert result["metrics"]["macro_recall"] > 0.8
    assert result["baseline"].keys() == result["metrics"].keys()
    assert result["registered"]["champion"]

    command = [sys.executable, "-W", "ignore", "-c", LOADED, f"sqlite:///{tmp_path}/mlflow.db", str(made / "eval.jsonl")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["right"] == pytest.approx(result["metrics"]["accuracy"], abs=0.02)
    assert np.allclose(told["sums"], 1, atol=1e-5)
    assert not told["torch"]
    assert "torch" not in told["requirements"]
    assert "onnxruntime==" in told["requirements"]
    assert told["inputs"] == ["text"]
    assert told["steps"] == [1, 10, 20, 30, 40]
    assert len(told["tags"]["data_sha256"]) == len(told["tags"]["base_sha256"]) == 64
    assert "TF-IDF" in told["card"]

    # The same recipe again is no better, so the first stays the champion.
    again = start(made, tmp_path, "register_to=main.default.reviews", "training_duration=1ba")
    assert finished(again) == "COMPLETED", again.state()
    registered = again.state()["result"]["registered"]
    assert (registered["version"], registered["champion"]) == ("2", False)
    assert "version 1 has" in registered["reason"]


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(made: Path, tmp_path: Path) -> None:
    whole, killed = start(made, tmp_path / "a"), start(made, tmp_path / "b")
    checkpoints = killed.folder / "checkpoints"
    wait_until(lambda: (checkpoints / "step-00000010").exists() or killed.state()["status"] == "COMPLETED", 100)
    if killed.state()["status"] == "RUNNING":
        os.kill(killed.state()["pid"], signal.SIGKILL)
        wait_until(lambda: not killed.alive())
        assert killed.state()["status"] == "FAILED"
        assert "resume" in killed.state()["message"]
        newest = sorted(checkpoints.glob("step-*"))[-1] / "tensors.safetensors"
        newest.write_bytes(newest.read_bytes()[:100])  # and the disk lost the end of its last checkpoint
        killed.start()
    assert finished(killed) == finished(whole) == "COMPLETED", (killed.state(), whole.state())
    last = [run.folder / "checkpoints" / "step-00000040" / "tensors.safetensors" for run in (whole, killed)]
    assert last[0].read_bytes() == last[1].read_bytes()
    with pytest.raises(RunError, match="has completed"):
        whole.start()


def test_a_canceled_run_ends_with_a_checkpoint_and_can_be_resumed(made: Path, tmp_path: Path) -> None:
    run = start(made, tmp_path, "training_duration=100kba")
    wait_until(lambda: run.state().get("step", 0) >= 1, 100)
    run.cancel()
    assert finished(run) == "CANCELED"
    assert [event["event"] for event in run.events()].count("canceled") == 1
    run.start()
    wait_until(lambda: any(event["event"] == "resumed" for event in run.events()), 100)
    run.cancel()
    assert finished(run) == "CANCELED"
    with pytest.raises(RunError, match="nothing to cancel"):
        run.cancel()


def test_what_cannot_be_trained_fails_with_its_reason(made: Path, tmp_path: Path) -> None:
    rows = made / "leaking.jsonl"
    rows.write_text((made / "train.jsonl").read_text() + (made / "eval.jsonl").read_text())
    run = start(made, tmp_path, f"data.train={rows}")
    assert finished(run) == "FAILED"
    assert "leakage" in run.state()["message"]
    assert list(run.events())[-1]["event"] == "failed"


def test_the_base_model_is_looked_for_before_a_run(tmp_path: Path) -> None:
    from finetune.base_model import locate

    with pytest.raises(RecipeError, match="no folder"):
        locate("./nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"tokenizer.json, \*.safetensors"):
        locate(str(tmp_path))


def test_the_command_line(made: Path, tmp_path: Path) -> None:
    from tests.live import smalti

    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(recipe(made, "training_duration=2ba").model_dump(mode="json")))
    done = smalti("finetune", "run", str(file), "--json", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    identifier = json.loads(done.stdout)["id"]
    listed = json.loads(smalti("finetune", "list", "--json", home=tmp_path / "home").stdout)
    assert [(row["id"], row["status"], row["step"]) for row in listed] == [(identifier, "COMPLETED", 2)]
    told = smalti("finetune", "events", "--follow", identifier[:12], home=tmp_path / "home").stdout
    assert "step 2/2" in told
    assert told.splitlines()[-1].startswith("completed")
    refused = smalti("finetune", "cancel", identifier, home=tmp_path / "home")
    assert refused.returncode == 2
    assert "nothing to cancel" in refused.stderr
    assert "Traceback" not in refused.stderr
