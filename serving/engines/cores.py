"""How many threads a model may take of the processor."""

from __future__ import annotations

import os
from collections.abc import Mapping


def free_cores(environment: Mapping[str, str]) -> int | None:
    """Threads for the model: the cores that others leave, at least half of those it may use. None where `OMP_NUM_THREADS` says.

    More threads than free cores make each step wait for the one that has no core: slower by orders, not by a share.
    """
    if environment.get("OMP_NUM_THREADS"):
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = round(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    return max(cores - busy, (cores + 1) // 2)
