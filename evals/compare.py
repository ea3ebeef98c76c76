"""Two evaluations of one dataset, row by row: what changed, and whether that can be told from chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evals.journal import Evaluation, EvaluationError, read_journal
from evals.paired import Paired, holm, paired
from evals.scorers import described, metrics_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from evals.data import RowResult

MINIMUM = 10
"""Rows needed for a verdict: fewer are sure of themselves without reason."""
ALPHA = 0.05

Verdict = Literal["better", "worse", "no difference shown", "too few rows"]


@dataclass(frozen=True, slots=True)
class Difference:
    """`after - before` of a per-row score over the `n` rows where both have it, in `clusters` clusters, with its 95 % interval.

    `p` is adjusted for the number of scores compared (Holm); `detectable` is the smallest difference these rows would show.
    """

    score: str
    before: float | None
    after: float | None
    difference: float | None
    low: float | None
    high: float | None
    n: int
    verdict: Verdict
    clusters: int = 0
    p: float | None = None
    detectable: float | None = None


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
    rows are not the same in both); verdicts are at 5 % for all of them together (see `evals.paired`). Raises `EvaluationError`
    when the datasets differ or share no row.
    """
    old, new = (item if isinstance(item, Evaluation) else read_journal(item) for item in (before, after))
    if old.sha256 != new.sha256:
        raise EvaluationError(f"{old.dataset} and {new.dataset} differ (sha256); evaluate both on the same file")
    extra = {name for result in (*old.results, *new.results) for name in result.judged}
    keys = {
        metric.key: metric for metric in metrics_of(extra).values() if metric.key != "abstention_precision" and not metric.whole
    }
    for name in scores or ():
        if name not in keys:
            raise EvaluationError(f"{name!r} cannot be compared row by row; choose from {', '.join(keys)}")
    others = {result.row.id: result for result in new.results}
    pairs = [(result, other) for result in old.results if (other := others.get(result.row.id))]
    sound = [(a, b) for a, b in pairs if a.prediction.error is None and b.prediction.error is None]
    if not pairs:
        raise EvaluationError("the two evaluations share no row; run them again on the same file")
    if not sound:
        raise EvaluationError("the two evaluations share no row that both answered; run them again")
    found = {key: _paired(key, sound) for key in scores or keys}
    ps = holm([each.p if each and each.n >= MINIMUM else None for each, _ in found.values()])
    differences = [_difference(key, each, means, p) for (key, (each, means)), p in zip(found.items(), ps, strict=True)]
    everything = {result.row.id for result in (*old.results, *new.results)}
    return Comparison(old, new, tuple(differences), len(sound), len(everything) - len(sound))


Pair = tuple["RowResult", "RowResult"]


def both_scored(key: str, pairs: Sequence[Pair]) -> tuple[list[float], list[float], list[str]]:
    """The score before and after, and the cluster, of the rows where both have it."""
    found = [
        (x, y, a.row.cluster) for a, b in pairs if (x := a.scores.get(key)) is not None and (y := b.scores.get(key)) is not None
    ]
    return [x for x, _, _ in found], [y for _, y, _ in found], [cluster for _, _, cluster in found]


def _paired(key: str, pairs: Sequence[Pair]) -> tuple[Paired | None, tuple[float, float]]:
    before, after, clusters = both_scored(key, pairs)
    if not before:
        return None, (0.0, 0.0)
    n = len(before)
    bounded = described(key).bounded and all(0 <= value <= 1 for value in (*before, *after))
    return paired(before, after, clusters, bounded=bounded), (sum(before) / n, sum(after) / n)


def _difference(key: str, found: Paired | None, means: tuple[float, float], p: float | None) -> Difference:
    if found is None:
        return Difference(key, None, None, None, None, None, 0, "too few rows")
    verdict: Verdict = "no difference shown"
    if found.n < MINIMUM or found.clusters < 2:
        verdict = "too few rows"
    elif p is not None and p < ALPHA:
        verdict = "better" if (found.difference > 0) != lower_is_better(key) else "worse"
    return Difference(
        key, *means, found.difference, found.low, found.high, found.n, verdict, found.clusters, p, found.detectable()
    )  # fmt: skip


def lower_is_better(key: str) -> bool:
    return described(key).lower_is_better


def draw(comparison: Comparison) -> str:
    """The differences of scores from 0 to 1 with their intervals, as an SVG drawing."""
    from evals.plots import intervals

    shown = [item for item in comparison.differences if described(item.score).bounded and item.low is not None]
    return intervals([(item.score, item.difference or 0.0, item.low or 0.0, item.high or 0.0, item.verdict) for item in shown])


def render(comparison: Comparison) -> RenderableType:
    """The comparison for a rich console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("Score", box=None, pad_edge=False)
    for column in ("Before", "After", "Difference", "95 % interval", "n", "p (Holm)", "Would show"):
        table.add_column(column, justify="right")
    table.add_column("Verdict")
    styles = {"better": "green", "worse": "bold red"}
    for item in comparison.differences:
        if not item.n:
            continue
        numbers = ["–" if value is None else f"{value:.4g}" for value in (item.before, item.after)]
        numbers.append("–" if item.difference is None else f"{item.difference:+.4g}")
        numbers.append("" if item.low is None or item.high is None else f"{item.low:+.4g} – {item.high:+.4g}")
        more = ["–" if value is None else f"{value:.3g}" for value in (item.p, item.detectable)]
        table.add_row(item.score, *numbers, str(item.n), *more, Text(item.verdict, style=styles.get(item.verdict, "")))
    return Group(table, Text(comparison.sentence(), style="bold"))
