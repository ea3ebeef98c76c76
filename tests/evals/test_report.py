from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from evals.data import Prediction, Row, RowResult
from evals.journal import Evaluation, score_all
from evals.report import Gate, GateError, check, exit_code, failures, parse_gate, render, to_json
from evals.scorers import METRICS
from evals.stats import summarize

ROWS = [
    (Row("right", "q1", ("fact",), ("a.md",)), Prediction("the fact", ("a.md",), latency_ms=10)),
    (Row("facts", "q2", ("fact", "more"), ("a.md",)), Prediction("only [bold]fact[/bold]", ("a.md",), latency_ms=20)),
    (Row("source", "q3", ("fact",), ("b.md",)), Prediction("the fact", ("c.md", "a.md"), latency_ms=30)),
    (Row("refused", "q4", ("fact",), ("a.md",)), Prediction("no idea", ("a.md",), abstained=True, latency_ms=40)),
    (Row("invented", "q5", unanswerable=True), Prediction("some\n\nanswer " + "x" * 300, (), latency_ms=50)),
    (Row("error", "q6", ("fact",)), Prediction(error="timed out after 5 s")),
]


def evaluation(rows: list[tuple[Row, Prediction]] | None = None, expected: int | None = None) -> Evaluation:
    results, _ = score_all(RowResult(row, prediction) for row, prediction in (ROWS if rows is None else rows))
    return Evaluation(
        endpoint="assistant",
        dataset="rows.jsonl",
        sha256="ab",
        expected_rows=expected or len(results),
        results=tuple(results),
        estimates=summarize(result.scores for result in results),
        journal=Path("journal.jsonl"),
        run_id="r1",
        experiment_id="1",
    )


def test_json_has_every_metric_twice_and_survives_strict_json() -> None:
    found = json.loads(json.dumps(to_json(evaluation()), allow_nan=False))
    assert (found["endpoint"], found["rows"], found["errors"], found["sha256"], found["run_id"]) == (
        "assistant",
        6,
        1,
        "ab",
        "r1",
    )
    assert found["metrics"].keys() == METRICS.keys() == found["intervals"].keys() == found["n"].keys()
    for name in METRICS:
        assert found[name] == found["metrics"][name]
    assert (found["hit@1"], found["n"]["hit@1"]) == (0.75, 4)
    assert found["abstention_precision"] == 0
    assert found["latency_p50_ms"] == 30
    low, high = found["intervals"]["hit@1"]
    assert 0 < low < 0.75 < high < 1


def test_failures_come_worst_first_and_name_what_was_expected() -> None:
    found = failures(evaluation())
    assert [failure.kind for failure in found] == ["error", "invented", "refused", "source", "facts"]
    assert [(f.expected, f.got) for f in found[2:4]] == [("fact", "no idea"), ("b.md", "c.md, a.md")]
    assert len(failures(evaluation(), 2)) == 2


def test_the_table_says_what_is_missing_and_takes_no_markup_from_answers() -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    result = evaluation()
    console.print(render(result, check(result, [parse_gate("hit@5=0.9")])))
    console.file.close()
    text = console.export_text()
    assert "6 of 6 rows" in text
    assert "1 rows had errors" in text
    assert "[bold]fact[/bold]" in text
    assert "failed hit@5 ≥ 0.9: 1 of 6 rows had errors; 0.750 is below 0.9" in text
    assert "run r1" in text


def test_an_evaluation_without_unanswerable_rows_prints() -> None:
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(evaluation(ROWS[:1])))
    console.file.close()
    assert "no row has what it needs" in console.export_text()


