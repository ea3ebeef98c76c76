"""The difference of two evaluations over the same items, with standard errors clustered by source document.

Rows of one cluster (`evals.data.Row.cluster`) stand or fall together, so the clusters, not the rows, are what is independent:
the mean of the differences is fitted by statsmodels' OLS with cluster-robust errors and Student's t of clusters - 1 degrees of
freedom (Cameron and Miller 2015; for language models Miller 2024, https://arxiv.org/abs/2411.00640). Differences of scores
between 0 and 1 get Agresti and Min's two pseudo-items (2005), without which "no change in ten rows" would be certain for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.95
POWER = 0.8
PSEUDO = 1 / math.sqrt(2)
"""Size of the two pseudo-differences (one up, one down): together they add 1 to the sum of squares and nothing to the sum."""


@dataclass(frozen=True, slots=True)
class Paired:
    """The mean of `after - before` over `n` items in `clusters` clusters.

    `low` to `high` is its two-sided 95 % interval, `lower` and `upper` are the one-sided 95 % bounds, `p` is two-sided;
    `error` is the standard error. None where the items at hand cannot give it (fewer than two clusters).
    """

    difference: float
    n: int
    clusters: int
    error: float | None = None
    low: float | None = None
    high: float | None = None
    lower: float | None = None
    upper: float | None = None
    p: float | None = None

    def needed(self, margin: float) -> int | None:
        """Items needed to rule out a loss of `margin` with a power of 80 % where nothing changed, with clusters like these."""
        from statsmodels.stats.power import TTestPower

        if not self.error or margin <= 0:
            return None
        # The spread of an item, as if items were independent and still gave this standard error.
        effect = margin / (self.error * math.sqrt(self.n))
        if effect > 3:  # a handful of items would do, and the solver has no root there
            return 3
        return math.ceil(float(TTestPower().solve_power(effect_size=effect, alpha=1 - LEVEL, power=POWER, alternative="larger")))

    def detectable(self) -> float | None:
        """The smallest difference that these items would show (two-sided, 5 %) with a power of 80 %: the MDE."""
        from statsmodels.stats.power import TTestPower

        if not self.error or self.clusters < 2:
            return None
        effect = TTestPower().solve_power(nobs=self.clusters, alpha=1 - LEVEL, power=POWER, alternative="two-sided")
        return float(effect) * self.error * math.sqrt(self.clusters)


def paired(
    before: Sequence[float], after: Sequence[float], clusters: Sequence[str] | None = None, *, bounded: bool = False
) -> Paired:
    """Compare the scores of the same items; `bounded` where they lie between 0 and 1. Raises ValueError without items."""
    import numpy as np

    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    n = len(differences)
    if not n:
        raise ValueError("there is no item that both have")
    mean = float(differences.mean())
    _, groups = np.unique(np.asarray(range(n) if clusters is None else clusters), return_inverse=True)
    count = int(groups.max()) + 1
    if count < 2:
        return Paired(mean, n, count)
    if bounded:
        differences = np.append(differences, [PSEUDO, -PSEUDO])
        groups = np.append(groups, [count, count + 1])
    elif np.ptp(differences) <= 1e-12 * max(1.0, abs(mean)):
        return Paired(mean, n, count, 0.0, mean, mean, mean, mean, float(mean == 0))
    return _fitted(differences, groups, mean, n, count)


def _fitted(differences: object, groups: object, mean: float, n: int, clusters: int) -> Paired:
    import numpy as np
    import statsmodels.api as sm
    from scipy.stats import t

    model = sm.OLS(differences, np.ones(len(differences)))  # pyright: ignore[reportArgumentType]
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True}, use_t=True)
    center, error = float(fit.params[0]), float(fit.bse[0])
    freedom = clusters - 1
    both, one = (float(t.ppf(q, freedom)) * error for q in (1 - (1 - LEVEL) / 2, LEVEL))
    p = 2 * float(t.sf(abs(center) / error, freedom)) if error else float(center == 0)
    return Paired(mean, n, clusters, error, center - both, center + both, center - one, center + one, p)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number by Holm's method; None stays None."""
    from statsmodels.stats.multitest import multipletests

    known = [value for value in values if value is not None]
    corrected: Any = multipletests(known, method="holm")[1] if known else ()
    adjusted: Iterator[Any] = iter(corrected)
    return [None if value is None else float(next(adjusted)) for value in values]


def quantile_ratio(before: Sequence[float], after: Sequence[float], quantile: float = 0.95) -> tuple[float, float, float]:
    """A quantile after over before, with the one-sided 95 % bounds of a bootstrap that keeps the pairs (basic, on logarithms)."""
    import numpy as np

    pairs = np.log(np.maximum(np.column_stack([before, after]).astype(float), 1e-9))
    at = np.quantile(pairs, quantile, axis=0)
    ratio = float(at[1] - at[0])
    draws = np.random.default_rng(0).integers(0, len(pairs), size=(1_000, len(pairs)))
    quantiles = np.quantile(pairs[draws], quantile, axis=1)
    low, high = np.quantile(quantiles[:, 1] - quantiles[:, 0], [1 - LEVEL, LEVEL])
    return tuple(float(np.exp(value)) for value in (ratio, 2 * ratio - high, 2 * ratio - low))  # pyright: ignore[reportReturnType]
