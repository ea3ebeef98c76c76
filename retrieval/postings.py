"""Which rows hold a term: what BM25 (Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019) is summed from."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

K1, B = 0.9, 0.4
"""BM25's parameters; chosen on SciFact's train claims and WiCE, see docs/benchmarks.md."""
PART = 1 << 24
"""Postings from which a part is left as it is: putting it in order again would hold up what has just been written."""
BLOCK = 1 << 20
"""Postings weighed at once, so that what is needed for it stays small."""
COMMON, COLUMNS = 4, 32
"""Of how many rows one holds a common term at least, and of how many such terms columns are held."""
_NONE = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class Postings:
    """Which rows hold a term, how often, and how much it weighs there. Sorted by term, then by row."""

    terms: np.ndarray
    starts: np.ndarray
    slots: np.ndarray
    counts: np.ndarray
    impacts: np.ndarray

    @classmethod
    def build(cls, ids: np.ndarray, slots: np.ndarray, counts: np.ndarray, lengths: np.ndarray, average: float) -> Postings:
        """Of terms, each with the slot of its row, ascending, and how often it occurs there."""
        return cls.ordered(ids, slots, counts).weighed(lengths, average)

    @classmethod
    def ordered(cls, ids: np.ndarray, slots: np.ndarray, counts: np.ndarray) -> Postings:
        """`build`, without weights."""
        # By the lower and then by the upper half of a term: numbers of 16 bits are sorted without comparing them.
        order = np.argsort(ids.astype(np.uint16), kind="stable")
        order = order[np.argsort((ids >> np.uint32(16)).astype(np.uint16)[order], kind="stable")]
        ids, slots, counts = ids[order], slots[order], counts[order]
        first = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1]))) if len(ids) else np.empty(0, np.int64)
        return cls(ids[first], np.append(first, len(ids)), slots, counts, _NONE)

    def weighed(self, lengths: np.ndarray, average: float) -> Postings:
        """With the weights for rows of these lengths."""
        impacts = np.empty(len(self.slots), np.float32)
        for at in range(0, len(impacts), BLOCK):
            some = slice(at, at + BLOCK)
            impacts[some] = weights(self.counts[some], lengths[self.slots[some]], average)
        return replace(self, impacts=impacts)

    def within(self, begin: int, end: int, seen: np.ndarray, lengths: np.ndarray, average: float) -> Postings:
        """One term's postings, from `begin` to `end`, of the rows seen alone, weighed as if there were no others."""
        slots = self.slots[begin:end]
        kept = seen[slots]
        slots, counts = slots[kept], self.counts[begin:end][kept]
        return Postings(self.terms[:0], self.starts[:0], slots, counts, weights(counts, lengths[slots], average))

    def joined(self, after: Postings) -> Postings:
        """Both as one, without weights; the other's rows come after these."""
        ids = np.concatenate([np.repeat(each.terms, np.diff(each.starts)) for each in (self, after)])
        slots, counts = np.concatenate((self.slots, after.slots)), np.concatenate((self.counts, after.counts))
        return Postings.ordered(ids, slots, counts)

    def spans(self, terms: Sequence[int]) -> list[tuple[int, int]]:
        """Where each term's postings begin and end."""
        wanted = np.array(terms, np.uint32)
        if not len(wanted) or not len(self.terms):
            return [(0, 0)] * len(wanted)
        at = np.minimum(self.terms.searchsorted(wanted), len(self.terms) - 1)
        last = at + (self.terms[at] == wanted)
        return list(zip(self.starts[at].tolist(), self.starts[last].tolist(), strict=True))


Places = Sequence[tuple[Postings, int, int]]
"""Where a term's postings are, and where they begin and end there."""


class Columns:
    """What the commonest terms weigh in each row, row by row: added and looked up in a fraction of the time that postings take.
    Of one state of an index, with so many rows. Thread-safe.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._held: dict[Any, np.ndarray] = {}

    def add(self, scores: np.ndarray, idf: float, places: Places) -> None:
        """Adds what a term weighs to the scores of all rows."""
        column = self.of(places)
        if column is not None:
            scores += np.float32(idf) * column
            return
        for part, a, b in places:
            np.add.at(scores, part.slots[a:b], np.float32(idf) * part.impacts[a:b])

    def of(self, places: Places) -> np.ndarray | None:
        """The column of a term; None where it is not common."""
        if sum(b - a for _, a, b in places) * COMMON < self._rows:
            return None
        key = tuple((id(part), a) for part, a, _ in places)
        found = self._held.get(key)
        if found is None:
            found = np.zeros(self._rows, np.float32)
            for part, a, b in places:
                found[part.slots[a:b]] = part.impacts[a:b]
            for oldest in list(self._held)[: max(len(self._held) + 1 - COLUMNS, 0)]:
                self._held.pop(oldest, None)
            self._held[key] = found
        return found


def weights(counts: np.ndarray, lengths: np.ndarray, average: float) -> np.ndarray:
    """What terms weigh that occur so often in rows of these lengths."""
    norm = np.float32(K1 * (1 - B)) + np.float32(K1 * B / max(average, 1.0)) * lengths
    return counts * np.float32(K1 + 1) / (counts + norm)


class Gathered:
    """Postings of rows as they are read: a part that is large enough is put in order while the next rows are read.

    Parameters
    ----------
    first: the slot of the first row.
    """

    def __init__(self, first: int) -> None:
        self._next = first
        self._ids: list[np.ndarray] = []
        self._slots: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._held = 0
        self._parts: list[Future[Postings]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="smalti-postings")

    def add(self, sizes: np.ndarray, ids: np.ndarray, counts: np.ndarray) -> None:
        """The terms of the next rows: how many each row has, the terms, and how often each occurs."""
        self._ids.append(ids)
        self._counts.append(counts)
        self._slots.append(np.repeat(np.arange(self._next, self._next + len(sizes), dtype=np.int32), sizes))
        self._next += len(sizes)
        self._held += len(ids)
        if self._held >= PART:
            self._parts.append(self._thread.submit(Postings.ordered, *self._taken()))

    def onto(self, parts: tuple[Postings, ...], lengths: np.ndarray, average: float) -> tuple[Postings, ...]:
        """These after the parts there were; small ones are joined, so that they stay few."""
        weighed = [self._thread.submit(lambda part: part.result().weighed(lengths, average), part) for part in self._parts]
        last = [Postings.build(*self._taken(), lengths, average)] if self._held else []
        found = [*parts, *(part.result() for part in weighed), *last]
        self._thread.shutdown()
        while len(found) > 1 and len(found[-2].slots) <= min(2 * len(found[-1].slots), PART):
            later, former = found.pop(), found.pop()
            found.append(former.joined(later).weighed(lengths, average))
        return tuple(found)

    def _taken(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        taken = np.concatenate(self._ids), np.concatenate(self._slots), np.concatenate(self._counts)
        self._ids, self._slots, self._counts, self._held = [], [], [], 0
        return taken
