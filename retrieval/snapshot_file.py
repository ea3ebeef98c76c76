"""A snapshot in a file: its arrays as they lie in memory, so that a start reads them instead of a million rows.

What the file holds is told by a layout that is kept elsewhere, with a hash of every stretch: the file itself is believed in
nothing, and no byte of it is used that was not hashed where it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retrieval import words
from retrieval.codes import Codes
from retrieval.fields import Fields
from retrieval.memory import ABOVE, Snapshot
from retrieval.postings import Postings

MADE = f"1:{sys.byteorder}:{words.VERSION}:{ABOVE}"
"""How what is in a file was made; the first number is raised when the same rows now give another file."""
STRETCH = 8 << 20
"""Bytes hashed as one."""
STEP = 1 << 20
"""Bytes read or written at once: they stay in the processor's cache until they are hashed."""
LINE = 1000
"""Values written as JSON at once, so that the interpreter is not held for long."""
READERS = 4
SPARE = 16
"""For each so many rows there is room for one more: the first that comes does not have all copied."""


class Damaged(Exception):
    """The file is not what its layout says."""


class Stopped(Exception):
    """The snapshot is no longer wanted."""


def size_of(rows: Snapshot) -> int:
    """About how many bytes the file of a snapshot has."""
    coded = 0 if rows.codes is None else rows.codes.rows[0].nbytes + rows.codes.signs[0].nbytes + 4
    postings = sum(part.slots.nbytes + part.counts.nbytes for part in rows.postings)
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
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
        to = _Writer(file, stopped)
        to.array("lengths", _kept(rows.lengths, keep))
        to.values("keys", (rows.keys[slot] for slot in slots))
        for name, held in rows.fields.packed(slots).items():
            if isinstance(held, np.ndarray):
                to.array(f"fields.{name}", [held])
            else:
                to.values(f"fields.{name}", held)
        to.array("seqs", _kept(rows.seqs, keep))
        for number, part in enumerate(rows.postings):
            for name, blocks in _postings(part, rows.alive, keep is None):
                to.array(f"{name}.{number}", blocks)
        to.array("matrix", _kept(rows.matrix[: rows.size], keep))
        if rows.squares is not None:
            to.array("squares", _kept(rows.squares, keep))
        codes = rows.codes
        if codes is not None:
            for name in ("rows", "scales", "signs"):
                to.array(f"codes.{name}", _kept(getattr(codes, name)[: rows.size], keep))
        if sync():
            os.fsync(file.fileno())
    told = {
        "made": MADE,
        "rows": rows.live,
        "size": to.at,
        "dimension": rows.matrix.shape[1],
        "squares": rows.squares is not None,
        "languages": rows.languages,
        "parts": len(rows.postings),
        "codes": None if codes is None else [min(codes.tried, rows.live), codes.telling],
        "arrays": to.arrays,
    }
    return json.dumps(told, separators=(",", ":"))


