"""Statistics of tests that are looked at while they run: valid at every look, whenever one stops.

- Asymptotic confidence sequences: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic
  confidence sequences", Annals of Statistics 2024, https://arxiv.org/abs/2103.06476 (Theorem 2.2, Appendix B.2).
- CUPED: Deng, Xu, Kohavi, Walker, "Improving the sensitivity of online controlled experiments by utilizing pre-experiment data",
  WSDM 2013.
- Sequential test of the sample ratio: Lindon, Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022,
  https://arxiv.org/abs/2011.03567.
- Shares of track-and-stop: Garivier, Kaufmann, "Optimal best arm identification with fixed confidence", COLT 2016,
  https://arxiv.org/abs/1602.04589.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

MIN_UNITS = 30
"""Units an arm needs before anything is said of it: the sequences hold asymptotically, not from the first value on."""
HORIZON = 2_000
"""Units at which the intervals are made to be narrowest; they are valid at any other number too."""


class Interval(NamedTuple):
    """An estimate and where it lies at every look at once; infinite while there are too few units."""

    estimate: float
    lower: float
    upper: float


class Sample(NamedTuple):
    """Units, mean and variance (with n - 1) of one arm."""

    n: int
    mean: float
    variance: float

    @classmethod
    def of(cls, values: np.ndarray) -> Sample:
        n = len(values)
        return cls(n, float(values.mean()) if n else math.nan, float(values.var(ddof=1)) if n > 1 else math.nan)


def radius(n: Any, variance: Any, alpha: float, horizon: int = HORIZON) -> Any:
    """Half the width of the two-sided asymptotic confidence sequence of a mean of `n` values; numbers or arrays.

    With probability 1 - `alpha`, asymptotically, the mean lies within it at all `n` at once.
    """
    import numpy as np

    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / horizon  # rho squared
    grown = n * rho + 1
    return np.sqrt(variance * 2 * grown / (n**2 * rho) * np.log(np.sqrt(grown) / alpha))


def mean(sample: Sample, alpha: float, horizon: int = HORIZON) -> Interval:
    """The mean of one arm."""
    if sample.n < MIN_UNITS:
        return Interval(sample.mean, -math.inf, math.inf)
    half = float(radius(sample.n, sample.variance, alpha, horizon))
    return Interval(sample.mean, sample.mean - half, sample.mean + half)


def difference(control: Sample, arm: Sample, alpha: float, horizon: int = HORIZON) -> Interval:
    """By how much the mean of `arm` exceeds that of `control`."""
    estimate = arm.mean - control.mean
    if min(control.n, arm.n) < MIN_UNITS:
        return Interval(estimate, -math.inf, math.inf)
    n = control.n + arm.n
    variance = n * (control.variance / control.n + arm.variance / arm.n)  # of one unit's part in the difference
    half = float(radius(n, variance, alpha, horizon))
    return Interval(estimate, estimate - half, estimate + half)


def adjusted(values: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """Values less what covariates known before the assignment explain of them (CUPED); the mean over all stays.

    Parameters
    ----------
    values: of all arms' units.
    covariates: a column each; one that says nothing (constant, or not finite) is left out.
    """
    import numpy as np

    if len(values) < MIN_UNITS:
        return values
    known = np.where(np.isfinite(covariates), covariates, np.nan)
    with np.errstate(all="ignore"):
        centre = np.array([column[np.isfinite(column)].mean() if np.isfinite(column).any() else 0.0 for column in known.T])
    x = np.nan_to_num(known - centre)
    x = x[:, x.std(axis=0) > 1e-12]
    if not x.shape[1]:
        return values
    theta, *_ = np.linalg.lstsq(x, values - values.mean(), rcond=None)
    return values - x @ theta + (x @ theta).mean()


def sample_ratio(observed: Sequence[int], shares: Sequence[float], concentration: float = 100.0) -> float:
    """A p-value, valid at every look, for units being dealt out by these shares.

    `concentration`: how near to the shares a wrong split is expected to be; any value is valid.
    """
    if any(share <= 0 < count for count, share in zip(observed, shares, strict=True)):
        return 0.0
    kept = [(count, share) for count, share in zip(observed, shares, strict=True) if share > 0]
    n = sum(count for count, _ in kept)
    if len(kept) < 2 or not n:
        return 1.0
    log_factor = math.lgamma(concentration) - math.lgamma(concentration + n)
    for count, share in kept:
        prior = concentration * share
        log_factor += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return min(1.0, math.exp(-log_factor)) if log_factor > 0 else 1.0


def best_shares(samples: Sequence[Sample], *, higher: bool, least: float = 0.1) -> list[float]:
    """The shares with which the best arm is known soonest, each at least `least` (or an even part, for many arms).

    Each arm's variance is taken for its noise; equal shares while an arm has too few units, or none of them varies.
    """
    from scipy.optimize import minimize

    count = len(samples)
    even = [1 / count] * count
    if any(sample.n < MIN_UNITS for sample in samples) or not any(sample.variance > 0 for sample in samples):
        return even
    means = [sample.mean if higher else -sample.mean for sample in samples]
    floor = min(least, 1 / count)
    spread = max(sample.variance for sample in samples)
    noise = [max(sample.variance, spread * 1e-6) / spread for sample in samples]
    best = max(range(count), key=means.__getitem__)
    scale = max((means[best] - each) ** 2 for each in means)
    gaps = [max((means[best] - each) ** 2 / scale, 1e-3) if scale else 1.0 for each in means]

    def slowest(shares: Any) -> list[float]:
        return [gaps[k] / (noise[best] / shares[best] + noise[k] / shares[k]) for k in range(count) if k != best]

    # the largest z under every arm's rate of evidence, in units of what even shares reach; shares and z are what is sought
    unit = min(slowest(even))
    found = minimize(
        lambda x: -x[-1],
        [*even, 1.0],
        bounds=[(floor, 1.0)] * count + [(0.0, None)],
        constraints=[
            {"type": "eq", "fun": lambda x: sum(x[:-1]) - 1},
            {"type": "ineq", "fun": lambda x: [each / unit - x[-1] for each in slowest(x[:-1])]},
        ],
        method="SLSQP",
    )
    return [float(each) for each in found.x[:-1]] if found.success else even
