from __future__ import annotations

import numpy as np
import pytest

from evals.paired import holm, paired, quantile_ratio


def test_a_difference_is_that_of_the_pairs() -> None:
    noise = np.random.default_rng(3).random(50)
    found = paired(list(noise), list(noise + 0.1))
    assert (found.difference, found.low, found.high, found.error) == (
        pytest.approx(0.1),
        pytest.approx(0.1),
        pytest.approx(0.1),
        0,
    )
    with pytest.raises(ValueError, match="no item"):
        paired([], [])


def test_clusters_widen_the_interval_as_their_rows_agree() -> None:
    # 20 documents of 10 questions that all change alike are 20 observations, not 200.
    change = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    clusters = [str(number // 10) for number in range(200)]
    alone, together = paired(np.zeros(200), change), paired(np.zeros(200), change, clusters)
    assert alone.error is not None
    assert together.error is not None
    assert together.error == pytest.approx(alone.error * np.sqrt(10), rel=0.05)
    assert (alone.clusters, together.clusters) == (200, 20)


def test_no_change_in_few_rows_is_not_certainty() -> None:
    few, many = paired([1.0] * 10, [1.0] * 10, bounded=True), paired([1.0] * 1000, [1.0] * 1000, bounded=True)
    assert few.lower is not None
    assert many.lower is not None
    assert few.lower < -0.1
    assert many.lower > -0.005
    needed = few.needed(0.05)
    assert needed is not None
    assert 10 < needed < 1000
    assert paired([1.0], [0.0]).lower is None
    assert paired([1.0, 1.0], [0.0, 1.0], ["a", "a"]).lower is None  # one document says nothing about others


def test_more_rows_show_smaller_differences() -> None:
    rng = np.random.default_rng(1)
    detectable = [paired(np.zeros(n), rng.normal(size=n)).detectable() for n in (50, 5000)]
    assert detectable[0] is not None
    assert detectable[1] is not None
    assert detectable[1] == pytest.approx(detectable[0] / 10, rel=0.2)


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([None]) == [None]


def test_a_ratio_of_percentiles() -> None:
    before = np.random.default_rng(2).lognormal(size=500)
    ratio, low, high = quantile_ratio(before, before * 2)
    assert (ratio, low, high) == (pytest.approx(2), pytest.approx(2), pytest.approx(2))
    ratio, low, high = quantile_ratio(before, np.random.default_rng(4).lognormal(size=500))
    assert low < 1 < high


# What the numbers promise, shown by simulation. Seeds are fixed: these cannot fail by chance.


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, clusters, size, runs, covered = np.random.default_rng(11), 60, 4, 1_500, 0
    names = np.repeat(np.arange(clusters), size)
    for _ in range(runs):
        change = 0.3 + rng.normal(size=clusters)[names] + rng.normal(size=clusters * size)
        found = paired(np.zeros(len(change)), change, names)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.3 <= found.high
    assert 0.94 <= covered / runs <= 0.96


def test_an_injected_loss_is_caught_and_unchanged_code_passes() -> None:
    rng, n, runs, margin = np.random.default_rng(12), 1_000, 300, 0.05
    caught = blocked = 0
    for _ in range(runs):
        before = (rng.random(n) < 0.8).astype(float)
        # Answers that change from run to run: one in ten rows is drawn anew.
        again = np.where(rng.random(n) < 0.1, (rng.random(n) < 0.8).astype(float), before)
        worse = np.where((again == 1) & (rng.random(n) < 0.05 / 0.8), 0.0, again)
        same, loss = paired(before, again, bounded=True), paired(before, worse, bounded=True)
        assert same.lower is not None
        assert loss.lower is not None
        blocked += same.lower <= -margin
        caught += loss.lower <= -margin
    assert caught / runs >= 0.9
    assert blocked / runs <= 0.05
