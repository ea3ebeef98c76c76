"""Drift: whether a window of live traffic is distributed as a reference window was, of numbers and of what was asked.

Numbers are compared by the two-sample Kolmogorov-Smirnov test, embeddings by the energy distance under permutations (Székely,
Rizzo 2013). p-values are corrected for the number of series (Holm). Windows do not overlap, so that each look is a test of its
own: with `alpha` 0.01 one window in a hundred of unchanged traffic is an alert.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MINIMUM = 30
"""Values on both sides under which nothing is said of a series."""
PERMUTATIONS = 1999


def compare(
    reference: Mapping[str, Sequence[float | None]],
    window: Mapping[str, Sequence[float | None]],
    *,
    vectors: tuple[Any, Any] | None = None,
    alpha: float = 0.01,
) -> list[dict[str, Any]]:
    """Each series with `n`, `mean` of both sides, its corrected `p_value` and whether it `drifted`.

    Parameters
    ----------
    reference, window: values by series; None and what is no number is left out. vectors: embeddings of both sides, as rows.
    alpha: chance that one of the series is called drifted where none is.
    """
    found: list[dict[str, Any]] = []
    for name in reference:
        before, after = _finite(reference[name]), _finite(window.get(name, ()))
        if min(len(before), len(after)) < MINIMUM:
            continue
        found.append({
            "name": name, "reference": {"n": len(before), "mean": math.fsum(before) / len(before)},
            "window": {"n": len(after), "mean": math.fsum(after) / len(after)}, "p_value": _smirnov(before, after),
        })  # fmt: skip
    if vectors is not None and min(len(vectors[0]), len(vectors[1])) >= MINIMUM:
        sides = {"reference": {"n": len(vectors[0]), "mean": None}, "window": {"n": len(vectors[1]), "mean": None}}
        found.append({"name": "inputs", **sides, "p_value": energy(*vectors)})
    # Holm's steps, not statsmodels': that collects garbage at each call, and every thread of a server waits meanwhile.
    corrected = 0.0
    for place, series in enumerate(sorted(found, key=lambda each: each["p_value"])):
        corrected = max(corrected, min(1.0, (len(found) - place) * series["p_value"]))
        series |= {"p_value": corrected, "drifted": corrected < alpha}
    return found


def energy(before: Any, after: Any, *, seed: int = 0) -> float:
    """The p-value of the energy distance between two samples of vectors, by permutations."""
    import numpy as np
    from scipy.spatial.distance import cdist

    both = np.concatenate([before, after]).astype(np.float64)
    distances, n = cdist(both, both), len(before)
    draw = np.random.default_rng(seed)
    weights = np.empty((PERMUTATIONS + 1, len(both)))
    sides = np.concatenate([np.full(n, 1 / n), np.full(len(after), -1 / len(after))])
    weights[0] = sides
    for row in range(1, PERMUTATIONS + 1):
        weights[row] = draw.permutation(sides)
    statistics = -np.einsum("ij,ij->i", weights @ distances, weights)  # 2 E|X-Y| - E|X-X'| - E|Y-Y'|
    return float((statistics >= statistics[0] - 1e-12).mean())


def _smirnov(before: Sequence[float], after: Sequence[float]) -> float:
    if len({*before, *after}) == 1:
        return 1.0  # neither side varies, and they are the same
    from scipy.stats import ks_2samp

    return float(ks_2samp(before, after, method="asymp").pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def _finite(values: Sequence[float | None]) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]
