"""Vectors in 8 bits, and their signs: a quarter and a thirty-second of the memory to read to compare a question with every row.

What the signs find is compared by the codes, and what the codes find by the vectors, see `Snapshot.nearest`: both only choose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

BLOCK = 8192
"""Rows quantised at once."""
SAMPLE = 16_384
"""Rows that tell how alike the most alike are."""
SIGNED, SHORT = 32_768, 14
"""Rows from which the signs of their vectors may choose whose codes are compared, and how many they choose: this many times the
root of the number of rows. Of 10,000 to 50,000 sentences they held 99.8 to 100 % of the ten nearest, 97 to 99 of the hundred."""
UNPACKED = 1280
"""Rows of bits unpacked at once: they stay in the processor's cache."""
TRIES, GROWN = 32, 1.5
"""Rows whose ten nearest the signs must find, and the growth after which that is tried again."""


@dataclass(frozen=True, slots=True)
class Codes:
    """One signed byte a dimension, one scale a row, one bit a dimension. The first `size` rows are meant; those behind may be a
    later state's."""

    size: int
    rows: np.ndarray
    scales: np.ndarray
    signs: np.ndarray
    tried: int = 0
    """Of how many rows it was seen whether their signs are `telling`."""
    telling: bool = False
    """Whether the rows most alike in signs hold the nearest: not so where vectors lie on one side of the origin."""

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
        made = Codes(size, rows, scales, signs, self.tried, self.telling)
        tried = size < max(SIGNED, GROWN * self.tried)
        return made if tried else replace(made, tried=size, telling=made._tell())

    @property
    def chosen(self) -> int:
        """How many rows the signs choose."""
        return SHORT * math.isqrt(self.size)

    def _tell(self) -> bool:
        held = 0
        for slot in range(0, self.size, -(-self.size // TRIES)):
            vector = self.rows[slot].astype(np.float32)
            near = np.argpartition(self.dots(vector), self.size - 10)[self.size - 10 :]
            held += np.isin(near, self.alike(vector, self.chosen)).sum()
        return bool(held >= 0.98 * 10 * TRIES)

    def dots(self, vector: np.ndarray, slots: np.ndarray | None = None) -> np.ndarray:
        """About the dot product of `vector` with every row, or with some."""
        wanted, scale = _quantised(vector[None].astype(np.float32, copy=False))
        rows = self.rows[: self.size] if slots is None else self.rows.take(slots, axis=0)
        scales = self.scales[: self.size] if slots is None else self.scales[slots]
        return dots(wanted, rows)[0] * (scales * scale[0])

    def alike(self, vector: np.ndarray, count: int, slots: np.ndarray | None = None) -> np.ndarray:
        """Slots of about `count` rows, of all or of some, that have the signs of `vector` in the most dimensions."""
        import simsimd

        wanted = np.packbits(vector > 0)[None]
        apart = np.asarray(simsimd.cdist(wanted, self.signs[: self.size], metric="hamming", dtype="bin8"))[0]
        apart = apart if slots is None else apart[slots]
        # In how many dimensions that many differ at most is seen in a part of the rows.
        part = apart[:: max(1, len(apart) // SAMPLE)]
        within = np.cumsum(np.bincount(part.astype(np.intp), minlength=1))
        found = np.flatnonzero(apart < within.searchsorted(count * len(part) / len(apart), "right"))
        if not count // 2 <= len(found) <= 2 * count:  # many rows are the same, or lie in an order
            found = np.sort(np.argpartition(apart, min(count, len(apart) - 1))[:count])
        return found.astype(np.int32) if slots is None else slots[found]


def dots(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Dot products of the rows of one matrix with those of another, of the same numbers, in 32 bits.

    On the caller's thread alone: BLAS wakes a thread for each core over a few hundred rows, and where the cores are busy waits
    for them a hundred times as long as the work takes.
    """
    import simsimd

    if not (len(left) and len(right) and left.shape[1]):
        return np.zeros((len(left), len(right)), np.float32)
    return np.asarray(simsimd.cdist(left, right, "dot", out_dtype="float32"))


def products(packed: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Dot products of rows of bits, packed in bytes (uint8), with rows of signed bytes, exact, in 32 bits; on the caller's thread
    alone.

    For thousands of rows with a handful: multiplied as matrices they take a quarter of the time of their dot products.
    """
    run, right = _product().run, np.ascontiguousarray(wanted.T)
    parts = (np.unpackbits(packed[at : at + UNPACKED], axis=1) for at in range(0, len(packed), UNPACKED))
    return np.concatenate([np.asarray(run(None, {"a": bits, "b": right})[0]) for bits in parts])


PRODUCT = bytes.fromhex(
    "08083a680a180a01610a0162120179220d4d61744d756c496e7465676572120770726f647563745a150a016112100a0e0802120a0a0312016d0a03"
    "12016b5a150a016212100a0e0803120a0a0312016b0a0312016e62150a017912100a0e0806120a0a0312016d0a0312016e42040a00100a"
)
"""An ONNX model of one node, `MatMulInteger` of `a` (uint8) and `b` (int8) to `y`: the package that writes one takes 12 MB."""


@lru_cache(1)
def _product() -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])


def _quantised(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = np.abs(block).max(axis=1) / 127 if block.shape[1] else np.zeros(len(block), np.float32)
    return np.rint(block / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8), scales.astype(np.float32)
