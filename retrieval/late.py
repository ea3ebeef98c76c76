"""Late interaction: each word piece of a question compared with all of a passage's, its best match counting by its rarity.

Khattab and Zaharia 2020, https://doi.org/10.1145/3397271.3401075, with the encoder's own states in the place of trained ones. A
passage's pieces are kept as the signs of their states, 48 bytes each, which lost nothing that could be measured
(docs/benchmarks.md); words that say nothing are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.codes import products

VERSION = "1"
"""Raised when the same text may now give other pieces."""
DEPTH = 50
"""Rows that are compared piece by piece."""
SHARE = 0.4
"""Share of it in the score of these rows; chosen on SciFact's train claims and WiCE."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it is searched: its vector; for each word piece a unit vector, and the characters it stands for."""

    vector: np.ndarray
    pieces: np.ndarray
    spans: tuple[tuple[int, int], ...]


def packed(states: np.ndarray) -> bytes:
    """The signs of word pieces' states, as they are stored."""
    return np.packbits(states > 0, axis=1).tobytes()


def scores(asked: Asked, weights: np.ndarray, stored: Sequence[bytes]) -> np.ndarray:
    """How well each passage holds what the question's pieces mean: the weighted mean of their best matches' cosines, about."""
    dimension = asked.pieces.shape[1]
    found = np.full(len(stored), -1.0, np.float32)
    counts = np.array([len(pieces) * 8 // dimension for pieces in stored])
    if not counts.any() or not len(asked.pieces):
        return found
    if not weights.sum() > 0:
        weights = np.ones(len(weights))
    meant = weights > 0
    bits = np.frombuffer(b"".join(stored), np.uint8).reshape(-1, dimension // 8)
    scale = np.abs(asked.pieces).max() / 127
    wanted = np.rint(asked.pieces[meant] / scale).astype(np.int8)
    filled = np.flatnonzero(counts)
    starts = np.concatenate(([0], np.cumsum(counts[filled])[:-1]))
    most = np.maximum.reduceat(products(bits, wanted), starts, axis=0)
    # A bit is 0 or 1 and stands for -1 or 1.
    cosines = (2 * most - wanted.sum(axis=1, dtype=np.int32)) * np.float32(scale / np.sqrt(dimension))
    found[filled] = cosines @ (weights[meant] / weights.sum())
    return found
