"""Retrieval: documents to passages that answer a question."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.embed import Encoder
    from retrieval.errors import BadRequest, EncoderError, NotFound, RetrievalError, SourceError
    from retrieval.index import Indexes, IndexInfo, full_name
    from retrieval.routes import router
    from retrieval.sync import Progress
    from retrieval.types import Document, Passage, Retriever, Skipped, SyncReport

__all__ = [
    "BadRequest",
    "Document",
    "Encoder",
    "EncoderError",
    "IndexInfo",
    "Indexes",
    "NotFound",
    "Passage",
    "Progress",
    "RetrievalError",
    "Retriever",
    "Skipped",
    "SourceError",
    "SyncReport",
    "full_name",
    "router",
]

_HOMES = {
    "embed": ("Encoder",),
    "errors": ("BadRequest", "EncoderError", "NotFound", "RetrievalError", "SourceError"),
    "index": ("IndexInfo", "Indexes", "full_name"),
    "routes": ("router",),
    "sync": ("Progress",),
    "types": ("Document", "Passage", "Retriever", "Skipped", "SyncReport"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"retrieval.{module}"), name)
    raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
