"""Values with 95 % confidence intervals, by scipy.

Shares of rows have a Wilson interval; means a bootstrap interval (BCa; percentile above 2,000 rows, where the two agree and BCa
costs n² work); percentiles of latency the exact distribution-free interval of order statistics. Bootstraps are seeded: the
same rows give the same interval. An end that the rows at hand cannot give (the upper one of a 95th percentile from 20 rows) is
None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evals.scorers import Metric, metrics_of

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95
RESAMPLES = 5_000
_BCA_UP_TO = 2_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric's value over `n` rows (None when n is 0) and its 95 % interval; `left_out` rows it did not apply to."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    left_out: int = 0

    def interval(self, number: Callable[[float], str]) -> str:
        """The interval in words; of a high percentile of few values one end may be unknown."""
        if self.low is not None and self.high is not None:
            return f"{number(self.low)} – {number(self.high)}"
        return f"from {number(self.low)}" if self.low is not None else f"to {number(self.high)}" if self.high is not None else ""


def summarize(scores: Iterable[Mapping[str, float | None]]) -> dict[str, Estimate]:
    """Every metric over the rows' scores, in the order of `METRICS`."""
    rows = list(scores)
    found: dict[str, Estimate] = {}
    for metric in metrics_of({key for row in rows for key in row}).values():
        values = [value for row in rows if (value := row.get(metric.key)) is not None]
        value, low, high = _estimate(metric, values)
        found[metric.name] = Estimate(value, low, high, len(values), len(rows) - len(values))
    return found


def _estimate(metric: Metric, values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    if not values:
        return None, None, None
    if metric.kind == "latency":
        return percentile(values, metric.quantile)
    if metric.kind == "share" or set(values) <= {0.0, 1.0}:
        return share(int(sum(values)), len(values))
    return mean(values)


def share(successes: int, n: int) -> tuple[float, float, float]:
    """A proportion with its Wilson score interval."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return successes / n, float(interval.low), float(interval.high)


def mean(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """A mean with its bootstrap interval; one value alone has none, equal values one of no width."""
    import numpy as np
    from scipy.stats import bootstrap

    data = np.asarray(values, dtype=float)
    value = float(data.mean())
    if len(data) < 2:
        return value, None, None
    if np.ptp(data) <= 1e-12 * max(1.0, abs(value)):
        return value, value, value
    low, high = _ends(
        bootstrap(
            (data,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, 5_000_000 // len(data)),  # bounds memory
            confidence_level=LEVEL,
            method="BCa" if len(data) <= _BCA_UP_TO else "percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    )
    return value, low, high


def percentile(values: Sequence[float], quantile: float) -> tuple[float, float | None, float | None]:
    """A percentile (`quantile` in 0..1, linear between ranks) with the exact interval of order statistics (Conover 1999, 3.2)."""
    import numpy as np
    from scipy.stats import quantile_test

    value = float(np.quantile(values, quantile))
    low, high = _ends(quantile_test(values, q=value, p=quantile).confidence_interval(LEVEL))  # pyright: ignore[reportArgumentType]
    return value, low, high


def _ends(interval: object) -> tuple[float | None, float | None]:
    def end(name: str) -> float | None:
        value: float | np.floating = getattr(interval, name)
        return float(value) if math.isfinite(value) else None

    return end("low"), end("high")
