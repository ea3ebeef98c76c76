"""A run trains an encoder in a process of its own, survives being killed, and its model serves what was trained."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from app import cli
from finetune.perform import perform
from finetune.recipe import RecipeError, load_recipe
from finetune.runs import RunError, Runs, TrainingRun
from finetune.schema import EncoderRecipe
from tests.finetune.tiny import bert, reviews, spawned_here, tracking, trained
from tests.live import environment, wait_until
from tests.programs import Programs


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
    run = Runs(root / "finetune").create(recipe(made, *overrides), tracking_uri=tracking(root))
    run.start()
    return run


def finished(run: TrainingRun) -> str:
    wait_until(lambda: run.state()["status"] not in ("PENDING", "RUNNING"), 200)
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


@pytest.mark.timeout(400)
def test_from_rows_to_a_registered_champion(
    made: Path, tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(recipe(made, "register_to=main.default.reviews"), tmp_path)
    kinds = [event["event"] for event in run.events()]
    assert {"validated", "started", "progress", "evaluation", "checkpoint", "baseline"} <= set(kinds)
    result = run.state()["result"]
    assert result["metrics"]["macro_recall"] > 0.8
    assert result["baseline"].keys() == result["metrics"].keys()
    assert result["registered"]["champion"]

    given = (f"sqlite:///{tmp_path}/mlflow.db", str(made / "eval.jsonl"))
    done = programs.run(LOADED, *given, folder=tmp_path, environment=environment(tmp_path))
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

    # The same recipe again, by the command line, is no better, so the first stays the champion.
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(recipe(made, "register_to=main.default.reviews", "training_duration=1ba").model_dump(mode="json")))
    monkeypatch.setattr(TrainingRun, "_spawn", spawned_here)
    done = commanded("run", str(file), "--json", home=tmp_path)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["registered"]["version"], told["registered"]["champion"]) == ("2", False)
    assert "version 1 has" in told["registered"]["reason"]
    told_by = [event["event"] for event in Runs(tmp_path / "finetune").get(told["id"]).events(follow=True)]
    assert told_by[-1] == "completed"
    assert told_by.count("completed") == 1
    listed = json.loads(commanded("list", "--json", home=tmp_path).stdout)
    assert [(row["id"], row["status"], row["step"]) for row in listed] == [
        (told["id"], "COMPLETED", 1),
        (run.id, "COMPLETED", 40),
    ]
    lines = commanded("events", "--follow", told["id"][:12], home=tmp_path).stdout
    assert "step 1/1" in lines
    assert lines.splitlines()[-1].startswith("completed")
    assert "nothing to cancel" in str(commanded("cancel", told["id"], home=tmp_path).exception)


def commanded(*arguments: str, home: Path) -> Result:
    return CliRunner().invoke(cli, ["--home", str(home), "finetune", *arguments])


@pytest.mark.timeout(400)
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = start(made, tmp_path / "b")
    checkpoints = killed.folder / "checkpoints"
    wait_until(lambda: (checkpoints / "step-00000010").exists() or killed.state()["status"] == "COMPLETED", 100)
    if killed.state()["status"] == "RUNNING":
        os.kill(killed.state()["pid"], signal.SIGKILL)
        wait_until(lambda: not killed.alive())
        assert killed.state()["status"] == "FAILED"
        assert "resume" in killed.state()["message"]
        newest = sorted(checkpoints.glob("step-*"))[-1] / "tensors.safetensors"
        newest.write_bytes(newest.read_bytes()[:100])  # and the disk lost the end of its last checkpoint
        monkeypatch.setattr(TrainingRun, "_spawn", spawned_here)
        killed.start()
    whole = trained(recipe(made), tmp_path / "a")
    assert finished(killed) == "COMPLETED", killed.state()
    last = [run.folder / "checkpoints" / "step-00000040" / "tensors.safetensors" for run in (whole, killed)]
    assert last[0].read_bytes() == last[1].read_bytes()
    with pytest.raises(RunError, match="has completed"):
        whole.start()


def test_what_cannot_be_trained_fails_with_its_reason(made: Path, tmp_path: Path) -> None:
    rows = made / "leaking.jsonl"
    rows.write_text((made / "train.jsonl").read_text() + (made / "eval.jsonl").read_text())
    run = Runs(tmp_path / "finetune").create(recipe(made, f"data.train={rows}"), tracking_uri=tracking(tmp_path))
    with run.hold():
        assert perform(run) == "FAILED"
    assert "leakage" in run.state()["message"]
    assert list(run.events())[-1]["event"] == "failed"


def test_who_looks_whether_a_run_lives_keeps_it_from_nothing(made: Path, tmp_path: Path) -> None:
    run = Runs(tmp_path / "finetune").create(recipe(made), tracking_uri=tracking(tmp_path))
    looking = threading.Event()

    def look() -> None:
        with run.lock():
            looking.set()
            time.sleep(0.2)

    other = threading.Thread(target=look)
    other.start()
    assert looking.wait(60)
    with run.hold():
        assert run.alive()
    other.join()


def test_a_run_goes_on_with_the_files_it_began_with_alone(made: Path, tmp_path: Path) -> None:
    run = Runs(tmp_path / "finetune").create(recipe(made), tracking_uri=tracking(tmp_path))
    (run.folder / "checkpoints" / "step-00000005").mkdir(parents=True)
    run.set_state(status="FAILED", hashes={"data_sha256": "of what was there"})
    with run.hold():
        assert perform(run) == "FAILED"
    assert run.state()["message"].startswith("data.train, data.eval, base_model: changed since the run began")


def test_a_full_disk_is_told(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("finetune.checkpoint.save", full)
    run = Runs(tmp_path / "finetune").create(recipe(made, "training_duration=1ba"), tracking_uri=tracking(tmp_path))
    spawned_here(run)
    assert run.state()["status"] == "FAILED"
    assert run.state()["message"].startswith(f"No space is left for {run.folder}")
    assert list(run.events())[-1]["event"] == "failed"


def test_the_base_model_is_looked_for_before_a_run(tmp_path: Path) -> None:
    from finetune.base_model import locate

    with pytest.raises(RecipeError, match="no folder"):
        locate("./nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"tokenizer.json, \*.safetensors"):
        locate(str(tmp_path))


def test_a_list_of_runs_is_readable_in_a_narrow_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "Step 12: the loss or its gradient is not a number. Lower learning_rate, or look at the [rows] of it.\nmore lines"
    for name in ("tweet-sentiment-1a2b3c4d", "a-long-name-of-a-recipe-for-support-1a2b3c4d"):
        folder = tmp_path / "finetune" / name
        folder.mkdir(parents=True)
        spec = {"name": name, "recipe": {"task": "sft-instruct", "method": "qlora"}, "created": "2026-11-23T22:11:00+00:00"}
        (folder / "run.json").write_text(json.dumps(spec))
        (folder / "state.json").write_text(json.dumps({"status": "FAILED", "message": message, "step": 12, "steps": 200}))
    monkeypatch.setenv("COLUMNS", "80")
    lines = commanded("list", home=tmp_path).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    at = lines.index("tweet-sentiment-1a2b3c4d")
    assert lines[at + 1].split() == ["sft-instruct", "qlora", "FAILED", "12/200", "2026-11-23", "22:11"]
    assert " ".join(" ".join(lines[at + 2 : at + 4]).split()) == message.splitlines()[0] + " …"
    monkeypatch.setenv("COLUMNS", "130")
    wide = commanded("list", home=tmp_path).stdout.splitlines()
    assert any(line.startswith("tweet-sentiment-1a2b3c4d  ") and line.endswith("2026-11-23 22:11") for line in wide)
    assert {each["message"] for each in json.loads(commanded("list", "--json", home=tmp_path).stdout)} == {message}
