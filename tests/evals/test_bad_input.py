"""What goes wrong in evaluations of real endpoints, each tried: rows are all there, and trouble is never taken for a score."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from evals.compare import compare_runs
from evals.data import Prediction, load_dataset
from evals.errors import DatasetError
from evals.gate import Criteria, gate
from evals.journal import Evaluation
from evals.run import evaluate
from evals.seal import seal


async def run(folder: Path, predict, *, name: str = "a", count: int = 60, scorers=()) -> Evaluation:
    path = folder / "rows.jsonl"
    if not path.exists():
        rows = [{"id": str(n), "question": f"Question {n}?", "expected_facts": [f"fact {n}"]} for n in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return await evaluate(
        name, path, predict, tracking_uri=None, folder=folder / "evals", scorers=scorers, timeout=5, progress=False
    )


async def right(question: str) -> Prediction:
    return Prediction(f"It is fact {question.split()[1].rstrip('?')}.")


@pytest.mark.anyio
async def test_a_predictor_that_fails_on_every_third_row_is_no_worse_model(tmp_path: Path) -> None:
    async def flaky(question: str) -> Prediction:
        if int(question.split()[1].rstrip("?")) % 3 == 0:
            raise ConnectionError("the upstream hung up")
        return await right(question)

    whole, broken = await run(tmp_path, right), await run(tmp_path, flaky, name="b")
    assert (broken.rows, len(broken.errors)) == (60, 20)
    assert broken.estimates["contains"].value == 1.0, "what was not answered is no wrong answer"
    assert broken.estimates["contains"].n == 40
    decision = gate(broken, whole, Criteria(margins={"contains": 0.05}))
    assert decision.outcome == "broken"
    other = [condition for condition in decision.conditions if condition.outcome != "passed"]
    assert [condition.name for condition in other] == ["candidate: no infrastructure errors"]
    assert "20 rows without an answer, such as: ConnectionError: the upstream hung up" in other[0].reason


@pytest.mark.anyio
async def test_a_metric_without_variance_compares_and_passes(tmp_path: Path) -> None:
    first, second = await run(tmp_path, right), await run(tmp_path, right, name="b")
    found = compare_runs(first.journal, second.journal, scores=["contains"])
    assert "not shown to differ" in found.sentence()
    decision = gate(second, first, Criteria(margins={"contains": 0.2}))
    assert decision.outcome == "passed"


@pytest.mark.anyio
async def test_a_clock_that_jumps_back_makes_no_negative_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, calls = time.time(), 0

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return began - 3600 * calls

    monkeypatch.setattr(time, "time", jumping)
    found = await run(tmp_path, right)
    assert all((result.prediction.latency_ms or 0) >= 0 for result in found.results)
    assert found.rows == 60


@pytest.mark.anyio
async def test_a_scorer_that_raises_on_some_rows_breaks_the_gate_and_not_the_model(tmp_path: Path) -> None:
    class Picky:
        name = "picky"

        def run(self, *, inputs=None, outputs=None, expectations=None, trace=None):
            if inputs["question"].startswith("Question 1"):
                raise ValueError("not this one")
            return True

    found = await run(tmp_path, right, scorers=[Picky()])
    assert found.scorer_errors == {"picky": 11}
    assert found.estimates["picky"].value == 1.0
    [failed] = [
        each for each in gate(found, None, Criteria(min={"picky": 0.5})).conditions if each.name.endswith("no scorer failed")
    ]
    assert failed.outcome == "broken"


def test_datasets_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    for text, says in (
        ('{"id": "1", "question": "a"}\n{"id": "1", "question": "b"}\n', "line 2, key 'id': '1' is already the id of line 1"),
        ('{"expected_facts": ["a"]}\n', "line 1, key 'question': is missing"),
    ):
        path.write_text(text)
        with pytest.raises(DatasetError, match=says):
            load_dataset(path)
    path.write_text('{"question": "a"}\n')
    seal(path, version="1")
    path.write_text('{"question": "b"}\n')
    with pytest.raises(DatasetError, match="was edited after version 1 was sealed"):
        load_dataset(path)
