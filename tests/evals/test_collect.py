from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.collect import asked_of, from_journal, from_traces, write
from evals.data import load_dataset
from evals.errors import DatasetError


def call(number: int, question: Any, **more: Any) -> dict[str, Any]:
    body = {"output": [{"type": "message", "content": [{"type": "output_text", "text": f"answer {number}"}]}]}
    return {
        "databricks_request_id": f"{number:032x}", "endpoint_name": "assistant", "status_code": 200, "requester": "ann",
        "request_time": f"2026-01-{number + 1:02}T00:00:00Z", "request": json.dumps({"input": question}),
        "response": json.dumps(body), "parent_request_id": None,
    } | more  # fmt: skip


def redact(text: str) -> str:
    return text.replace("ann@example.com", "[EMAIL]")


def test_what_was_asked_becomes_rows_without_personal_data_and_each_question_once() -> None:
    rows = [
        call(0, "Where is it? Mail ann@example.com"),
        call(1, "Who?", status_code=500),
        call(2, "Who?", parent_request_id="x"),
        call(3, [{"role": "user", "content": "First?"}, {"role": "assistant"}, {"role": "user", "content": "Then?"}]),
        call(4, "  then "),
        call(5, "Later?"),
        call(6, "Bob's", requester="bob"),
        call(7, None),
        call(8, "Torn", request="{"),
    ]  # fmt: skip
    found = from_journal(rows, redact=redact, caller="ann", until="2026-01-06T00:00:00Z")
    assert [row["question"] for row in found] == ["Where is it? Mail [EMAIL]", "Then?"]
    assert found[0]["answer"] == "answer 0"
    assert "ann" not in json.dumps(found).replace("answer", "")
    assert [row["question"] for row in from_journal(rows, match="^Lat")] == ["Later?"]
    with pytest.raises(ValueError, match="regular expression"):
        from_journal(rows, match="(")


def test_a_sample_stays_what_it_was_when_calls_are_added() -> None:
    rows = [call(number, f"Question {number}?") for number in range(20)]
    drawn = {row["id"] for row in from_journal(rows, sample=8, seed=1)}
    assert len(drawn) == 8
    more = {row["id"] for row in from_journal([*rows, call(25, "One more?")], sample=8, seed=1)}
    assert len(drawn & more) >= 7
    assert {row["id"] for row in from_journal(rows, sample=8, seed=2)} != drawn


def test_requests_of_every_protocol_are_read() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert asked_of({"messages": [{"role": "user", "content": parts}]}) == "a\nb"
    assert asked_of({"dataframe_records": [{"x": 1}]}) == {"x": 1}
    assert asked_of({"dataframe_records": [{"x": 1}, {"x": 2}]}) is None
    assert asked_of({"input": [{"type": "function_call_output", "output": "1"}]}) is None
    assert asked_of(7) is None


def trace(name: str, asked: str, *assessments: Any) -> Any:
    span = SimpleNamespace(parent_id=None, inputs={"input": asked}, outputs={"choices": [{"message": {"content": "said"}}]})
    return SimpleNamespace(info=SimpleNamespace(trace_id=name, assessments=assessments), data=SimpleNamespace(spans=[span]))


def given(
    name: str, value: Any, *, who: str = "HUMAN", expectation: bool = False, time: int = 0, valid: bool = True, run: str = ""
) -> Any:
    return SimpleNamespace(
        metadata={"mlflow.assessment.sourceRunId": run} if run else None,
        name=name, value=value, source=SimpleNamespace(source_type=who), valid=valid, last_update_time_ms=time,
        expectation=object() if expectation else None,
    )  # fmt: skip


def test_only_what_people_said_of_a_trace_is_expected() -> None:
    traces = [
        trace("tr-1", "A?", given("expected_facts", ["x"], expectation=True), given("user_feedback", False)),
        trace("tr-2", "B?", given("expected_facts", ["y"], expectation=True, who="LLM_JUDGE")),
        trace("tr-3", "C?", given("correct", "no", time=1), given("correct", "yes", time=2)),
        trace("tr-5", "E?", given("correct", "?", valid=False)),
        trace("tr-4", "D?"),
        trace("tr-6", "An evaluation's row", given("expected_facts", ["x"], expectation=True, run="r1")),
        trace("tr-7", "F?", given("expected_facts", ["z"], expectation=True, run="r1"), given("correct", "yes", time=1)),
    ]  # fmt: skip
    first, second, third = from_traces(traces)
    assert (third["question"], third["expected_facts"], third["feedback"]) == ("F?", ["z"], {"correct": "yes"})
    assert first == {
        "question": "A?", "id": "tr-1", "answer": "said", "expected_facts": ["x"], "feedback": {"user_feedback": False}
    }  # fmt: skip
    assert second["feedback"] == {"correct": "yes"}


def test_a_dataset_is_written_wholly_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    assert write(path, [{"question": "A?", "id": "1"}]) == 1
    with pytest.raises(FileExistsError, match="--append"):
        write(path, [{"question": "B?"}])
    assert write(path, [{"question": "a"}, {"question": "B?", "id": "2"}], append=True) == 1
    with pytest.raises(DatasetError, match="already the id"):
        write(path, [{"question": "C?", "id": "2"}], append=True)
    assert [row.question for row in load_dataset(path)] == ["A?", "B?"]
    with pytest.raises(DatasetError, match="would hold no rows"):
        write(tmp_path / "empty.jsonl", [])
    assert [each.name for each in tmp_path.iterdir()] == ["d.jsonl"]
