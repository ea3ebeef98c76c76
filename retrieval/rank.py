"""The fused score of candidates."""

from __future__ import annotations

import numpy as np

WEIGHT = 0.6
"""Share of the similarity in the fused score; chosen on SciFact's train claims and WiCE (docs/benchmarks.md)."""


def convex(similar: np.ndarray, lexical: np.ndarray) -> np.ndarray:
    """Scores in [0, 1]: similarity between the candidates' least and greatest, BM25 over the greatest, combined.

    Bruch, Gai and Ingber 2023, https://doi.org/10.1145/3596512: better than reciprocal ranks, and one weight to choose.
    """
    low, high = float(similar.min()), float(similar.max())
    dense = (similar - low) / (high - low) if high > low else np.ones(len(similar))
    top = float(lexical.max())
    return WEIGHT * dense + (1 - WEIGHT) * (lexical / top if top > 0 else lexical)
