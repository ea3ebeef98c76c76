"""The chunks of one index, as searches hold them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np

from retrieval.memory import Page, Snapshot
from retrieval.search import Hit
from retrieval.store import Store, folder_of
from retrieval.types import Passage


class ChunkSource:
    """The chunks of one index, for `retrieval.memory`."""

    def __init__(self, store: Store, index_id: int) -> None:
        self._store, self._index_id = store, index_id

    def seqs(self) -> np.ndarray:
        return self._store.seqs(self._index_id)

    def pages(self, after: int) -> Iterator[Page]:
        for rows in self._store.records(self._index_id, after):
            seqs, keys, vectors, terms, *place = zip(*rows, strict=True)
            yield Page(seqs, keys, vectors, terms, list(map(ChunkFields, keys, *place)))


class ChunkFields(Mapping[str, Any]):
    """What filters read of a chunk: a mapping in a third of a dictionary's memory, since there is one for each chunk."""

    __slots__ = ("document_id", "end", "folder", "heading", "id", "page", "source", "start", "title")

    def __init__(
        self, id: str, document_id: str, source: str, title: str, heading: str, page: int | None, start: int, end: int
    ) -> None:
        self.id, self.page, self.start, self.end = id, page, start, end
        self.document_id, self.source, self.title, self.folder = _of_document(document_id, source, title)
        self.heading = sys.intern(heading)

    def __getitem__(self, name: str) -> Any:
        if name not in self.__slots__:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__slots__)

    def __len__(self) -> int:
        return len(self.__slots__)


@lru_cache(1024)
def _of_document(document_id: str, source: str, title: str) -> tuple[str, str, str, str | None]:
    """What a document's chunks share, once in memory."""
    return sys.intern(document_id), sys.intern(source), sys.intern(title), folder_of(source)


def passage(index: str, rows: Snapshot, hit: Hit, text: str) -> Passage:
    """A chunk that was found; its text is what searches do not hold."""
    at, found = cast(ChunkFields, rows.fields[hit.slot]), (hit.score, hit.similarity, hit.lexical)
    heading = tuple(json.loads(at.heading))
    return Passage(at.id, at.document_id, index, at.source, at.title, heading, text, at.start, at.end, *found, at.page)
