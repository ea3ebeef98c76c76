"""The chunks of one index, as searches hold them."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from retrieval.chunk_reads import folder_of
from retrieval.memory import Fields, Page, Snapshot
from retrieval.search import Hit
from retrieval.store import Store
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
            yield Page(seqs, keys, vectors, terms, ChunkFields(keys, *place))


class ChunkFields(Fields):
    """What filters read of chunks, column by column: an object for each chunk would take three times the memory, and the
    interpreter would go through a million of them whenever it looks for garbage."""

    def __init__(
        self,
        ids: Sequence[str] = (),
        document_ids: Sequence[str] = (),
        sources: Sequence[str] = (),
        titles: Sequence[str] = (),
        headings: Sequence[str] = (),
        pages: Sequence[int | None] = (),
        starts: Sequence[int] = (),
        ends: Sequence[int] = (),
    ) -> None:
        self._documents = list(map(_of_document, document_ids, sources, titles))
        self._own: dict[str, Any] = {"id": list(ids), "heading": list(map(sys.intern, headings)), "page": list(pages)}
        self._own |= {"start": array("q", starts), "end": array("q", ends)}

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, slot: int) -> Mapping[str, Any]:
        own = {name: values[slot] for name, values in self._own.items()}
        return own | dict(zip(_SHARED, self._documents[slot], strict=True))

    def column(self, name: str) -> Sequence[Any]:
        if name in _SHARED:
            place = _SHARED.index(name)
            return [document[place] for document in self._documents]
        return self._own.get(name) or [None] * len(self)

    def joined(self, parts: Sequence[ChunkFields]) -> ChunkFields:
        found = ChunkFields()
        for part in (self, *parts):
            found._documents.extend(part._documents)
            for name, values in part._own.items():
                found._own[name].extend(values)
        return found


_SHARED = ("document_id", "source", "title", "folder")


@lru_cache(1024)
def _of_document(document_id: str, source: str, title: str) -> tuple[str, str, str, str | None]:
    """What a document's chunks share, once in memory."""
    return sys.intern(document_id), sys.intern(source), sys.intern(title), folder_of(source)


@lru_cache(1024)
def _headings(stored: str) -> tuple[str, ...]:
    return tuple(json.loads(stored))


def passage(index: str, rows: Snapshot, hit: Hit, text: str) -> Passage:
    """A chunk that was found; its text is what searches do not hold."""
    at, found = rows.fields[hit.slot], (hit.score, hit.similarity, hit.lexical)
    heading, place = _headings(at["heading"]), (at["start"], at["end"])
    return Passage(at["id"], at["document_id"], index, at["source"], at["title"], heading, text, *place, *found, at["page"])
