"""Simulations of the statistics of live experiments; each takes a second or two."""

from __future__ import annotations

import math

import numpy as np
import pytest

from governance.sequential import MIN_UNITS, Sample, adjusted, best_shares, difference, mean, radius, sample_ratio

LOOKS = np.arange(2 * MIN_UNITS, 2_001, 25)


def looks(rng: np.random.Generator, kind: str, runs: int, loss: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Difference and half width at every look of many runs of two arms with an even, random split."""
    shape = (runs, int(LOOKS[-1]))
    arm = rng.random(shape, np.float32) < 0.5
    if kind == "binary":
        values = (rng.random(shape, np.float32) < 0.2 + loss * arm).astype(np.float32)
    else:
        values = np.exp(0.8 * rng.standard_normal(shape, np.float32)) + loss * arm  # as latencies are
    starts = np.concatenate([[0], LOOKS[:-1]])

    def so_far(x: np.ndarray) -> np.ndarray:
        """Sums up to each look; what lies between two looks is added once."""
        return np.cumsum(np.add.reduceat(x, starts, axis=1, dtype=np.float32), axis=1, dtype=np.float64)

    squares, dealt = values * values, arm.astype(np.float32)
    everything = np.broadcast_to(LOOKS.astype(float), (runs, len(LOOKS))), so_far(values), so_far(squares)
    of_b = so_far(dealt), so_far(values * dealt), so_far(squares * dealt)
    sums = {}
    for side, (n, total, square) in (("b", of_b), ("a", tuple(x - y for x, y in zip(everything, of_b, strict=True)))):
        sums[side] = (n, total / n, (square - total**2 / n) / (n - 1))
    (n_b, mean_b, var_b), (n_a, mean_a, var_a) = sums["b"], sums["a"]
    n = n_a + n_b
    half = radius(n, n * (var_a / n_a + var_b / n_b), 0.05)
    told = np.minimum(n_a, n_b) >= MIN_UNITS
    return mean_b - mean_a, np.where(told, half, np.inf)


@pytest.mark.parametrize("kind", ["binary", "skewed"])
def test_equal_arms_are_seldom_told_apart_however_often_one_looks(kind: str) -> None:
    rng, stopped, naive = np.random.default_rng(1), 0, 0
    for _ in range(20):
        found, half = looks(rng, kind, 500)
        stopped += int((np.abs(found) > half).any(axis=1).sum())
        plain = half / np.sqrt(2 * (LOOKS * 3.8e-3 + 1) / (LOOKS * 3.8e-3) * np.log(np.sqrt(LOOKS * 3.8e-3 + 1) / 0.05)) * 1.96
        naive += int((np.abs(found) > plain).any(axis=1).sum())
    assert stopped <= 500, stopped  # 5 % of 10,000 runs with a look every 25 samples
    assert naive > 2_000  # what a t-test at every look does


def test_the_difference_lies_in_its_interval_at_all_looks_and_an_injected_loss_is_found() -> None:
    found, half = looks(np.random.default_rng(2), "binary", 1_000, loss=0.1)
    assert (np.abs(found - 0.1) <= half).all(axis=1).mean() >= 0.95
    assert (found - half > 0).any(axis=1).mean() >= 0.9
    assert (found + half < 0).any(axis=1).sum() == 0


def test_an_interval_is_that_of_the_paper_and_says_nothing_of_few_units() -> None:
    few = mean(Sample(MIN_UNITS - 1, 3.0, 1.0), 0.05)
    assert (few.estimate, few.lower, few.upper) == (3.0, -math.inf, math.inf)
    values = np.random.default_rng(3).normal(10, 2, 400)
    told = mean(Sample.of(values), 0.05)
    rho = (-2 * math.log(0.05) + math.log(1 - 2 * math.log(0.05))) / 2_000
    half = values.std(ddof=1) * math.sqrt(2 * (400 * rho + 1) / (400**2 * rho) * math.log(math.sqrt(400 * rho + 1) / 0.05))
    assert math.isclose(told.upper - told.estimate, half)
    flat = difference(Sample(50, 1.0, 0.0), Sample(50, 1.0, 0.0), 0.05)
    assert flat == (0.0, 0.0, 0.0)  # a metric without variance
    assert difference(Sample(0, math.nan, math.nan), Sample(50, 1.0, 0.0), 0.05).lower == -math.inf


def test_what_was_known_before_narrows_the_interval_and_leaves_the_difference() -> None:
    rng = np.random.default_rng(4)
    before = rng.normal(0, 1, 4_000)
    arm = rng.random(4_000) < 0.5
    values = 5 + 2 * before + 0.2 * arm + rng.normal(0, 0.5, 4_000)
    noise = np.full(4_000, np.nan)
    noise[::2] = 1.0  # a constant, where it is known at all
    better = adjusted(values, np.column_stack([before, noise]))
    assert math.isclose(better.mean(), values.mean())
    plain = difference(Sample.of(values[~arm]), Sample.of(values[arm]), 0.05)
    narrow = difference(Sample.of(better[~arm]), Sample.of(better[arm]), 0.05)
    assert narrow.upper - narrow.lower < (plain.upper - plain.lower) / 3
    assert narrow.lower < 0.2 < narrow.upper
    assert narrow.lower > 0
    assert (adjusted(values, np.full((4_000, 1), np.nan)) == values).all()


def test_a_split_that_is_not_as_dealt_is_found_and_a_fair_one_is_not_suspected() -> None:
    rng = np.random.default_rng(5)
    suspected = 0
    for _ in range(400):
        counts = np.cumsum(rng.random(2_000) < 0.3)
        suspected += any(
            sample_ratio([n - int(counts[n - 1]), int(counts[n - 1])], [0.7, 0.3]) < 0.01 for n in range(50, 2_001, 50)
        )
    assert suspected <= 8
    assert sample_ratio([5_000, 4_500], [0.5, 0.5]) < 1e-3
    assert sample_ratio([3, 1], [1.0, 0.0]) == 0.0
    assert sample_ratio([0, 0], [0.5, 0.5]) == 1.0


def test_shares_go_where_they_tell_the_best_arm_soonest() -> None:
    noisy = best_shares([Sample(100, 1.0, 9.0), Sample(100, 2.0, 1.0)], higher=True)
    assert math.isclose(noisy[0], 0.75, abs_tol=0.01)  # by the standard deviations
    three = best_shares([Sample(100, 1.0, 1.0), Sample(100, 0.95, 1.0), Sample(100, 0.2, 1.0)], higher=True)
    assert three[2] <= 0.11
    assert abs(three[0] - three[1]) < 0.1
    assert math.isclose(sum(three), 1.0)
    assert best_shares([Sample(5, 1.0, 1.0), Sample(100, 2.0, 1.0)], higher=False) == [0.5, 0.5]
