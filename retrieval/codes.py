"""Vectors in 8 bits: a quarter of the memory to read, so that comparing a question with every row takes a millisecond.

What the codes find is compared anew with the vectors themselves, see `Snapshot.nearest`: the codes only choose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK = 8192
"""Rows quantised at once."""


@dataclass(frozen=True, slots=True)
class Codes:
    """One signed byte a dimension, one scale a row. The first `size` rows are meant; those behind may be a later state's."""

    size: int
    rows: np.ndarray
    scales: np.ndarray

    @classmethod
    def empty(cls, dimension: int) -> Codes:
        return cls(0, np.empty((0, dimension), np.int8), np.empty(0, np.float32))

    def extended(self, matrix: np.ndarray, size: int) -> Codes:
        """The codes of the first `size` rows of `matrix`, whose beginning these are of."""
        rows, scales = self.rows, self.scales
        if len(rows) < size:
            rows, scales = np.empty((len(matrix), matrix.shape[1]), np.int8), np.empty(len(matrix), np.float32)
            rows[: self.size], scales[: self.size] = self.rows[: self.size], self.scales[: self.size]
        for at in range(self.size, size, BLOCK):
            end = min(at + BLOCK, size)
            rows[at:end], scales[at:end] = _quantised(matrix[at:end])
        return Codes(size, rows, scales)

    def dots(self, vector: np.ndarray, slots: np.ndarray | None = None) -> np.ndarray:
        """About the dot product of `vector` with every row, or with some."""
        wanted, scale = _quantised(vector[None].astype(np.float32, copy=False))
        rows = self.rows[: self.size] if slots is None else self.rows[slots]
        scales = self.scales[: self.size] if slots is None else self.scales[slots]
        return dots(wanted, rows)[0] * (scales * scale[0])


def dots(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Dot products of the rows of one matrix with those of another, of the same numbers, in 32 bits.

    On the caller's thread alone: BLAS wakes a thread for each core over a few hundred rows, and where the cores are busy waits
    for them a hundred times as long as the work takes.
    """
    import simsimd

    if not (len(left) and len(right) and left.shape[1]):
        return np.zeros((len(left), len(right)), np.float32)
    return np.asarray(simsimd.cdist(left, right, "dot", out_dtype="float32"))


def _quantised(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = np.abs(block).max(axis=1) / 127 if block.shape[1] else np.zeros(len(block), np.float32)
    return np.rint(block / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8), scales.astype(np.float32)
