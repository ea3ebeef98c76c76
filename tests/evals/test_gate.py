from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from evals.data import Prediction, Row, RowResult
from evals.gate import EXIT, Criteria, Decision, gate, load_criteria, store, to_junit, to_markdown
from evals.journal import Evaluation, EvaluationError, find_journal, read_journal, score_all
from evals.report import GateError
from evals.stats import summarize


def run(
    texts: list[str | None], *, expected: int = 0, latency: float = 10.0, sha256: str = "ab", judged: dict | None = None
) -> Evaluation:
    results, _ = score_all(
        RowResult(
            Row(f"r{number}", "q", ("yes",), (f"{number // 2}.md",), line=number),
            Prediction(error="503")
            if text is None
            else Prediction(text, (f"{number // 2}.md",), latency_ms=latency + number % 7),
            judged=judged or {},
        )
        for number, text in enumerate(texts)
    )
    estimates = summarize(result.scores for result in results)
    return Evaluation("assistant", "rows.jsonl", sha256, expected or len(results), tuple(results), estimates, Path("j.jsonl"))


def of(decision: Decision, start: str) -> tuple[str, str]:
    [found] = [condition for condition in decision.conditions if condition.name.startswith(start)]
    return found.outcome, found.reason


GOOD: list[str | None] = ["yes"] * 360 + ["no"] * 40


def test_passed_failed_and_inconclusive() -> None:
    criteria = Criteria(margins={"contains": 0.05})
    assert gate(run(GOOD), run(GOOD), criteria).outcome == "passed"
    worse = gate(run(["no"] * 60 + GOOD[60:]), run(GOOD), criteria)
    assert (worse.outcome, EXIT[worse.outcome]) == ("failed", 1)
    few = gate(run(GOOD[-24:]), run(GOOD[-24:]), criteria)
    assert (few.outcome, EXIT[few.outcome]) == ("inconclusive", 3)
    needed = int(of(few, "contains")[1].rsplit("= ", 1)[1])
    assert "inconclusive, needs n = " in of(few, "contains")[1]
    assert 24 < needed < 1000


def test_what_is_missing_or_broken_is_told_apart_from_misses() -> None:
    criteria = Criteria(margins={"contains": 0.05}, min={"contains": 0.1})
    assert of(gate(run(GOOD, expected=401), run(GOOD), criteria), "candidate: every row") == ("broken", "400 of 401 rows")
    broken = gate(run([None, *GOOD[1:]]), run(GOOD), criteria)
    assert of(broken, "candidate: no infra") == ("broken", "1 rows without an answer, such as: 503")
    assert of(broken, "contains ≥") == ("broken", "1 of 400 rows had errors")
    assert (broken.outcome, EXIT[broken.outcome]) == ("broken", 4)
    suite = ElementTree.fromstring(to_junit(broken))
    assert (suite.get("failures"), suite.get("errors"), len(suite.findall("testcase/error"))) == ("0", "2", 2)
    assert of(gate(run(GOOD), run([None, *GOOD[1:]]), criteria), "baseline: no infra")[0] == "broken"
    scorer = run(GOOD, judged={"tone": {"error": "ZeroDivisionError"}})
    said = of(gate(scorer, run(GOOD), criteria), "candidate: no scorer")
    assert said == ("broken", "400 failures, such as tone: ZeroDivisionError")


def test_guardrails_of_latency_and_bounds() -> None:
    slow = gate(run(GOOD, latency=100), run(GOOD), Criteria(ratios={"latency_p95_ms": 1.5}))
    assert of(slow, "latency_p95_ms")[0] == "failed"
    assert gate(run(GOOD), run(GOOD), Criteria(ratios={"latency_p95_ms": 1.5})).outcome == "passed"
    assert of(gate(run(GOOD), run(GOOD), Criteria(ratios={"cost": 1.1})), "cost") == (
        "failed",
        "no row has what cost needs (n = 0)",
    )
    alone = gate(run(GOOD), None, Criteria(min={"contains": 0.95}, max={"latency_p95_ms": 50}))
    assert [of(alone, name)[0] for name in ("contains", "latency")] == ["failed", "passed"]
    better = gate(run(GOOD, latency=5), run(GOOD), Criteria(margins={"latency_ms": 1.0}))
    assert of(better, "latency_ms")[0] == "passed"


def test_a_decision_for_ci(tmp_path: Path) -> None:
    decision = gate(
        run(GOOD[-24:]), run(GOOD[-24:]), Criteria(margins={"contains": 0.05}, min={"hit@1": 0.5}, why="Because | so.")
    )
    suite = ElementTree.fromstring(to_junit(decision))
    assert (suite.get("tests"), suite.get("failures")) == (str(len(decision.conditions)), "1")
    [failure] = suite.findall("testcase/failure")
    assert failure.get("type") == "inconclusive"
    text = to_markdown(decision)
    assert "## Evaluation gate: inconclusive" in text
    assert "Because | so." in text
    journal = tmp_path / "run.jsonl"
    journal.write_text('{"type": "evaluation", "endpoint": "a", "dataset": "d", "sha256": "s", "rows": 0}\n')
    stored = read_journal(journal)
    store(Decision(stored, None, decision.criteria, decision.conditions))
    assert '"criteria": {"min": {"hit@1": 0.5}' in journal.read_text()
    assert read_journal(journal).rows == 0


def test_criteria_from_a_file(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "evals" / "datasets" / "smalti.gate.yaml"
    assert load_criteria(path).min["hit@5"] > 0.8
    for text, said in (
        ("[1]", "no mapping"),
        ("mins: {}", "mins"),
        ("min: {a: x}", "'min'"),
        ("a: [", "no YAML"),
        ("min: 3", "'min'"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(GateError, match=said):
            load_criteria(tmp_path / "c.yaml")
    with pytest.raises(GateError, match="cannot be read"):
        load_criteria(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("criteria", "said"),
    [
        (Criteria(), "nothing to hold"),
        (Criteria(margins={"nope": 0.1}), "no score of a row"),
        (Criteria(margins={"contains": 0}), "not above 0"),
        (Criteria(ratios={"contains": 2}), "choose from"),
        (Criteria(min={"nope": 1}), "unknown metric"),
    ],
)
def test_criteria_that_cannot_be_held(criteria: Criteria, said: str) -> None:
    if criteria == Criteria():
        with pytest.raises(GateError, match="need a baseline"):
            gate(run(GOOD), None, Criteria(margins={"contains": 0.1}))
    with pytest.raises(GateError, match=said):
        gate(run(GOOD), run(GOOD), criteria)
    with pytest.raises(EvaluationError, match="same file"):
        gate(run(GOOD), run(GOOD, sha256="x"), Criteria(margins={"contains": 0.1}))


def test_an_evaluation_is_found_by_path_run_or_as_the_latest(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no such evaluation"):
        find_journal(tmp_path, "latest")
    journal = tmp_path / "20260101-a.jsonl"
    journal.write_text('{"type": "evaluation"}\n{"type": "run", "run_id": "abc"}\n')
    assert {find_journal(tmp_path, name) for name in ("latest", "abc", "20260101-a", str(journal))} == {journal}
    with pytest.raises(EvaluationError, match="nowhere: no such evaluation"):
        find_journal(tmp_path, "nowhere")
    later = tmp_path / "20260102-101500-a.jsonl"
    later.write_text('{"type": "evaluation"}\n')
    os.utime(later, (0, 0))  # as when a gate was held against the earlier one since, and added its line there
    assert find_journal(tmp_path, "latest") == later
