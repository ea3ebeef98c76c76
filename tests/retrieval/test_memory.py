"""A snapshot is of one state of the truth, whatever is written while it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import sqlalchemy as sa

from retrieval import words
from retrieval.memory import Memory, Page
from retrieval.rows.schema import Spec
from retrieval.rows.store import RowStore
from retrieval.tables import metadata


class Rows:
    """Keys by number; `meanwhile` is done between the reading of the numbers and of the rows."""

    def __init__(self, count: int) -> None:
        self.rows = {number: f"k{number}" for number in range(1, count + 1)}
        self.meanwhile: Callable[[], None] = lambda: None
        self.froze = self.reads = 0

    def seqs(self) -> np.ndarray:
        return np.array(sorted(self.rows), np.int64)

    def pages(self, after: int) -> Iterator[Page]:
        done, self.meanwhile = self.meanwhile, lambda: None
        done()
        found = [number for number in sorted(self.rows) if number > after]
        self.reads += len(found)
        if found:
            keys, terms = [self.rows[number] for number in found], [words.encode("tile") for _ in found]
            yield Page(found, keys, [None] * len(found), terms, [{} for _ in found])

    @contextmanager
    def frozen(self) -> Iterator[Rows]:
        self.froze += 1
        yield self

    def replace(self, old: int, new: int) -> None:
        self.rows[new] = self.rows.pop(old)


def alive(memory: Memory) -> list[str]:
    rows = memory.refresh()
    assert rows.live == rows.alive.sum()
    return sorted(rows.keys[slot] for slot in np.flatnonzero(rows.alive))


def test_a_row_replaced_while_rows_are_read_is_there_once() -> None:
    source, wanted = Rows(6), sorted(f"k{number}" for number in range(1, 8))
    memory = Memory(source, 0)
    memory.refresh()
    source.rows[7] = "k7"
    source.meanwhile = lambda: source.replace(2, 8)
    assert alive(memory) == wanted, "the old form, since the new one came later"
    assert memory.snapshot().seqs[memory.snapshot().alive].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert alive(memory) == wanted
    assert memory.snapshot().seqs[memory.snapshot().alive].tolist() == [1, 3, 4, 5, 6, 7, 8]
    assert source.froze == 0


def test_a_row_replaced_before_it_could_be_read_is_there_too() -> None:
    source = Rows(6)
    source.meanwhile = lambda: source.replace(2, 8)
    memory = Memory(source, 0)
    assert alive(memory) == [f"k{number}" for number in range(1, 7)]
    assert source.froze == 1
    source.rows[9] = "k9"
    source.meanwhile = lambda: source.replace(9, 10)
    assert alive(memory) == [f"k{number}" for number in (1, 2, 3, 4, 5, 6, 9)]
    assert source.froze == 2


def test_a_number_that_comes_late_is_read_too() -> None:
    source = Rows(6)
    source.rows[9] = "k9"
    memory = Memory(source, 0)
    memory.refresh()
    source.rows[8] = "k8"
    assert alive(memory) == [f"k{number}" for number in (1, 2, 3, 4, 5, 6, 8, 9)]
    before = source.reads
    assert len(alive(memory)) == 8
    assert source.reads == before


def test_rows_written_by_others_meanwhile_are_seen_whole(engine: sa.Engine) -> None:
    """The same over a real database, with a write of five rows between the two reads."""
    metadata.create_all(engine)
    store, other = RowStore(engine), RowStore(engine)
    index = store.create(
        "main.default.rows", "e", Spec("id", "DIRECT_ACCESS", "FULL_TEXT", columns={"id": "string", "n": "int"}), ""
    )

    def put(by: RowStore, n: int, count: int = 5) -> None:
        values: list[Any] = [
            {"key": str(i), "body": f'{{"id": "{i}", "n": {n}}}', "content": "", "vector": None, "terms": None}
            for i in range(count)
        ]
        by.put(index.id, values)

    def seen() -> list[tuple[str, int]]:
        rows = store.snapshot(index)
        return sorted((rows.fields[slot]["id"], rows.fields[slot]["n"]) for slot in np.flatnonzero(rows.alive))

    put(store, 1)
    assert seen() == [(str(i), 1) for i in range(5)]
    memory = store._memories[index.id][0]
    source: Any = memory._source
    pages, done = source.pages, []

    def meanwhile(after: int) -> Iterator[Page]:
        if not done:
            done.append(True)
            put(other, 3)
        return pages(after)

    source.pages = meanwhile
    put(store, 2)  # replaced once more before its rows could be read
    assert seen() == [(str(i), 3) for i in range(5)]