@pytest.mark.parametrize(
    ("text", "kind", "gate"),
    [
        ("hit@5=0.9", "min", Gate("hit@5", "min", 0.9)),
        (" HIT@5 = .9 ", "min", Gate("hit@5", "min", 0.9)),
        ("f1=0", "min", Gate("f1", "min", 0.0)),
        ("latency_p95_ms=1e3", "max", Gate("latency_p95_ms", "max", 1000.0)),
    ],
)
def test_gates_are_parsed(text: str, kind: str, gate: Gate) -> None:
    assert parse_gate(text, kind) == gate  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("hit@5", "min", "write METRIC=VALUE, such as hit@5=0.9"),
        ("=0.9", "min", "write METRIC=VALUE"),
        ("hit@5=", "min", "write METRIC=VALUE"),
        ("hit5=0.9", "min", "did you mean 'hit@5'? known are hit@1, "),
        ("zzz=1", "min", "unknown metric 'zzz'; known are"),
        ("hit@5=high", "min", "'high' is not a number"),
        ("hit@5=nan", "min", "'nan' is not a number"),
        ("hit@5=90", "min", "did you mean hit@5=0.9?"),
        ("hit@5=-1", "min", "lies between 0 and 1"),
        ("latency_p95_ms=800", "min", "use --max latency_p95_ms=800"),
        ("hit@5=0.9", "max", "use --min hit@5=0.9"),
        ("latency_p95_ms=0", "max", "above 0"),
    ],
)
def test_a_wrong_gate_says_what_to_write(text: str, kind: str, said: str) -> None:
    with pytest.raises(GateError) as caught:
        parse_gate(text, kind)  # pyright: ignore[reportArgumentType]
    assert said in str(caught.value)


def test_gates_pass_at_the_bound_and_fail_past_it() -> None:
    sound = evaluation(ROWS[:5])
    passed, failed, slow = check(
        sound, [Gate("hit@1", "min", 0.75), Gate("hit@1", "min", 0.76), Gate("latency_p50_ms", "max", 29)]
    )
    assert (passed.passed, passed.reason) == (True, "")
    assert (failed.passed, failed.reason) == (False, "0.750 is below 0.76")
    assert (slow.passed, slow.reason) == (False, "30.0 is above 29")
    assert exit_code(sound, [passed]) == 0
    assert exit_code(sound, [passed, failed]) == 1


def test_gates_fail_on_errors_missing_rows_and_metrics_without_rows() -> None:
    gate = Gate("hit@1", "min", 0.1)
    assert check(evaluation(), [gate])[0].reason == "1 of 6 rows had errors"
    assert check(evaluation(ROWS[:5], expected=7), [gate])[0].reason == "2 of 7 rows are missing"
    [nothing] = check(evaluation(ROWS[:1]), [Gate("abstention_recall", "min", 0.0)])
    assert (nothing.passed, nothing.value) == (False, None)
    assert "n = 0" in nothing.reason


def test_without_gates_only_a_run_without_any_answer_fails() -> None:
    assert exit_code(evaluation()) == 0
    assert exit_code(evaluation(ROWS[5:])) == 4


def test_scorers_that_fail_are_told_with_what_they_said_and_pass_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMALTI_JUDGE_MODEL", raising=False)
    keyless = {"judge": {"error": "MlflowException: OPENAI_API_KEY environment variable must be set"}}
    results, _ = score_all([
        RowResult(Row("1", "q"), Prediction("a", latency_ms=1), judged={**keyless, "mood": {"value": "calm"}}),
        RowResult(Row("2", "q"), Prediction("b"), judged={"odd": {"error": "ValueError: no"}, "mood": {"value": "calm"}}),
        RowResult(Row("3", "q"), Prediction("b", latency_ms=1), judged={"odd": {"value": 1.0}, "polite": {"value": "no"}}),
    ])  # fmt: skip
    found = replace(evaluation(), results=tuple(results), expected_rows=3)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(found))
    text = console.export_text()
    assert "judge failed on 1 rows" in text
    assert "SMALTI_JUDGE_MODEL and SMALTI_JUDGE_BASE_URL name" in text
    assert "odd failed on 1 rows, which are not in its value: ValueError: no" in text
    assert "mood: calm 2" in text
    assert [failure.kind for failure in failures(found)] == ["scorer", "scorer", "polite"]
    assert exit_code(found) == 4, "the judge never worked"
    some = replace(found, results=tuple(results[1:]))
    assert exit_code(some) == 0
    [gate] = check(some, [Gate("odd", "min", 0.5)])
    assert (gate.passed, gate.broken, exit_code(some, [gate])) == (False, True, 4)
