"""A snapshot in a file: its arrays as they lie in memory, so that a start maps them instead of reading a million rows.

What the file holds is told by a layout that is kept elsewhere, with a hash of every stretch: the file itself is believed in
nothing. A file is written once, and replaced by others; who has it mapped keeps it.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import words
from retrieval.codes import Codes
from retrieval.fields import Fields
from retrieval.memory import ABOVE, Snapshot
from retrieval.postings import Postings, weights

MADE = f"1:{sys.byteorder}:{words.VERSION}:{ABOVE}"
"""How what is in a file was made; the first number is raised when the same rows now give another file."""
STRETCH = 8 << 20
"""Bytes hashed as one."""
AHEAD = 8
"""Stretches that the disk is asked for before they are hashed."""
STEP = 1 << 20
"""Bytes written at once: they stay in the processor's cache until they are hashed."""
LINE = 1000
"""Values written as JSON at once, so that the interpreter is not held for long."""
READERS = 4
SPARE = 16
"""For each so many rows there is room for one more behind them, a hole in the file: what comes first has not all copied."""
ALIGNED = 64


class Damaged(Exception):
    """The file is not what its layout says."""


class Stopped(Exception):
    """The snapshot is no longer wanted."""


def size_of(rows: Snapshot) -> int:
    """About how many bytes the file of a snapshot has."""
    coded = 0 if rows.codes is None else rows.codes.rows[0].nbytes + rows.codes.signs[0].nbytes + 4
    postings = sum(3 * part.slots.nbytes for part in rows.postings)
    return rows.live * (rows.matrix.shape[1] * 4 + coded + 200) + postings


