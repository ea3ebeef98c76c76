"""Two evaluations of one dataset, row by row: what changed, and whether that can be told from chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evals.journal import Evaluation, EvaluationError, read_journal
from evals.scorers import METRICS
from evals.stats import paired

if TYPE_CHECKING:
    from rich.console import RenderableType

MINIMUM = 10
"""Rows needed for a verdict: a bootstrap of fewer is sure of itself without reason."""

Verdict = Literal["better", "worse", "no difference shown", "too few rows"]


@dataclass(frozen=True, slots=True)
class Difference:
    """`after - before` of a per-row score over the `n` rows where both have it, with its paired 95 % bootstrap interval."""

    score: str
    before: float | None
    after: float | None
    difference: float | None
    low: float | None
    high: float | None
    n: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences by score; `left_out` rows that only one has or that failed in one."""

    before: Evaluation
    after: Evaluation
    differences: tuple[Difference, ...]
    rows: int
    left_out: int

    def sentence(self) -> str:
        """The outcome in words."""
        said: Mapping[str, list[str]] = {"better": [], "worse": []}
        for difference in self.differences:
            if difference.verdict in said:
                assert difference.difference is not None
                said[difference.verdict].append(f"{difference.score} ({difference.difference:+.3g})")
        parts = [f"{verdict} in {', '.join(names)}" for verdict, names in said.items() if names]
        tail = f" over {self.rows} rows" + (f"; {self.left_out} rows left out" if self.left_out else "")
        return f"{self.after.endpoint} is {' and '.join(parts) if parts else 'not shown to differ'}{tail}"


def compare_runs(
    before: Evaluation | str | Path, after: Evaluation | str | Path, *, scores: Sequence[str] | None = None
) -> Comparison:
    """Compare two evaluations, or their journals, paired by row id.

    `scores` are per-row scores (`hit@5`, `mrr`, `contains`, `f1`, `latency_ms` …; default all but `abstention_precision`, whose
    rows are not the same in both). Raises `EvaluationError` when the datasets differ or share no row.
    """
    old, new = (item if isinstance(item, Evaluation) else read_journal(item) for item in (before, after))
    if old.sha256 != new.sha256:
        raise EvaluationError(f"{old.dataset} and {new.dataset} differ (sha256); evaluate both on the same file")
    keys = dict.fromkeys(metric.key for metric in METRICS.values() if metric.key != "abstention_precision")
    for name in scores or ():
        if name not in keys:
            raise EvaluationError(f"{name!r} cannot be compared row by row; choose from {', '.join(keys)}")
    others = {result.row.id: result for result in new.results}
    pairs = [(result, other) for result in old.results if (other := others.get(result.row.id))]
    sound = [(a, b) for a, b in pairs if a.prediction.error is None and b.prediction.error is None]
    if not sound:
        raise EvaluationError("the two evaluations share no row that both answered; run them again")
    differences = []
    for key in scores or keys:
        values = [(a.scores[key], b.scores[key]) for a, b in sound]
        both = [(x, y) for x, y in values if x is not None and y is not None]
        differences.append(_difference(key, both))
    everything = {result.row.id for result in (*old.results, *new.results)}
    return Comparison(old, new, tuple(differences), len(sound), len(everything) - len(sound))


def _difference(key: str, values: Sequence[tuple[float, float]]) -> Difference:
    n = len(values)
    if not n:
        return Difference(key, None, None, None, None, None, 0, "too few rows")
    before, after = [x for x, _ in values], [y for _, y in values]
    difference, low, high = paired(before, after)
    verdict: Verdict = "no difference shown"
    if n < MINIMUM:
        verdict = "too few rows"
    elif low is not None and high is not None and (low > 0 or high < 0):
        verdict = "better" if (low > 0) != (key == "latency_ms") else "worse"
    return Difference(key, sum(before) / n, sum(after) / n, difference, low, high, n, verdict)


def render(comparison: Comparison) -> RenderableType:
    """The comparison for a rich console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("Score", box=None, pad_edge=False)
    for column in ("Before", "After", "Difference", "95 % interval", "n"):
        table.add_column(column, justify="right")
    table.add_column("Verdict")
    styles = {"better": "green", "worse": "bold red"}
    for item in comparison.differences:
        numbers = ["–" if value is None else f"{value:.4g}" for value in (item.before, item.after)]
        numbers.append("–" if item.difference is None else f"{item.difference:+.4g}")
        numbers.append("" if item.low is None or item.high is None else f"{item.low:+.4g} – {item.high:+.4g}")
        table.add_row(item.score, *numbers, str(item.n), Text(item.verdict, style=styles.get(item.verdict, "")))
    return Group(table, Text(comparison.sentence(), style="bold"))
