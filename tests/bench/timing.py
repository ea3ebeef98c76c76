"""How the benchmarks time: one call after the other, and the percentiles of what they took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """The 50th, 95th and 99th percentile."""
    cuts = statistics.quantiles(milliseconds, n=100)
    return {name: round(cuts[at], 2) for name, at in (("p50_ms", 49), ("p95_ms", 94), ("p99_ms", 98))}


def timed(run: Callable[[Any], object], given: Sequence[Any], warm: int = 0) -> dict[str, float]:
    """Percentiles of `run` over what is given, and the processor's time of the median one, which a machine that others use does
    not spoil; the first `warm` are run once more, before."""
    for each in given[:warm]:
        run(each)
    took, worked = [], []
    for each in given:
        began, busy = time.perf_counter(), time.process_time()
        run(each)
        took.append((time.perf_counter() - began) * 1e3)
        worked.append((time.process_time() - busy) * 1e3)
    return percentiles(took) | {"cpu_p50_ms": round(statistics.median(worked), 2)}