def write(
    path: Path, rows: Snapshot, stopped: Callable[[], bool] = lambda: False, sync: Callable[[], bool] = lambda: True
) -> str:
    """Writes a snapshot, without anything of its dead rows; gives the layout of the file.

    Parameters
    ----------
    stopped: asked again and again; once it is true, nothing more is written.
    sync: asked at the end: whether to wait until the disk has it all.

    Raises
    ------
    OSError: it cannot be written. Stopped.
    """
    keep = None if rows.whole else rows.alive
    slots = range(rows.size) if keep is None else np.flatnonzero(keep).tolist()
    with FileIO(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        to = _Writer(file, stopped, rows.live // SPARE)
        lengths = rows.lengths if keep is None else rows.lengths[keep]
        to.array("lengths", _kept(lengths))
        to.values("keys", (rows.keys[slot] for slot in slots))
        for name, held in rows.fields.packed(slots).items():
            if isinstance(held, np.ndarray):
                to.array(f"fields.{name}", _kept(held))
            else:
                to.values(f"fields.{name}", held)
        to.array("seqs", _kept(rows.seqs, keep))
        for number, part in enumerate(rows.postings):
            for name, blocks in _postings(part, lengths, rows.alive, keep is None):
                to.array(f"{name}.{number}", blocks)
        to.array("matrix", _kept(rows.matrix[: rows.size], keep), growing=True)
        if rows.squares is not None:
            to.array("squares", _kept(rows.squares, keep))
        codes = rows.codes
        if codes is not None:
            for name in ("rows", "scales", "signs"):
                to.array(f"codes.{name}", _kept(getattr(codes, name)[: rows.size], keep), growing=True)
        file.truncate(to.end)
        if sync():
            os.fsync(file.fileno())
    told = {
        "made": MADE,
        "rows": rows.live,
        "size": to.end,
        "dimension": rows.matrix.shape[1],
        "squares": rows.squares is not None,
        "languages": rows.languages,
        "parts": len(rows.postings),
        "codes": None if codes is None else [min(codes.tried, rows.live), codes.telling],
        "arrays": to.arrays,
    }
    return json.dumps(told, separators=(",", ":"))


def _kept(array: np.ndarray, keep: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """An array's rows, or those to keep, a few at a time."""
    count = max(1, STEP // max(array[:1].nbytes, 1))
    for at in range(0, max(len(array), 1), count):
        some = array[at : at + count]
        yield some if keep is None else some[keep[at : at + count]]


def _postings(part: Postings, lengths: np.ndarray, alive: np.ndarray, whole: bool) -> Iterator[tuple[str, Iterable[np.ndarray]]]:
    """The arrays of postings without dead rows, weighed for the rows that are left, whose slots are theirs."""
    kept = None if whole else alive[part.slots]
    numbers = None if whole else np.cumsum(alive, dtype=np.int32) - np.int32(1)
    terms, starts = part.terms, part.starts
    if kept is not None:
        counts = np.add.reduceat(kept, starts[:-1], dtype=np.int64) if len(terms) else np.empty(0, np.int64)
        terms, starts = terms[counts > 0], np.append(0, np.cumsum(counts[counts > 0]))
    average = float(lengths.mean()) if len(lengths) else 0.0

    def slots() -> Iterator[np.ndarray]:
        return (some if numbers is None else numbers[some] for some in _kept(part.slots, kept))

    yield "terms", _kept(terms)
    yield "starts", _kept(starts)
    yield "slots", slots()
    yield "counts", _kept(part.counts, kept)
    yield "impacts", (weights(held, lengths[at], average) for held, at in zip(_kept(part.counts, kept), slots(), strict=True))


class _Writer:
    """Writes arrays one behind the other, and notes where each is and what its stretches' hashes are."""

    def __init__(self, file: FileIO, stopped: Callable[[], bool], spare: int) -> None:
        self._file, self._stopped, self._spare = file, stopped, spare
        self.end = 0
        self.arrays: dict[str, Any] = {}

    def array(self, name: str, blocks: Iterable[np.ndarray], growing: bool = False) -> None:
        """`growing` leaves room behind it for more rows."""
        began = at = -(-self.end // ALIGNED) * ALIGNED
        self._file.seek(began)
        dtype, tail, row, rows, hashes = "|u1", (), 1, 0, []
        hashed, left = hashlib.sha256(), STRETCH
        for block in blocks:
            dtype, tail, row = block.dtype.str, block.shape[1:], block.itemsize * math.prod(block.shape[1:])
            rows += len(block)
            view = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
            while len(view):
                if self._stopped():
                    raise Stopped
                count = self._file.write(view[: min(left, STEP)])
                hashed.update(view[:count])
                at, left, view = at + count, left - count, view[count:]
                if not left:
                    hashes.append(hashed.hexdigest())
                    hashed, left = hashlib.sha256(), STRETCH
        if left < STRETCH:
            hashes.append(hashed.hexdigest())
        spare = self._spare if growing else 0
        self.end = at + spare * row
        self.arrays[name] = {"at": began, "rows": rows, "spare": spare, "dtype": dtype, "tail": list(tail), "sha256": hashes}

    def values(self, name: str, values: Iterable[Any]) -> None:
        """What JSON can say, a line for some."""
        self.array(name, (np.frombuffer(line, np.uint8) for line in _lines(values)))
        self.arrays[name]["json"] = True


def _lines(values: Iterable[Any]) -> Iterator[bytes]:
    some: list[Any] = []
    for value in values:
        some.append(value)
        if len(some) == LINE:
            yield json.dumps(some, separators=(",", ":")).encode() + b"\n"
            some = []
    if some:
        yield json.dumps(some, separators=(",", ":")).encode() + b"\n"


def read(path: Path, layout: str, dimension: int, fields: Fields) -> Snapshot:
    """The snapshot in a file; what is large in it stays mapped.

    Raises
    ------
    Damaged: it is not what the layout says, or was made otherwise than files are now.
    OSError: it cannot be read.
    """
    told = json.loads(layout)
    if told["made"] != MADE or told["dimension"] != dimension:
        raise Damaged("it was made by another version, or of other vectors")
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if os.fstat(file).st_size != told["size"]:
            raise Damaged(f"it has {os.fstat(file).st_size} bytes instead of {told['size']}")
        with ThreadPoolExecutor(READERS, thread_name_prefix="smalti-snapshot") as pool:
            try:
                return _Reader(file, told, pool).snapshot(fields)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        os.close(file)


class _Reader:
    """Arrays of a file, hashed by several threads at once."""

    def __init__(self, file: int, told: dict[str, Any], pool: ThreadPoolExecutor) -> None:
        self._file, self._told, self._pool = file, told, pool
        # What is written to it later, behind the rows that there are, is this process' own.
        self._mapped = mmap.mmap(file, told["size"], access=mmap.ACCESS_COPY)
        self._coming: dict[str, tuple[np.ndarray, list[Future[None]]]] = {}

    def snapshot(self, fields: Fields) -> Snapshot:
        told, count = self._told, self._told["rows"]
        for name, array in told["arrays"].items():
            self._begin(name, array)
        keys = self._values("keys")
        packed = {
            name.removeprefix("fields."): self._values(name) if array.get("json") else self._array(name)
            for name, array in told["arrays"].items()
            if name.startswith("fields.")
        }
        held = fields.unpacked(packed, keys)
        lengths, seqs, matrix = self._array("lengths"), self._array("seqs"), self._array("matrix")
        postings = tuple(
            Postings(*(self._array(f"{name}.{number}") for name in ("terms", "starts", "slots", "counts", "impacts")))
            for number in range(told["parts"])
        )
        squares, codes = self._array("squares") if told["squares"] else None, None
        if told["codes"] is not None:
            rows, scales, signs = (self._array(f"codes.{name}") for name in ("rows", "scales", "signs"))
            tried, telling = told["codes"]
            codes = Codes(count, rows, scales, signs, tried, telling)
        if not len(keys) == len(held) == len(lengths) == len(seqs) == count <= len(matrix):
            raise Damaged("its columns differ in length")
        alive, languages = np.ones(count, bool), tuple(told["languages"])
        return Snapshot(count, count, keys, seqs, matrix, lengths, alive, held, postings, languages, squares, codes)

    def _array(self, name: str) -> np.ndarray:
        array, coming = self._coming.pop(name)
        for each in coming:
            each.result()
        return array

    def _values(self, name: str) -> list[Any]:
        return list(chain.from_iterable(map(json.loads, self._array(name).tobytes().splitlines())))

    def _begin(self, name: str, array: dict[str, Any]) -> None:
        dtype, tail, rows, at = np.dtype(array["dtype"]), array["tail"], array["rows"], array["at"]
        size = dtype.itemsize * math.prod(tail) * rows
        if dtype.kind not in "iuf" or len(array["sha256"]) != -(-size // STRETCH):
            raise Damaged(f"{name} is not whole")
        made = np.ndarray((rows + array["spare"], *tail), dtype, self._mapped, at)
        view = memoryview(self._mapped)[at : at + size]
        coming = [
            self._pool.submit(self._check, view[n * STRETCH : (n + 1) * STRETCH], at + n * STRETCH, each)
            for n, each in enumerate(array["sha256"])
        ]
        self._coming[name] = made, coming

    def _check(self, view: memoryview, at: int, wanted: str) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, at + AHEAD * STRETCH, STRETCH, os.POSIX_FADV_WILLNEED)
        if hashlib.sha256(view).hexdigest() != wanted:
            raise Damaged(f"its bytes from {at} on are not those that were written")
