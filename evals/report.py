"""What an evaluation found: a table for people, an object for programs, gates for exit codes."""

from __future__ import annotations

import difflib
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from evals.journal import Evaluation
from evals.judged import numeric
from evals.judges import BASE_URL, MODEL
from evals.scorers import described, metrics_of
from evals.stats import Estimate

if TYPE_CHECKING:
    from rich.console import RenderableType

    from evals.data import RowResult


BROKEN = 4
"""Exit status where infrastructure, not the answers, is at fault: rows are missing or unanswered, or a scorer failed."""


class GateError(ValueError):
    """A gate that cannot be understood; one line that says what to write instead."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A bound on a metric: at least (`min`) or at most (`max`) `bound`."""

    metric: str
    kind: Literal["min", "max"]
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {'≥' if self.kind == 'min' else '≤'} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate, the metric's value, and whether it passed; `reason` says in words why it failed ("" when it passed).

    `broken`: the metric was not measured on every row, so that nothing is known of the answers."""

    gate: Gate
    value: float | None
    passed: bool
    reason: str = ""
    broken: bool = False


def parse_gate(text: str, kind: Literal["min", "max"] = "min", scorers: Sequence[str] = ()) -> Gate:
    """A gate from `METRIC=VALUE`, as given to `--min` (`hit@5=0.9`) or `--max` (`latency_p95_ms=800`). Raises `GateError`.

    `scorers` are the names of further scorers, which may be held to any number from either side.
    """
    name, equals, raw = (part.strip() for part in text.partition("="))
    example = "hit@5=0.9" if kind == "min" else "latency_p95_ms=800"
    if not equals or not name or not raw:
        raise GateError(f"--{kind} {text!r}: write METRIC=VALUE, such as {example}")
    known = metrics_of(scorers)
    metric = known.get(name) or known.get(name.lower())
    if metric is None:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise GateError(f"--{kind} {text!r}: unknown metric {name!r}; {hint}known are {', '.join(known)}")
    try:
        bound = float(raw)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise GateError(f"--{kind} {text!r}: {raw!r} is not a number; write METRIC=VALUE, such as {example}")
    if metric.name in scorers:
        return Gate(metric.name, kind, bound)
    if metric.lower_is_better and kind == "min":
        raise GateError(f"--min {text!r}: {metric.name} is better when lower; use --max {metric.name}={raw}")
    if not metric.lower_is_better and kind == "max":
        raise GateError(f"--max {text!r}: {metric.name} is better when higher; use --min {metric.name}={raw}")
    if not metric.lower_is_better and not 0 <= bound <= 1:
        hint = f"; did you mean {metric.name}={bound / 100:g}?" if 1 < bound <= 100 else ""
        raise GateError(f"--min {text!r}: {metric.name} lies between 0 and 1{hint}")
    if metric.lower_is_better and bound <= 0:
        raise GateError(f"--max {text!r}: {metric.name} is an amount above 0")
    return Gate(metric.name, kind, bound)


def check(evaluation: Evaluation, gates: Sequence[Gate]) -> list[GateResult]:
    """Hold an evaluation against its gates. Missing rows, rows with errors and metrics without rows fail every gate they touch:
    a number that was not measured on the whole dataset passes nothing."""
    missing, errors = evaluation.expected_rows - evaluation.rows, len(evaluation.errors)
    results: list[GateResult] = []
    for gate in gates:
        estimate = evaluation.estimates.get(gate.metric, Estimate(None, None, None, 0))
        reasons = []
        if failed := evaluation.scorer_errors.get(gate.metric):
            reasons.append(f"the scorer failed on {failed} of {evaluation.rows} rows")
        if missing:
            reasons.append(f"{missing} of {evaluation.expected_rows} rows are missing")
        if errors:
            reasons.append(f"{errors} of {evaluation.rows} rows had errors")
        broken = bool(reasons)
        if estimate.value is None:
            reasons.append(f"no row has what {gate.metric} needs (n = 0)")
        elif estimate.value < gate.bound if gate.kind == "min" else estimate.value > gate.bound:
            side = "below" if gate.kind == "min" else "above"
            reasons.append(f"{_number(gate.metric, estimate.value)} is {side} {gate.bound:g}")
        results.append(GateResult(gate, estimate.value, not reasons, "; ".join(reasons), broken))
    return results


def exit_code(evaluation: Evaluation, gates: Sequence[GateResult] = ()) -> int:
    """0; 1 when a gate failed; `BROKEN` when one was not measured on every row, no row was answered, or a scorer never worked."""
    judged = Counter(name for result in evaluation.results for name in result.judged)
    useless = any(count == judged[name] for name, count in evaluation.scorer_errors.items())
    if useless or len(evaluation.errors) == evaluation.rows:
        return BROKEN
    failed = [result for result in gates if not result.passed]
    return BROKEN if any(result.broken for result in failed) else int(bool(failed))


def to_json(evaluation: Evaluation, gates: Sequence[GateResult] = ()) -> dict[str, Any]:
    """The evaluation as a JSON object; every metric is also reachable flat, as `["hit@5"]`. What was not measured is null."""
    return {
        "endpoint": evaluation.endpoint,
        "dataset": evaluation.dataset,
        "sha256": evaluation.sha256,
        "rows": evaluation.rows,
        "expected_rows": evaluation.expected_rows,
        "errors": len(evaluation.errors),
        "scorer_errors": evaluation.scorer_errors,
        "metrics": evaluation.metrics,
        "intervals": {name: [estimate.low, estimate.high] for name, estimate in evaluation.estimates.items()},
        "n": {name: estimate.n for name, estimate in evaluation.estimates.items()},
        "run_id": evaluation.run_id,
        "experiment_id": evaluation.experiment_id,
        "link": evaluation.link,
        "journal": str(evaluation.journal),
        "gates": [
            {**asdict(r.gate), "value": r.value, "passed": r.passed, "reason": r.reason, "broken": r.broken} for r in gates
        ],
        "passed": exit_code(evaluation, gates) == 0,
        **evaluation.metrics,
    }


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that went wrong, in words: `kind` is error, scorer, invented, refused, source, facts, another expectation's metric or
    the name of a further scorer that said no."""

    kind: str
    id: str
    question: str
    expected: str
    got: str


