"""The chunks of one index, as searches hold them."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import numpy as np
from sqlalchemy.engine import Connection

from retrieval.chunk_reads import folder_of, one_state
from retrieval.fields import Fields, Packed, coded
from retrieval.memory import Page, Snapshot
from retrieval.search import Hit
from retrieval.store import Store
from retrieval.types import Passage


class ChunkSource:
    """The chunks of one index, for `retrieval.memory`."""

    def __init__(self, store: Store, index_id: int, db: Connection | None = None) -> None:
        self._store, self._index_id, self._db = store, index_id, db

    @contextmanager
    def frozen(self) -> Iterator[ChunkSource]:
        with one_state(self._store.engine) as db:
            yield ChunkSource(self._store, self._index_id, db)

    def seqs(self) -> np.ndarray:
        return self._store.seqs(self._index_id, self._db)

    def pages(self, after: int) -> Iterator[Page]:
        for rows in self._store.records(self._index_id, after, self._db):
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

    def place(self, slot: int) -> tuple[Any, ...]:
        """A row's id, document, source, title, headings, start, end and page."""
        own = self._own
        shown = own["heading"][slot], own["start"][slot], own["end"][slot], own["page"][slot]
        return own["id"][slot], *self._documents[slot][:3], *shown

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

    def packed(self, slots: Sequence[int]) -> Packed:
        documents, document = coded(self._documents[slot][:3] for slot in slots)
        headings, heading = coded(self._own["heading"][slot] for slot in slots)
        page = np.array([_NO_PAGE if value is None else value for value in map(self._own["page"].__getitem__, slots)], np.int64)
        held: dict[str, Any] = {"documents": documents, "document": document, "headings": headings, "heading": heading}
        return held | {"page": page} | {name: np.array(self._own[name])[slots] for name in ("start", "end")}

    def unpacked(self, packed: Packed, keys: Sequence[str]) -> ChunkFields:
        found = ChunkFields()
        documents = [_of_document(*each) for each in packed["documents"]]
        headings = list(map(sys.intern, packed["headings"]))
        found._documents = list(map(documents.__getitem__, np.asarray(packed["document"]).tolist()))
        pages = [None if page == _NO_PAGE else page for page in np.asarray(packed["page"]).tolist()]
        heading = list(map(headings.__getitem__, np.asarray(packed["heading"]).tolist()))
        found._own = {"id": list(keys), "heading": heading, "page": pages}
        found._own |= {name: array("q", np.asarray(packed[name], np.int64).tobytes()) for name in ("start", "end")}
        return found


_NO_PAGE = -1 << 63
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
    fields = cast(ChunkFields, rows.fields)
    id_, document, source, title, heading, start, end, page = fields.place(hit.slot)
    scores = hit.score, hit.similarity, hit.lexical
    return Passage(id_, document, index, source, title, _headings(heading), text, start, end, *scores, page)
