"""The chunks of one index, as searches hold them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from retrieval.memory import Record, Snapshot
from retrieval.search import Hit
from retrieval.store import Store, folder_of
from retrieval.types import Passage


class ChunkSource:
    """The chunks of one index, for `retrieval.memory`."""

    def __init__(self, store: Store, index_id: int) -> None:
        self._store, self._index_id = store, index_id

    def seqs(self) -> np.ndarray:
        return self._store.seqs(self._index_id)

    def records(self, after: int) -> Iterator[Record]:
        for page in self._store.records(self._index_id, after):
            for seq, key, vector, terms, *place in page:
                yield Record(seq, key, vector, terms, ChunkFields(key, *place))


class ChunkFields(Mapping[str, Any]):
    """What filters read of a chunk: a mapping in a third of a dictionary's memory, since there is one for each chunk."""

    __slots__ = ("document_id", "end", "folder", "heading", "id", "page", "source", "start", "title")

    def __init__(
        self, id: str, document_id: str, source: str, title: str, heading: str, page: int | None, start: int, end: int
    ) -> None:
        self.id, self.page, self.start, self.end = id, page, start, end
        self.document_id, self.source = sys.intern(document_id), sys.intern(source)
        self.title, self.heading = sys.intern(title), sys.intern(heading)
        self.folder = folder_of(source)

    def __getitem__(self, name: str) -> Any:
        if name not in self.__slots__:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__slots__)

    def __len__(self) -> int:
        return len(self.__slots__)


def passage(index: str, rows: Snapshot, hit: Hit, text: str) -> Passage:
    """A chunk that was found; its text is what searches do not hold."""
    at, key = rows.fields[hit.slot], rows.keys[hit.slot]
    heading, place, page = tuple(json.loads(at["heading"])), (at["start"], at["end"]), at["page"]
    found = hit.score, hit.similarity, hit.lexical
    return Passage(key, at["document_id"], index, at["source"], at["title"], heading, text, *place, *found, page)
