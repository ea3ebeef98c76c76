"""How many threads training should take, and what they are called by the libraries that read it once, at their start."""

from __future__ import annotations

import os

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def free() -> int:
    """Cores that nobody uses now, at least 1: threads that wait for a core make those that have one wait as well."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, min(cores, round(cores - busy)))


def environment(threads: int) -> dict[str, str]:
    """Variables for a process that is to use so many threads."""
    return dict.fromkeys((*VARIABLES, "RAYON_NUM_THREADS"), str(threads)) | {"TOKENIZERS_PARALLELISM": "true"}