_ALWAYS = ("hit@5", "contains", "abstention_recall")
"""Metrics that are shown even where no row has what they need, so that their lack is seen."""
_WRONG = ("exact_match", "pattern", "json_schema", "tool_calls", "route", "accuracy")
_KINDS = ("error", "scorer", "invented", "refused", "source", "facts", *_WRONG)


_EXPECTED = {
    "exact_match": "expected_answer", "pattern": "expected_pattern", "json_schema": "expected_schema",
    "tool_calls": "expected_tools", "route": "expected_route",
}  # fmt: skip


def failures(evaluation: Evaluation, limit: int | None = 10) -> list[Failure]:
    """The worst rows first: errors, scorers that failed, then answers to unanswerable questions, refusals of answerable ones,
    sources that were not retrieved, facts missing from the answer (fewest facts first), whatever else was expected, and what
    further scorers said no to."""
    found = [(failure, result) for result in evaluation.results if (failure := failure_of(result))]

    def rank(pair: tuple[Failure, RowResult]) -> tuple[float, ...]:
        kind, scores = pair[0].kind, pair[1].scores
        place = _KINDS.index(kind) if kind in _KINDS else len(_KINDS)
        return (place, *(scores.get(key) or 0.0 for key in ("fact_recall", "f1")))

    return [failure for failure, _ in sorted(found, key=rank)[:limit]]


def failure_of(result: RowResult) -> Failure | None:
    """What went wrong with a row, None where nothing did."""
    row, prediction, scores = result.row, result.prediction, result.scores
    facts, sources = " · ".join(row.expected_facts), ", ".join(row.expected_sources)

    def failure(kind: str, expected: str, got: str) -> Failure:
        return Failure(kind, row.id, row.question, expected, got)

    if prediction.error is not None:
        return failure("error", facts or sources or "an answer", prediction.error)
    for name, said in result.judged.items():
        if said.get("error"):
            return failure("scorer", f"{name} says something", str(said["error"]))
    if row.unanswerable and not prediction.abstained:
        return failure("invented", "to abstain", prediction.text)
    if prediction.abstained and not row.unanswerable and scores.get("abstention_accuracy") is not None:
        return failure("refused", facts or sources or "an answer", prediction.text)
    if scores.get("mrr") == 0:
        return failure("source", sources, ", ".join(prediction.sources) or "no sources")
    if scores.get("contains") == 0:
        return failure("facts", facts, prediction.text)
    for key in _WRONG:
        if scores.get(key) == 0:
            wanted = row.target if key == "accuracy" else getattr(row, _EXPECTED[key])
            got = {"tool_calls": ", ".join(prediction.tools or ()), "route": prediction.route}.get(key, prediction.text)
            return failure(key, ", ".join(wanted) if isinstance(wanted, tuple) else str(wanted), got)
    for name, said in result.judged.items():
        if isinstance(said.get("value"), str | bool) and numeric(said) == 0:
            return failure(name, "yes", str(said.get("rationale") or said["value"]))
    return None


