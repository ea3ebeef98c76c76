from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from evals.compare import compare_runs, render
from evals.data import Prediction, Row, RowResult
from evals.journal import Evaluation, EvaluationError, score_all
from evals.stats import summarize


def run(texts: list[str], *, sha256: str = "ab", latency: float = 10.0, first: int = 0) -> Evaluation:
    results, _ = score_all(
        RowResult(
            Row(f"r{number}", "q", ("yes",), ("a.md",), line=number, group=f"g{number}"),
            Prediction(text, ("a.md",), latency_ms=latency + number) if text else Prediction(error="down"),
        )
        for number, text in enumerate(texts, start=first)
    )
    estimates = summarize(result.scores for result in results)
    return Evaluation("assistant", "rows.jsonl", sha256, len(results), tuple(results), estimates, Path("j"))


def test_better_worse_and_not_shown() -> None:
    before, after = run(["no"] * 15 + ["yes"] * 15), run(["yes"] * 30, latency=20.0)
    found = compare_runs(before, after)
    verdicts = {item.score: item.verdict for item in found.differences}
    assert verdicts["contains"] == "better"
    assert verdicts["latency_ms"] == "worse"
    assert verdicts["hit@1"] == "no difference shown"
    assert verdicts["abstention_recall"] == "too few rows"
    contains = next(item for item in found.differences if item.score == "contains")
    assert (contains.before, contains.after, contains.difference, contains.n) == (0.5, 1.0, 0.5, 30)
    assert contains.low is not None
    assert 0.25 < contains.low < 0.5
    assert found.sentence().startswith("assistant is better in contains (+0.5)")
    assert "worse in latency_ms (+10)" in found.sentence()
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(found))
    console.file.close()
    assert "no difference shown" in console.export_text()


def test_few_rows_give_no_verdict() -> None:
    [difference] = compare_runs(run(["no"] * 5), run(["yes"] * 5), scores=["contains"]).differences
    assert (difference.difference, difference.verdict) == (1.0, "too few rows")


def test_rows_of_one_side_and_errors_are_left_out() -> None:
    found = compare_runs(run(["", *["yes"] * 19]), run(["yes"] * 20, first=5))
    assert (found.rows, found.left_out) == (15, 10)
    assert "10 rows left out" in found.sentence()


def test_what_cannot_be_compared() -> None:
    with pytest.raises(EvaluationError, match="evaluate both on the same file"):
        compare_runs(run(["yes"]), run(["yes"], sha256="cd"))
    with pytest.raises(EvaluationError, match="share no row"):
        compare_runs(run([""]), run(["yes"]))
    with pytest.raises(EvaluationError, match="'abstention_precision' cannot be compared"):
        compare_runs(run(["yes"]), run(["yes"]), scores=["abstention_precision"])
    with pytest.raises(EvaluationError, match="cannot be read"):
        compare_runs("nowhere.jsonl", run(["yes"]))
