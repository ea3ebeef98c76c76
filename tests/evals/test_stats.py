from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.stats import mean, percentile, share, summarize


def test_share_is_wilsons_interval_by_hand() -> None:
    k, n, z = 8, 10, 1.959964
    middle = (k / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    value, low, high = share(k, n)
    assert value == 0.8
    assert (low, high) == (pytest.approx(middle - half, abs=1e-6), pytest.approx(middle + half, abs=1e-6))


def test_a_perfect_share_of_few_rows_is_not_certain() -> None:
    _, low, high = share(5, 5)
    assert low == pytest.approx(0.5655, abs=1e-3)
    assert high == 1


def test_mean_agrees_with_the_normal_interval_where_that_holds() -> None:
    data = np.random.default_rng(1).normal(0.5, 0.1, 400)
    value, low, high = mean(list(data))
    half = 1.96 * data.std(ddof=1) / 20
    assert value == pytest.approx(data.mean())
    assert low == pytest.approx(value - half, abs=0.002)
    assert high == pytest.approx(value + half, abs=0.002)
    assert mean(list(data)) == (value, low, high)  # seeded


def test_means_of_one_value_and_of_equal_values() -> None:
    assert mean([0.4]) == (0.4, None, None)
    assert mean([0.25] * 30) == (0.25, 0.25, 0.25)


def test_many_rows_take_the_percentile_method_and_bounded_memory() -> None:
    data = np.random.default_rng(2).random(20_000)
    value, low, high = mean(list(data))
    assert low is not None
    assert high is not None
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(1 / 12 / 20_000), rel=0.1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1 / 3, 0.5, 1.0, 0.1 + 0.2, 0.3]), min_size=1, max_size=12))
def test_any_scores_have_an_interval_within_their_range(values: list[float]) -> None:
    value, low, high = mean(values)
    for end in (low, high):
        assert end is None or min(values) - 1e-9 <= end <= max(values) + 1e-9
    assert value == pytest.approx(sum(values) / len(values))


def test_percentiles_by_hand() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.5)[0] == 50.5
    # Order statistics 40 and 61 of 100 hold the median with 95 % (Conover, table A3).
    assert percentile(values, 0.5)[1:] == (40, 61)
    assert percentile(values, 0.95)[0] == pytest.approx(95.05)
    assert percentile([3.0, 1.0, 2.0], 0.95)[1:] == (None, None) or percentile([3.0, 1.0, 2.0], 0.95)[2] is None


def test_summary_counts_rows_left_out() -> None:
    found = summarize([{"hit@1": 1.0, "latency_ms": 4.0}, {"hit@1": None, "latency_ms": 6.0}])
    assert (found["hit@1"].n, found["hit@1"].left_out, found["hit@1"].value) == (1, 1, 1.0)
    assert (found["latency_p50_ms"].value, found["latency_p50_ms"].n) == (5.0, 2)
    assert (found["f1"].value, found["f1"].low, found["f1"].n) == (None, None, 0)
