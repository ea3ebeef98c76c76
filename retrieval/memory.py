"""What searches read: vectors, words and columns of one index in memory, built from the record of truth and kept equal to it.

A search works on one immutable `Snapshot`. A change makes the next one: new rows are appended, old ones marked dead, and
what is dead is dropped when it has become much. Memory: 1.9 kB a row for the vector, about 0.8 kB for the words,
at most 0.13 kB for columns of common ones.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from retrieval import words
from retrieval.codes import Codes, dots
from retrieval.fields import Bodies, Fields
from retrieval.postings import K1, Columns, Gathered, Places, Postings

ABOVE = 0.6
"""Weight of a term in the title and headings, a term in the text being 1."""
DEAD = 0.3
"""Share of dead rows at which a snapshot is built anew."""
CODED = 4096
"""Rows from which the nearest are looked for among 8-bit codes; fewer vectors are compared at once."""
MANY = 1
"""Postings for each row from which it is asked whether the commoner terms can matter: adding a posting takes 2 ns."""
CHEAP = 1 << 19
"""Postings that are added sooner than this is asked, whatever the number of rows."""
FEW = 2048
"""Rows for which what the commoner terms add may always be looked up."""
_NO_SLOTS = np.empty(0, np.int32)
SPARE = 4
"""How many times more rows than asked for are compared exactly after their codes were."""


class Page(NamedTuple):
    """Rows of the truth, column by column. A number in `seqs` orders and names a row; a changed row comes with a new one."""

    seqs: Sequence[int]
    keys: Sequence[str]
    vectors: Sequence[bytes | None]
    terms: Sequence[bytes | None]
    fields: Any
    """Of the class that the `Memory` is given, or what it joins."""


class Source(Protocol):
    """The truth of one index."""

    def seqs(self) -> np.ndarray:
        """Numbers of the rows that are there now, ascending."""
        ...

    def pages(self, after: int) -> Iterator[Page]:
        """Rows with a number above `after`, ascending; a few hundred at once, so that they stay in the processor's cache."""
        ...

    def frozen(self) -> AbstractContextManager[Source]:
        """The same, all of whose reads are of one state."""
        ...


class Kept(Protocol):
    """Where the last snapshot may be read from, faster than from the truth."""

    def read(self, dimension: int, fields: Fields) -> Snapshot | None:
        """One of some state that the truth has had; None where there is none."""
        ...

    def follow(self, before: Snapshot | None, now: Snapshot) -> None:
        """Told of the state that searches see now, and of the one before it."""
        ...


Spans = Sequence[tuple[float, Places]]
"""Terms: how rare each is, and where its postings are."""


