"""Code written for Databricks' Foundation Model Fine-tuning begins, follows and cancels runs here."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from finetune import foundation_model as fm
from finetune.perform import perform
from finetune.recipe import RecipeError
from finetune.runs import RunError, TrainingRun
from tests.finetune.tiny import llama, tracking
from tests.live import wait_until


def in_a_thread(run: TrainingRun) -> None:
    def work() -> None:
        with run.hold():
            perform(run)

    run.set_state(status="PENDING", message="", started=time.time(), first_event=run.size())
    threading.Thread(target=work).start()


@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")  # MLflow's and PEFT's own
def test_a_run_is_begun_followed_and_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_HOME", str(tmp_path / "home"))
    # In a thread: that a run gets a process of its own is shown elsewhere, and one takes the seconds that its imports take.
    monkeypatch.setattr(TrainingRun, "start", in_a_thread)
    tracking(tmp_path / "home")
    base, rows = llama(tmp_path / "tiny-llama"), tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1+1=", "response": "2"}) + "\n")
    run = fm.create(
        model=str(base),
        train_data_path=str(rows),
        register_to="main.default",
        task_type="INSTRUCTION_FINETUNE",
        training_duration="100kba",
        learning_rate="1e-3",
        context_length=64,
        eval_prompts="1+",
        data_prep_cluster_id="0123-456789-abcdefgh",
        threads=1,
    )
    recipe = run.spec["recipe"]
    assert (run.name, recipe["register_to"]) == ("tiny_llama", "main.default.tiny_llama")
    assert (recipe["task"], recipe["method"], recipe["learning_rate"]) == ("sft-instruct", "full", 1e-3)
    assert recipe["eval_prompts"] == ["1+"]
    wait_until(lambda: run.state().get("step", 0) >= 1, 200)
    assert [each.id for each in fm.list()] == [fm.get(run.id).id] == [run.id]
    assert fm.cancel(run) == 1
    events = fm.get_events(run, follow=True)
    assert events[-1]["event"] == "canceled"
    wait_until(lambda: fm.get(run).status == "CANCELED")
    assert fm.cancel([run.id]) == 0
    assert [event["event"] for event in run.events()].count("canceled") == 1

    with pytest.raises(RunError, match="nothing to cancel"):
        run.cancel()


def test_what_is_not_a_task_is_told() -> None:
    with pytest.raises(RecipeError, match="CONTINUED_PRETRAIN"):
        fm.create("m", "d", task_type="DANCE")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train_data_path": "nowhere.jsonl"}, "data.train: there is no nowhere.jsonl"),
        ({"eval_data_path": "nowhere.jsonl"}, "data.eval: there is no nowhere.jsonl"),
        ({"learning_rate": "fast"}, "learning_rate: Input should be a valid number"),
        ({"context_length": 1000}, "reads at most 128 tokens, not 1000"),
        ({"training_duration": 0}, "'0ep' is no duration"),
        ({"colour": 1}, "colour is not a key of it"),
    ],
)
def test_what_cannot_be_begun_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, told: str) -> None:
    monkeypatch.setenv("SMALTI_HOME", str(tmp_path / "home"))
    base, rows = llama(tmp_path / "base"), tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1+1=", "response": "2"}) + "\n")
    given = {"model": str(base), "train_data_path": str(rows), "task_type": "INSTRUCTION_FINETUNE", "context_length": 64}
    with pytest.raises(RecipeError, match=told):
        fm.create(**given | changes)
    assert fm.list() == []
