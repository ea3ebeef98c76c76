"""What retrieval gives to others: passages, documents and the report of a sync."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk of a document found by a search.

    `document.text[start:end] == text` always holds: offsets are characters of the document's extracted text.

    Parameters
    ----------
    id: the chunk's id, stable while its text and place are unchanged.
    document_id: id of the document it was cut from, for `document(...)`.
    index: full name of the index, `main.default.docs`.
    source: path of the file relative to the index's folder, with `/`.
    title: the document's title (first heading or file name).
    heading: headings above the chunk, outermost first.
    score: fused score, higher is better; comparable within one result only.
    similarity: cosine similarity of query and chunk, in [-1, 1].
    lexical: BM25 score, 0 where no query term occurs.
    page: 1-based page for paged formats.
    """

    id: str
    document_id: str
    index: str
    source: str
    title: str
    heading: tuple[str, ...]
    text: str
    start: int
    end: int
    score: float = 0.0
    similarity: float = 0.0
    lexical: float = 0.0
    page: int | None = None

    def to_dict(self) -> dict[str, Any]:
        # Not dataclasses.asdict, whose deep copies cost 2 ms a question.
        return {name: getattr(self, name) for name in self.__slots__} | {"heading": list(self.heading)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Passage:
        return cls(**{**row, "heading": tuple(row.get("heading") or ())})


@dataclass(frozen=True, slots=True)
class Document:
    """A stored document: the text its chunks' offsets count in."""

    id: str
    index: str
    source: str
    title: str
    text: str
    media_type: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not indexed, and why, in words for its owner."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one sync did. `changed` counts documents replaced; `embedded` chunks that went through the encoder."""

    index: str
    added: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    chunks: int = 0
    embedded: int = 0
    seconds: float = 0.0
    skipped: Sequence[Skipped] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """An index and how it stands. `status` is `NOT_SYNCED`, `SYNCING` or `ONLINE`; times are Unix seconds."""

    name: str
    path: str
    status: str
    documents: int
    chunks: int
    encoder: str
    created_at: float
    synced_at: float | None
    skipped: tuple[Skipped, ...] = ()
    report: SyncReport | None = None
    error: str = ""
    """Why the last sync failed, "" if it did not."""
    revision: str = ""
    """Another one whenever what it holds has changed, and the same as long as it has not, across restarts too."""
    chunking: Mapping[str, Any] = field(default_factory=dict)
    """How its documents are cut: `strategy`, `tokens`, `overlap`; see `retrieval.chunk.Chunking`."""
    warning: str = ""
    """Why its vectors are not looked up in the vector store but in memory, "" where they are."""

    @property
    def ready(self) -> bool:
        """Whether a search can find anything."""
        return self.chunks > 0


class Retriever(Protocol):
    """What an agent is handed to look things up."""

    async def __call__(self, query: str, *, k: int = 5) -> Sequence[Passage]:
        """The `k` best passages for `query`, best first."""
        ...