@dataclass(frozen=True)
class Snapshot:
    """One state of an index. Rows are named by their slot, 0 to `size`."""

    size: int
    live: int
    keys: list[str]
    seqs: np.ndarray
    matrix: np.ndarray
    lengths: np.ndarray
    alive: np.ndarray
    fields: Fields
    postings: tuple[Postings, ...]
    languages: tuple[int, ...]
    """Languages the rows are in, the commonest first."""
    squares: np.ndarray | None = None
    """Squared lengths of the vectors where rows are compared by distance; None where by cosine of unit vectors."""
    codes: Codes | None = None
    """The vectors in 8 bits, where they are many."""
    cache: dict[Any, Any] = field(default_factory=dict)
    """What searches derived from it; lives as long as the snapshot."""

    @property
    def whole(self) -> bool:
        return self.live == self.size

    def similarities(self, vector: np.ndarray, slots: np.ndarray | None = None) -> np.ndarray:
        """Similarities of the rows' vectors: of `slots`, or of all. By distance d it is 1 / (1 + d²), as Databricks scores."""
        vector = vector.astype(np.float32, copy=False)
        found = dots(vector[None], self.matrix[: self.size] if slots is None else self.matrix.take(slots, axis=0))[0]
        if self.squares is None:
            return found
        squares = self.squares if slots is None else self.squares[slots]
        return 1 / (1 + np.maximum(squares + vector @ vector - 2 * found, 0))

    def nearest(self, vector: np.ndarray, count: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Slots and similarities of the `count` rows most similar to a vector, of all or of those allowed, best first."""
        slots = None if allowed is None else np.flatnonzero(allowed).astype(np.int32)
        if self.codes is not None and (self.size if slots is None else len(slots)) > SPARE * count:
            slots = self._shortlist(self.codes, vector, SPARE * count, allowed, slots)
        scores = self.similarities(vector, slots)
        top = best(scores, count)
        return (top.astype(np.int32) if slots is None else slots[top]), scores[top]

    def _shortlist(
        self, codes: Codes, vector: np.ndarray, count: int, allowed: np.ndarray | None, slots: np.ndarray | None
    ) -> np.ndarray:
        """Slots of `count` rows among which the nearest are: of all, or of those allowed, whose slots are given."""
        # Few rows are picked out; of many all are compared, and those that are not allowed then left out.
        picked = slots if slots is not None and len(slots) * 8 < self.size else None
        if picked is None and codes.telling and self.squares is None:
            picked = codes.alike(vector, max(codes.chosen, 4 * count), slots)
        rough = codes.dots(vector, picked)
        if self.squares is not None:
            rough = 2 * rough - (self.squares if picked is None else self.squares[picked])
        if allowed is not None and picked is None:
            rough[~allowed] = -np.inf
        top = highest(rough, count)
        return top.astype(np.int32) if picked is None else picked[top]

    def spans(self, terms: Sequence[int], seen: np.ndarray | None = None) -> Spans:
        """Inverse document frequency and postings of each term that occurs, the rarest first; among all rows or those `seen`.

        Of rows that may not be seen nothing is in a score: neither how many hold a term nor how long they are.
        """
        held = [[(part, *span) for span in part.spans(terms)] for part in self.postings]
        found = [[each for each in parts if each[1] < each[2]] for parts in zip(*held, strict=True)]
        size = self.size
        if seen is not None and any(found):
            seen = seen & self.alive
            size = int(seen.sum())
            average = float(self.lengths[: self.size][seen].sum(dtype=np.float64)) / max(size, 1)
            within = [[part.within(a, b, seen, self.lengths, average) for part, a, b in parts] for parts in found]
            found = [[(part, 0, len(part.slots)) for part in parts if len(part.slots)] for parts in within]
        rare = [(_rarity(size, sum(b - a for _, a, b in parts)), parts) for parts in found if parts]
        return sorted(rare, key=lambda each: -each[0])

    def rarities(self, terms: Sequence[int], seen: np.ndarray | None = None) -> list[float]:
        """Inverse document frequencies of terms, which need not occur, among all rows or those `seen`."""
        there = None if seen is None else seen & self.alive
        counted = [
            [b - a if there is None else int(there[part.slots[a:b]].sum()) for a, b in part.spans(terms)]
            for part in self.postings
        ]
        counts = [sum(of) for of in zip(*counted, strict=True)] or [0] * len(terms)
        size = self.size if there is None else int(there.sum())
        return [_rarity(size, count) for count in counts]

    def lexical(self, spans: Spans) -> np.ndarray:
        """BM25 of every row."""
        scores = np.zeros(self.size, np.float32)
        for idf, parts in spans:
            self.columns.add(scores, idf, parts)
        return scores

    @property
    def columns(self) -> Columns:
        return self.cache.get("columns") or self.cache.setdefault("columns", Columns(self.size))

    def lexical_of(self, spans: Spans, slots: np.ndarray, onto: np.ndarray | None = None) -> np.ndarray:
        """BM25 of a few rows, or what these terms add to their scores."""
        scores = np.zeros(len(slots), np.float32) if onto is None else onto
        slots = slots.astype(np.int32, copy=False)
        order = np.argsort(slots, kind="stable") if len(self.postings) > 1 else None  # a part is of some of the rows
        if order is not None:
            slots, scores = slots[order], scores[order]
        for idf, parts in spans:
            column = self.columns.of(parts)
            if column is not None:
                scores += np.float32(idf) * column[slots]
                continue
            for part, a, b in parts:
                held, some = part.slots[a:b], slice(None)
                if order is not None:
                    some = slice(*slots.searchsorted((held[0], held[-1] + 1)))
                wanted = slots[some]
                at = held.searchsorted(wanted)
                np.minimum(at, b - a - 1, out=at)
                scores[some] += np.float32(idf) * part.impacts[a:b][at] * (held[at] == wanted)
        if order is not None:
            scores[order] = scores.copy()
        return scores

    def worded(
        self, spans: Spans, count: int, allowed: np.ndarray | None = None, others: np.ndarray = _NO_SLOTS
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slots and BM25 of the `count` rows, of all or of those allowed, whose words fit best, best first; BM25 of other rows.

        What a common term can add is known before its many rows are gone through. Where that lifts no row that has none of the
        rarer terms among the best, it is looked up for the rows that may be among them (Turtle and Flood 1995, MaxScore,
        https://doi.org/10.1016/0306-4573(95)00020-H).
        """
        if not spans:
            return _NO_SLOTS, np.empty(0, np.float32), np.zeros(len(others), np.float32)
        scores = np.zeros(self.size, np.float32)
        left = np.cumsum([idf * (K1 + 1) for idf, _ in reversed(spans)])[::-1]
        to_add = np.cumsum([sum(b - a for _, a, b in parts) for _, parts in reversed(spans)])[::-1]
        done, found = 0, None
        for idf, parts in spans:
            if done and to_add[done] > max(MANY * self.size, CHEAP):
                held = scores if allowed is None else scores * allowed
                least = reached(held, count) - left[done]
                if least > 0:
                    found = np.flatnonzero(held >= least * (1 - 1e-6))  # what adding in 32 bits loses
                    if len(found) <= max(FEW, self.size // 64):
                        break
                    found = None
            self.columns.add(scores, idf, parts)
            done += 1
        if found is None:
            further = self.lexical_of(spans[done:], others, scores[others])
            held = scores if allowed is None else scores * allowed
            top = best(held, count)
            top = top[held[top] > 0].astype(np.int32)
            return top, scores[top], further
        either = np.concatenate((found.astype(np.int32), others))
        fitting, further = np.split(self.lexical_of(spans[done:], either, scores[either]), [len(found)])
        top = best(fitting, count)
        return either[top], fitting[top], further

    def slot_of(self) -> dict[str, int]:
        """Slots of the live rows by key."""
        found = self.cache.get("slots")
        if found is None:
            found = self.cache["slots"] = {self.keys[i]: int(i) for i in np.flatnonzero(self.alive)}
        return found


def _rarity(rows: int, count: int) -> float:
    return math.log1p((max(rows - count, 0) + 0.5) / (count + 0.5))


def reached(scores: np.ndarray, count: int) -> float:
    """A score that at least `count` rows reach, mostly not many more; found by the maxima of blocks. -inf where rows are few."""
    width = len(scores) // (8 * count)
    if width < 2:
        return -np.inf
    blocks = len(scores) // width
    maxima = scores[: blocks * width].reshape(width, blocks).max(axis=0)
    return float(np.partition(maxima, blocks - count)[blocks - count])


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` highest scores in ascending order; of equal ones at the edge the first."""
    if count >= len(scores):
        return np.arange(len(scores))
    least = reached(scores, count)
    found = np.flatnonzero(scores >= least) if np.isfinite(least) else np.arange(0)
    among = scores[found] if len(found) else scores
    edge = np.partition(among, len(among) - count)[len(among) - count]
    kept = np.flatnonzero(among >= edge)
    if len(kept) > count:  # so that a page follows the one before it
        level = np.flatnonzero(among[kept] == edge)
        kept = np.delete(kept, level[count - len(kept) :])
    return found[kept] if len(found) else kept


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` highest finite scores, best first; equal ones in order."""
    part = highest(scores, count)
    part = part[np.argsort(-scores[part], kind="stable")]
    return part[np.isfinite(scores[part])]


class Memory:
    """Keeps the snapshot of one index equal to its truth. Thread-safe.

    Parameters
    ----------
    source: where the rows are.
    dimension: of the vectors; 0 where rows have none.
    distance: compare by distance instead of cosine: the vectors need not have unit length.
    fields: how the rows' columns are held.
    kept: where a snapshot outlives the process.
    follow: told of each state that searches see.
    """

    def __init__(
        self,
        source: Source,
        dimension: int,
        *,
        distance: bool = False,
        fields: Callable[[], Fields] = Bodies,
        kept: Kept | None = None,
        follow: Callable[[Snapshot], None] = lambda rows: None,
    ) -> None:
        self._source, self._dimension, self._distance, self._fields, self._kept = source, dimension, distance, fields, kept
        self._follow = follow
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None

    @property
    def loaded(self) -> bool:
        return self._snapshot is not None

    def snapshot(self) -> Snapshot:
        """The present state; the first call reads it."""
        return self._snapshot or self.refresh()

    def refresh(self) -> Snapshot:
        """Takes over what changed in the truth since the last time."""
        with self._lock:
            before = self._snapshot
            if before is None and self._kept is not None:
                before = self._kept.read(self._dimension, self._fields())
            found, whole = self._next(before, self._source)
            if not whole:  # little is left to be read now, so that a state is held for a moment only
                with self._source.frozen() as source:
                    found, _ = self._next(found, source)
            seen, self._snapshot = self._snapshot, found
            if self._kept is not None:
                self._kept.follow(before, found)
            if found is not seen:
                self._follow(found)
            return found

    def _next(self, now: Snapshot | None, source: Source) -> tuple[Snapshot, bool]:
        """The state after one, and whether it is whole: a row that was replaced between two reads may be in it in neither form.

        A row that came after the first read is not alive yet: what it replaces is.
        """
        live = source.seqs()
        if now is not None:
            alive = np.isin(now.seqs, live, assume_unique=True)
            last = int(now.seqs[-1]) if now.size else 0
            new = len(live) - int(live.searchsorted(last, "right"))
            known = int(alive.sum())
            if not new and known == len(live) and np.array_equal(alive, now.alive):
                return now, True
            # A number below the last may have come later where several write at once: then all is read anew.
            if known + new == len(live) and known >= (1 - DEAD) * now.size:
                found = self._append(now, alive, live, last, source)
                return found, found.live == len(live)
        empty = Snapshot(
            0,
            0,
            [],
            np.empty(0, np.int64),
            np.empty((len(live), self._dimension), np.float32),
            np.empty(0, np.float32),
            np.empty(0, bool),
            self._fields(),
            (),
            (),
        )
        found = self._append(empty, empty.alive, live, 0, source)
        return found, found.live == len(live)

    def _append(self, old: Snapshot, alive: np.ndarray, present: np.ndarray, after: int, source: Source) -> Snapshot:
        keys, seqs = list(old.keys), [old.seqs[: old.size]]
        parts: list[Any] = []
        matrix, at = old.matrix, old.size
        gathered, lengths = Gathered(at), [old.lengths[: old.size]]
        spoken = dict.fromkeys(old.languages, 0)
        for page in _ahead(source.pages(after)):
            count = len(page.keys)
            end = at + count
            if end > len(matrix):
                # Readers of the old snapshot keep the old block; rows past their size in a shared one are not theirs.
                grown = np.empty((max(1024, end, len(matrix) * 3 // 2), self._dimension), np.float32)
                grown[:at] = matrix[:at]
                matrix = grown
            none = bytes(4 * self._dimension)
            vectors = b"".join([vector or none for vector in page.vectors])
            matrix[at:end] = np.frombuffer(vectors, np.float32).reshape(count, -1) if vectors else 0.0
            terms = words.decode_many([held or b"" for held in page.terms])
            weights = terms.text + np.float32(ABOVE) * terms.context
            gathered.add(terms.sizes, terms.ids, weights)
            lengths.append(np.bincount(np.repeat(np.arange(count), terms.sizes), weights, count).astype(np.float32))
            for language, rows in zip(*np.unique(terms.languages[terms.languages >= 0], return_counts=True), strict=True):
                spoken[int(language)] = spoken.get(int(language), 0) + int(rows)
            keys.extend(page.keys)
            parts.append(page.fields)
            seqs.append(np.array(page.seqs, np.int64))
            at = end
        length, numbers = np.concatenate(lengths), np.concatenate(seqs)
        alive = np.concatenate((alive, np.isin(numbers[old.size :], present, assume_unique=True)))
        average = float(length.mean()) if len(length) else 0.0
        postings = gathered.onto(old.postings, length, average)
        languages = tuple(sorted(spoken, key=lambda number: -spoken[number]))
        squares = np.einsum("ij,ij->i", matrix[:at], matrix[:at]) if self._distance else None
        coded = old.codes or Codes.empty(self._dimension)
        codes = coded.extended(matrix, at) if at >= CODED and self._dimension else None
        live, fields = int(alive.sum()), old.fields.joined(parts)
        return Snapshot(at, live, keys, numbers, matrix, length, alive, fields, postings, languages, squares, codes)


def _ahead(pages: Iterator[Page]) -> Iterator[Page]:
    """The pages, each read by another thread while the one before it is taken over."""
    with ThreadPoolExecutor(1, thread_name_prefix="smalti-pages") as reader:
        coming = reader.submit(next, pages, None)
        while (page := coming.result()) is not None:
            coming = reader.submit(next, pages, None)
            yield page