def scorer_error(evaluation: Evaluation, name: str) -> str:
    """What a further scorer failed with first, in one line; for a judge without an endpoint, also how to give it one."""
    said = next(result.judged[name] for result in evaluation.results if result.judged.get(name, {}).get("error"))
    problem = _short(str(said["error"]), 300)
    keyless = "api_key" in problem.lower().replace(" ", "_") and MODEL not in os.environ
    return f"{problem}; LLM judges ask the endpoint that {MODEL} and {BASE_URL} name" if keyless else problem


def words_said(evaluation: Evaluation) -> dict[str, dict[str, int]]:
    """Of further scorers that say words other than yes and no: how often each was said, by their names."""
    found: dict[str, Counter[str]] = {}
    for result in evaluation.results:
        for name, said in result.judged.items():
            if isinstance(said.get("value"), str) and numeric(said) is None:
                found.setdefault(name, Counter())[said["value"]] += 1
    return {name: dict(counts.most_common(10)) for name, counts in sorted(found.items())}


def render(evaluation: Evaluation, gates: Sequence[GateResult] = (), *, limit: int = 10, metrics: bool = True) -> RenderableType:
    """The evaluation for a rich console: metrics with intervals, gates, the worst `limit` rows, where to look further."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = f"{evaluation.endpoint} on {evaluation.dataset}: {evaluation.rows} of {evaluation.expected_rows} rows"
    parts: list[RenderableType] = [Text(head, style="bold")]
    if evaluation.errors:
        parts.append(Text(f"{len(evaluation.errors)} rows had errors and are in no metric", style="red"))
    for name, count in evaluation.scorer_errors.items():
        parts.append(
            Text(f"{name} failed on {count} rows, which are not in its value: {scorer_error(evaluation, name)}", style="red")
        )

    classical = all(result.row.inputs is not None for result in evaluation.results)
    table = Table("Metric", box=None, pad_edge=False)
    for column in ("Value", "95 % interval", "n"):
        table.add_column(column, justify="right")
    table.add_column("What it says", style="dim")
    for name, estimate in evaluation.estimates.items():
        if not estimate.n and (name not in _ALWAYS or classical):
            continue
        words = described(name).words if estimate.n else "no row has what it needs"
        ends = estimate.interval(lambda value, name=name: _number(name, value))
        table.add_row(name, _number(name, estimate.value), ends, str(estimate.n), words)
    if metrics:
        parts.append(table)
    for name, counts in words_said(evaluation).items():
        parts.append(Text(f"{name}: " + ", ".join(f"{_short(said, 40)} {count}" for said, count in counts.items())))

    for result in gates:
        mark = Text("passed " if result.passed else "failed ", style="green" if result.passed else "bold red")
        parts.append(mark + Text(f"{result.gate}" + (f": {result.reason}" if result.reason else ""), style="default"))

    worst, total = failures(evaluation, limit), len(failures(evaluation, None))
    if worst:
        title = f"The worst {len(worst)} of {total} rows that went wrong"
        rows = Table("", "Question", "Expected", "Got", title=title, title_justify="left")
        for failure in worst:
            rows.add_row(*(Text(_short(text)) for text in (failure.kind, failure.question, failure.expected, failure.got)))
        parts.append(rows)
    run = evaluation.link or (evaluation.run_id and f"run {evaluation.run_id}, experiment {evaluation.experiment_id}")
    parts.append(Text((f"MLflow: {run}\n" if run else "") + f"All rows: {evaluation.journal}", style="dim"))
    return Group(*parts)


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.1f}" if described(metric).kind == "latency" else f"{value:.3f}"


def _short(text: str, length: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