def _kept(array: np.ndarray, keep: np.ndarray | None) -> Iterator[np.ndarray]:
    """An array's rows, or those to keep, a few at a time."""
    count = max(1, STEP // max(array[:1].nbytes, 1))
    for at in range(0, max(len(array), 1), count):
        some = array[at : at + count]
        yield some if keep is None else some[keep[at : at + count]]


def _postings(part: Postings, alive: np.ndarray, whole: bool) -> Iterator[tuple[str, Iterable[np.ndarray]]]:
    """The arrays of postings without dead rows, whose slots are those of the rows that are left."""
    if whole:
        yield from ((name, _kept(getattr(part, name), None)) for name in ("terms", "starts", "slots", "counts"))
        return
    numbers = np.cumsum(alive, dtype=np.int32) - np.int32(1)
    kept = alive[part.slots]
    counts = np.add.reduceat(kept, part.starts[:-1], dtype=np.int64) if len(part.terms) else np.empty(0, np.int64)
    yield "terms", [part.terms[counts > 0]]
    yield "starts", [np.append(0, np.cumsum(counts[counts > 0]))]
    yield "slots", (numbers[slots] for slots in _kept(part.slots, kept))
    yield "counts", _kept(part.counts, kept)


class _Writer:
    """Writes arrays one behind the other, and notes where each is and what its stretches' hashes are."""

    def __init__(self, file: BinaryIO, stopped: Callable[[], bool]) -> None:
        self._file, self._stopped = file, stopped
        self.at = 0
        self.arrays: dict[str, Any] = {}

    def array(self, name: str, blocks: Iterable[np.ndarray]) -> None:
        began, dtype, tail, hashes = self.at, "|u1", (), []
        hashed, left = hashlib.sha256(), STRETCH
        for block in blocks:
            dtype, tail = block.dtype.str, block.shape[1:]
            view = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
            while len(view):
                if self._stopped():
                    raise Stopped
                count = min(left, STEP, len(view))
                count = self._file.write(view[:count])
                hashed.update(view[:count])
                self.at, left, view = self.at + count, left - count, view[count:]
                if not left:
                    hashes.append(hashed.hexdigest())
                    hashed, left = hashlib.sha256(), STRETCH
        if left < STRETCH:
            hashes.append(hashed.hexdigest())
        self.arrays[name] = {"at": began, "bytes": self.at - began, "dtype": dtype, "tail": list(tail), "sha256": hashes}

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
    """The snapshot in a file.

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
        with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), thread_name_prefix="smalti-snapshot") as pool:
            try:
                return _Reader(file, told, pool).snapshot(fields)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        os.close(file)


class _Reader:
    """Arrays of a file, read and hashed by several threads at once."""

    def __init__(self, file: int, told: dict[str, Any], pool: ThreadPoolExecutor) -> None:
        self._file, self._told, self._pool = file, told, pool
        self._rows = told["rows"]
        self._coming: dict[str, tuple[np.ndarray, list[Future[None]]]] = {}

    def snapshot(self, fields: Fields) -> Snapshot:
        told, count = self._told, self._rows
        by_row = {"matrix", "codes.rows", "codes.scales", "codes.signs"}
        for name, array in told["arrays"].items():
            self._begin(name, array, count // SPARE if name in by_row else 0)
        lengths = self._array("lengths")
        average = float(lengths.mean()) if count else 0.0
        keys = self._values("keys")
        names = [name for name in told["arrays"] if name.startswith("fields.")]
        packed = {
            name.removeprefix("fields."): self._values(name) if told["arrays"][name].get("json") else self._array(name)
            for name in names
        }
        held = fields.unpacked(packed, keys)
        parts = [self._part(number, lengths, average) for number in range(told["parts"])]
        codes = None
        if told["codes"] is not None:
            rows, scales, signs = (self._array(f"codes.{name}") for name in ("rows", "scales", "signs"))
            tried, telling = told["codes"]
            codes = Codes(count, rows, scales, signs, tried, telling)
        matrix, seqs, squares = self._array("matrix"), self._array("seqs"), self._array("squares") if told["squares"] else None
        if not len(keys) == len(held) == len(lengths) == len(seqs) == count:
            raise Damaged("its columns differ in length")
        alive, languages = np.ones(count, bool), tuple(told["languages"])
        postings = tuple(part.result() for part in parts)
        return Snapshot(count, count, keys, seqs, matrix, lengths, alive, held, postings, languages, squares, codes)

    def _part(self, number: int, lengths: np.ndarray, average: float) -> Future[Postings]:
        terms, starts, slots, counts = (self._array(f"{name}.{number}") for name in ("terms", "starts", "slots", "counts"))
        return self._pool.submit(Postings(terms, starts, slots, counts, np.empty(0, np.float32)).weighed, lengths, average)

    def _array(self, name: str) -> np.ndarray:
        array, coming = self._coming.pop(name)
        for each in coming:
            each.result()
        return array

    def _values(self, name: str) -> list[Any]:
        return list(chain.from_iterable(map(json.loads, self._array(name).tobytes().splitlines())))

    def _begin(self, name: str, array: dict[str, Any], spare: int) -> None:
        dtype, tail, size = np.dtype(array["dtype"]), array["tail"], array["bytes"]
        if dtype.kind not in "iuf":
            raise Damaged(f"it holds {dtype}")
        width = dtype.itemsize * int(np.prod(tail, dtype=np.int64))
        count = size // width if width else self._rows
        made = np.empty((count + spare, *tail), dtype)
        if len(array["sha256"]) != -(-size // STRETCH) or count * width != size:
            raise Damaged(f"{name} has not the bytes of whole rows")
        view = made[:count].reshape(-1).view(np.uint8).data if size else memoryview(b"")
        wanted = enumerate(array["sha256"])
        coming = [
            self._pool.submit(self._stretch, view[n * STRETCH : (n + 1) * STRETCH], array["at"] + n * STRETCH, each)
            for n, each in wanted
        ]
        self._coming[name] = made, coming

    def _stretch(self, view: memoryview, at: int, wanted: str) -> None:
        hashed, done = hashlib.sha256(), 0
        while done < len(view):
            got = os.preadv(self._file, [view[done : done + STEP]], at + done)
            if not got:
                raise Damaged("it ends too early")
            hashed.update(view[done : done + got])
            done += got
        if hashed.hexdigest() != wanted:
            raise Damaged(f"its bytes from {at} on are not those that were written")
