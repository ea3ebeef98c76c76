"""The fused score of candidates."""

from __future__ import annotations

import numpy as np

WEIGHT = 0.6
"""Share of the similarity in the fused score; chosen on SciFact's train claims and WiCE (docs/benchmarks.md)."""
REACH = 0.4
"""How much nearer than the hundredth row the nearest is, as a share of that one's distance, where similarity has its full weight;
chosen on the sets that docs/benchmarks.md names."""
AMONG = 100


def reach(similar: np.ndarray, *, distances: bool = False) -> float:
    """How much the similarities of the nearest rows, best first, tell: 1 where the nearest stands out, 0 where all are as near.

    A question of one rare word or of a code means little to an encoder: it is about as far from every row.

    Parameters
    ----------
    distances: they are 1 / (1 + d²) of distances d; else cosines, of which 1 less the cosine is half of d².
    """
    far = 1 / np.maximum(similar[:AMONG], 1e-30) - 1 if distances else 1 - similar[:AMONG]
    return min(1.0, (1 - float(far[0]) / float(far[-1])) / REACH) if len(far) and far[-1] > 0 else 0.0


def convex(similar: np.ndarray, lexical: np.ndarray, weight: float = WEIGHT) -> np.ndarray:
    """Scores in [0, 1]: similarity between the candidates' least and greatest, BM25 over the greatest, combined.

    Bruch, Gai and Ingber 2023, https://doi.org/10.1145/3596512: better than reciprocal ranks, and one weight to choose.
    """
    low, high = float(similar.min()), float(similar.max())
    dense = (similar - low) / (high - low) if high > low else np.ones(len(similar))
    top = float(lexical.max())
    return weight * dense + (1 - weight) * (lexical / top if top > 0 else lexical)
