"""Gates: may the candidate replace the baseline? Passed, failed, inconclusive with the number of rows that would tell, or broken.

A candidate passes where it is shown to be no worse than the baseline by more than a margin: the one-sided 95 % lower bound of the
paired difference lies above -margin. Every condition must hold, so the chance to pass a candidate that is worse in one of them
stays below 5 % without a correction for their number (Berger 1982). Where the bound lies below but the difference does not, the
rows cannot tell, and that is no pass either. Where rows are missing or unanswered, or a scorer failed, the infrastructure is at
fault and nothing is known of the answers: the gate is broken.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from evals.compare import MINIMUM, both_scored, lower_is_better
from evals.journal import Evaluation, EvaluationError, append
from evals.paired import paired, quantile_ratio
from evals.report import BROKEN, GateError, check, parse_gate, scorer_error
from evals.scorers import described, metrics_of

Outcome = Literal["passed", "failed", "inconclusive", "broken"]
EXIT: dict[Outcome, int] = {"passed": 0, "failed": 1, "inconclusive": 3, "broken": BROKEN}
KEYS = ("min", "max", "margins", "ratios", "why")


@dataclass(frozen=True, slots=True)
class Criteria:
    """What is asked of a candidate.

    Parameters
    ----------
    min, max: bounds on metrics of the candidate alone (`{"hit@5": 0.9}`, `{"latency_p95_ms": 800}`).
    margins: how much of a score may be lost against the baseline (`{"contains": 0.05}`).
    ratios: how many times the baseline's `latency_p95_ms` or mean `cost` or `tokens` it may take (`{"latency_p95_ms": 1.5}`).
    why: reasons, for people.
    """

    min: Mapping[str, float] = field(default_factory=dict)
    max: Mapping[str, float] = field(default_factory=dict)
    margins: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition and what came of it; `reason` says it in words."""

    name: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The conditions' outcomes; the whole is broken where one is, fails where one does, and passes where all do."""

    candidate: Evaluation
    baseline: Evaluation | None
    criteria: Criteria
    conditions: tuple[Condition, ...]

    @property
    def outcome(self) -> Outcome:
        outcomes = {condition.outcome for condition in self.conditions}
        worst: tuple[Outcome, ...] = ("broken", "failed", "inconclusive", "passed")
        return next(outcome for outcome in worst if outcome in outcomes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "candidate": str(self.candidate.journal),
            "baseline": str(self.baseline.journal) if self.baseline else None,
            "criteria": asdict(self.criteria),
            "conditions": [asdict(condition) for condition in self.conditions],
        }


def load_criteria(path: Path) -> Criteria:
    """Criteria from a YAML or JSON file. Raises `GateError`."""
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise GateError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GateError(f"{path}: is no YAML ({str(error).splitlines()[0]}); mend it") from None
    if not isinstance(value, dict) or set(value) - set(KEYS):
        unknown = ", ".join(map(str, set(value) - set(KEYS))) if isinstance(value, dict) else "no mapping"
        raise GateError(f"{path}: {unknown}; write {', '.join(KEYS)}")
    for key in KEYS[:-1]:
        if not isinstance(value.get(key, {}), dict) or not all(
            isinstance(number, int | float) and not isinstance(number, bool) for number in value.get(key, {}).values()
        ):
            raise GateError(f"{path}, key {key!r}: write metrics and numbers, such as {{hit@5: 0.9}}")
    return Criteria(**value)


def gate(candidate: Evaluation, baseline: Evaluation | None, criteria: Criteria) -> Decision:
    """Hold a candidate against criteria. Raises `GateError` for criteria that cannot be held, `EvaluationError` for datasets
    that differ."""
    if not (criteria.min or criteria.max or criteria.margins or criteria.ratios):
        raise GateError("there is nothing to hold the evaluation against; give --min, --max, --margin, --ratio or --criteria")
    if (criteria.margins or criteria.ratios) and baseline is None:
        raise GateError("margins and ratios need a baseline; give one with --baseline")
    if baseline is not None and baseline.sha256 != candidate.sha256:
        raise EvaluationError(f"{baseline.dataset} and {candidate.dataset} differ (sha256); evaluate both on the same file")
    extra = sorted({name for result in candidate.results for name in result.judged})
    conditions = [*_whole("candidate", candidate), *(_whole("baseline", baseline) if baseline else ())]
    gates = [parse_gate(f"{name}={bound}", "min", extra) for name, bound in criteria.min.items()]
    gates += [parse_gate(f"{name}={bound}", "max", extra) for name, bound in criteria.max.items()]
    for result in check(candidate, gates):
        reason = result.reason or f"{result.value:.4g}"
        conditions.append(
            Condition(str(result.gate), "broken" if result.broken else "passed" if result.passed else "failed", reason)
        )
    if baseline is not None:
        known = {metric.key for metric in metrics_of(extra).values()}
        for name, margin in criteria.margins.items():
            if name not in known or name == "abstention_precision":
                raise GateError(f"margin for {name!r}: no score of a row; choose from {', '.join(sorted(known))}")
            if margin <= 0:
                raise GateError(f"margin for {name!r}: {margin:g} is not above 0")
            conditions.append(_margin(name, margin, baseline, candidate))
        conditions += [_ratio(name, ratio, baseline, candidate) for name, ratio in criteria.ratios.items()]
    return Decision(candidate, baseline, criteria, tuple(conditions))


