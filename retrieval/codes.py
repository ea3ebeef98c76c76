"""Vectors in 8 bits, and their signs: a quarter and a thirty-second of the memory to read to compare a question with every row.

What the signs find is compared by the codes, and what the codes find by the vectors, see `Snapshot.nearest`: both only choose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK = 8192
"""Rows quantised at once."""


@dataclass(frozen=True, slots=True)
class Codes:
    """One signed byte a dimension, one scale a row, one bit a dimension. The first `size` rows are meant; those behind may be a
    later state's."""

    size: int
    rows: np.ndarray
    scales: np.ndarray
    signs: np.ndarray

    @classmethod
    def empty(cls, dimension: int) -> Codes:
        return cls(0, np.empty((0, dimension), np.int8), np.empty(0, np.float32), np.empty((0, -(-dimension // 8)), np.uint8))

    def extended(self, matrix: np.ndarray, size: int) -> Codes:
        """The codes of the first `size` rows of `matrix`, whose beginning these are of."""
        rows, scales, signs = self.rows, self.scales, self.signs
        if len(rows) < size:
            rows, scales, signs = (np.empty((len(matrix), *each.shape[1:]), each.dtype) for each in (rows, scales, signs))
            rows[: self.size], scales[: self.size] = self.rows[: self.size], self.scales[: self.size]
            signs[: self.size] = self.signs[: self.size]
        for at in range(self.size, size, BLOCK):
            end = min(at + BLOCK, size)
            rows[at:end], scales[at:end] = _quantised(matrix[at:end])
            signs[at:end] = np.packbits(rows[at:end] > 0, axis=1)
        return Codes(size, rows, scales, signs)

    def dots(self, vector: np.ndarray, slots: np.ndarray | None = None) -> np.ndarray:
        """About the dot product of `vector` with every row, or with some."""
        wanted, scale = _quantised(vector[None].astype(np.float32, copy=False))
        rows = self.rows[: self.size] if slots is None else self.rows[slots]
        scales = self.scales[: self.size] if slots is None else self.scales[slots]
        return dots(wanted, rows)[0] * (scales * scale[0])

    def agreement(self, vector: np.ndarray) -> np.ndarray:
        """In how many dimensions `vector` and each row have the same sign."""
        import simsimd

        wanted = np.packbits(vector > 0)[None]
        apart = simsimd.cdist(wanted, self.signs[: self.size], metric="hamming", dtype="bin8", out_dtype="float32")
        alike = np.asarray(apart)[0]
        return np.subtract(len(vector), alike, out=alike)


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
