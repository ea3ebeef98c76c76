from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.cache import Cache
from evals.data import Prediction, Row, RowResult
from evals.journal import score_all
from evals.judged import judge, named

RESULTS = [
    RowResult(Row("1", "q1", ("a",)), Prediction("a b c")),
    RowResult(Row("2", "q2"), Prediction("")),
    RowResult(Row("3", "q3"), Prediction(error="503")),
]


class Scorer:
    def __init__(self, name: str, answer) -> None:
        self.name, self.answer, self.calls = name, answer, 0

    def run(self, *, inputs=None, outputs=None, expectations=None, trace=None):
        self.calls += 1
        return self.answer(inputs, outputs, expectations)


@pytest.mark.anyio
async def test_a_scorer_that_raises_or_hangs_is_an_error_of_its_row_alone() -> None:
    released = threading.Event()
    scorers = [
        Scorer("words", lambda inputs, outputs, expectations: len(outputs["text"].split())),
        Scorer("broken", lambda inputs, outputs, expectations: 1 / len(outputs["text"])),
        Scorer("hung", lambda *_: released.wait(60)),
        Scorer("odd", lambda *_: object()),
        Scorer("leaves", lambda *_: exit()),
    ]
    try:
        found = await judge(RESULTS, scorers, timeout=2)
    finally:
        released.set()
    assert [item.judged.get("words", {}).get("value") for item in found] == [3, 0, None]
    assert found[0].judged["broken"]["value"] == 0.2
    assert found[1].judged["broken"]["error"] == "ZeroDivisionError: division by zero"
    assert found[0].judged["hung"]["error"] == "timed out after 2 s"
    assert "gives a number" in found[0].judged["odd"]["error"]
    assert "SystemExit" in found[0].judged["leaves"]["error"]
    assert found[2].judged == {}  # no answer, nothing to judge
    scored, _ = score_all(found)
    assert [result.scores["words"] for result in scored] == [3, 0, None]
    assert scored[1].scores["broken"] is None


@pytest.mark.anyio
async def test_scorers_of_mlflow_work_unchanged_and_are_not_asked_twice(tmp_path: Path) -> None:
    from mlflow.entities import AssessmentSource, Feedback
    from mlflow.genai import scorer

    calls = []

    @scorer
    def long_enough(outputs) -> bool:
        calls.append(1)
        return len(outputs["text"]) > 2

    @scorer
    def verdict(inputs, outputs, expectations) -> list[Feedback]:
        source = AssessmentSource(source_type="LLM_JUDGE", source_id="judge")
        return [
            Feedback(name="tone", value="yes", rationale=inputs["question"], source=source),
            Feedback(name="facts", value=len(expectations.get("expected_facts", ()))),
        ]

    cache = Cache(tmp_path, {"scorers": "1"})
    for _ in range(2):
        found = await judge(RESULTS, [long_enough, verdict], cache=cache)
    cache.close()
    assert len(calls) == 2
    assert [item.judged["long_enough"]["value"] for item in found[:2]] == [True, False]
    assert found[0].judged["tone"] == {
        "value": "yes", "rationale": "q1", "source": "LLM_JUDGE", "source_id": "judge", "error": None
    }  # fmt: skip
    scored, _ = score_all(found)
    assert [scored[0].scores[name] for name in ("long_enough", "tone", "facts")] == [1, 1, 1]


@pytest.mark.anyio
async def test_two_scorers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two scorers are called 'a'"):
        await judge(RESULTS, [Scorer("a", len), Scorer("a", len)])


def test_a_scorer_is_the_same_whatever_the_order_of_what_it_needs() -> None:
    def made(columns: list[str], **more: str) -> Any:
        data = {"required_columns": columns, **more}
        return SimpleNamespace(name="safety", run=None, model_dump=lambda: {"builtin_scorer_pydantic_data": data})

    assert named(made(["inputs", "trace"])) == named(made(["trace", "inputs"]))
    assert named(made(["inputs"])) != named(made(["inputs"], model="openai:/x"))