def _whole(who: str, evaluation: Evaluation) -> list[Condition]:
    """Numbers that were not measured on the whole dataset pass nothing."""
    missing, errors = evaluation.expected_rows - evaluation.rows, len(evaluation.errors)
    failed = sum(evaluation.scorer_errors.values())
    first = next(iter(evaluation.scorer_errors), None)
    such = f", such as {first}: {scorer_error(evaluation, first)}" if first else ""
    rows = f"{evaluation.rows} of {evaluation.expected_rows} rows"
    return [
        Condition(f"{who}: every row is there", "broken" if missing else "passed", rows),
        Condition(
            f"{who}: no infrastructure errors",
            "broken" if errors else "passed",
            f"{errors} rows without an answer" + (f", such as: {evaluation.errors[0].prediction.error}" if errors else ""),
        ),
        Condition(f"{who}: no scorer failed", "broken" if failed else "passed", f"{failed} failures{such}"),
    ]


def _pairs(baseline: Evaluation, candidate: Evaluation) -> list[Any]:
    after = {result.row.id: result for result in candidate.results}
    return [(result, after[result.row.id]) for result in baseline.results if result.row.id in after]


def _margin(name: str, margin: float, baseline: Evaluation, candidate: Evaluation) -> Condition:
    title = f"{name} loses less than {margin:g}"
    before, after, clusters = both_scored(name, _pairs(baseline, candidate))
    if not before:
        return Condition(title, "failed", f"no row has what {name} needs (n = 0)")
    if lower_is_better(name):
        before, after = after, before  # a gain is a gain
    bounded = described(name).bounded and all(0 <= value <= 1 for value in (*before, *after))
    found = paired(before, after, clusters, bounded=bounded)
    said = f"{found.difference:+.4g}, n = {found.n} in {found.clusters} clusters"
    if found.lower is None or found.upper is None or found.n < MINIMUM:
        return Condition(title, "inconclusive", f"{said}: too few; give at least {MINIMUM} rows in several clusters")
    said = f"{said}, one-sided 95 % bounds {found.lower:+.4g} and {found.upper:+.4g}"
    if found.lower > -margin:
        return Condition(title, "passed", said)
    if found.difference <= -margin or found.upper < 0:
        return Condition(title, "failed", said)
    needed = found.needed(margin)
    return Condition(title, "inconclusive", f"{said}: inconclusive, needs n = {max(needed or 0, found.n + 1)}")


def _ratio(name: str, limit: float, baseline: Evaluation, candidate: Evaluation) -> Condition:
    title = f"{name} is at most {limit:g} times the baseline's"
    if name not in ("latency_p95_ms", "latency_p50_ms", "cost", "tokens"):
        raise GateError(f"ratio for {name!r}: choose from latency_p50_ms, latency_p95_ms, cost, tokens")
    key = described(name).key
    before, after, _ = both_scored(key, _pairs(baseline, candidate))
    if not before:
        return Condition(title, "failed", f"no row has what {name} needs (n = 0)")
    if described(name).kind == "latency":
        ratio, low, high = quantile_ratio(before, after, described(name).quantile)
        said = f"{ratio:.3g} times, one-sided 95 % bounds {low:.3g} and {high:.3g}, n = {len(before)}"
    else:
        ratio = sum(after) / sum(before) if sum(before) else (1.0 if not sum(after) else float("inf"))
        said = f"{ratio:.3g} times, n = {len(before)}"
    return Condition(title, "failed" if ratio > limit else "passed", said)


def store(decision: Decision) -> None:
    """Keep criteria and outcome with the run: as a line of the candidate's journal."""
    append(
        decision.candidate.journal,
        {"type": "gate", "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **decision.to_dict()},
    )


def to_markdown(decision: Decision) -> str:
    """The decision as Markdown, for a pull request."""
    marks = {"passed": "✅", "failed": "❌", "inconclusive": "❔", "broken": "💥"}
    lines = [f"## Evaluation gate: {decision.outcome}", "", "| | condition | found |", "|---|---|---|"]
    for condition in decision.conditions:
        cells = (condition.name, condition.reason)
        lines.append(f"| {marks[condition.outcome]} | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    against = f" against {decision.baseline.journal.name}" if decision.baseline else ""
    lines += ["", f"{decision.candidate.endpoint}, {decision.candidate.journal.name}{against}."]
    if decision.criteria.why:
        lines += ["", decision.criteria.why]
    return "\n".join(lines) + "\n"


def to_junit(decision: Decision) -> str:
    """The decision as JUnit XML: a test case for each condition; inconclusive is a failure of its own type, broken an error."""
    outcomes = [condition.outcome for condition in decision.conditions]
    failures, errors = outcomes.count("failed") + outcomes.count("inconclusive"), outcomes.count("broken")
    suite = ElementTree.Element(
        "testsuite",
        name=f"evaluation of {decision.candidate.endpoint}",
        tests=str(len(decision.conditions)),
        failures=str(failures),
        errors=str(errors),
        skipped="0",
    )
    for condition in decision.conditions:
        case = ElementTree.SubElement(suite, "testcase", classname=decision.candidate.endpoint, name=condition.name)
        if condition.outcome == "passed":
            ElementTree.SubElement(case, "system-out").text = condition.reason
        else:
            kind = "error" if condition.outcome == "broken" else "failure"
            ElementTree.SubElement(case, kind, type=condition.outcome, message=condition.reason)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
