"""Rows as passages and documents: what agents search and what a citation of a row opens."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from retrieval.errors import NotFound
from retrieval.memory import Snapshot
from retrieval.rows.query import Found, Seen, question
from retrieval.rows.schema import Spec
from retrieval.rows.store import RowIndex, RowStore
from retrieval.rows.write import Embed
from retrieval.types import Document, Passage

TITLES = ("title", "name", "heading", "subject")
SOURCES = ("source", "url", "uri", "path", "doc_uri")
"""Columns that say what a row is called and where it is from; else its key does."""
_KINDS = {"hybrid": "HYBRID", "dense": "ANN", "lexical": "FULL_TEXT"}


async def search(
    store: RowStore,
    name: str,
    text: str,
    k: int,
    mode: str,
    filters: Mapping[str, Any] | str | None,
    embed: Embed,
    seen: Seen,
    diversity: float = 0.0,
) -> list[Passage]:
    """The `k` best rows, each a passage as long as its text. By words alone where the index cannot embed a question.

    Raises
    ------
    NotFound: no such index.
    BadRequest: a filter that does not fit it.
    """
    index = await asyncio.to_thread(store.get, name)
    spec = index.spec
    if spec.subtype == "FULL_TEXT" or not spec.query_model:
        mode = "lexical"
    asked = {"query_type": _KINDS[mode], "query_text": text, "num_results": k, "filters": filters, "diversity": diversity}
    vector = await question(index, asked, mode, text, embed)
    found = await asyncio.to_thread(Found, store, index, asked, mode, text, vector, seen)
    answer = []
    for hit in found.found[:k]:
        body = dict(found.rows.fields[hit.slot])
        read, key = _text(spec, body), found.rows.keys[hit.slot]
        heading = (_title(body, key),)
        passage = Passage(key, key, index.name, _source(body, key), heading[0], heading, read, 0, len(read))
        answer.append(replace(passage, score=hit.score, similarity=_cosine(hit.similarity), lexical=hit.lexical))
    return answer


def document(store: RowStore, name: str, key: str, seen: Seen) -> Document:
    """A row as a document, by its primary key. Raises NotFound."""
    index = store.get(name)

    def look(rows: Snapshot) -> tuple[dict[str, Any] | None, list[int]]:
        slot, mask = rows.slot_of().get(key), seen(rows)
        return (None, []) if slot is None or (mask is not None and not mask[slot]) else (dict(rows.fields[slot]), [slot])

    body = store.read(index, look)
    if body is None:
        raise NotFound(f"index {name} has no document {key!r}: it may have been deleted or replaced")
    return _document(index, key, body)


def _cosine(score: float) -> float:
    """The cosine of unit vectors whose distance d gave the score 1 / (1 + d²)."""
    return max(1.0 - (1.0 / score - 1.0) / 2.0, -1.0) if score > 0 else 0.0


def _document(index: RowIndex, key: str, body: Mapping[str, Any]) -> Document:
    text = _text(index.spec, body)
    made = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return Document(key, index.name, _source(body, key), _title(body, key), text, "text/plain", made)


def _text(spec: Spec, body: Mapping[str, Any]) -> str:
    """What is read of a row: the column that is embedded, else all columns of words."""
    names = [spec.text] if spec.text else spec.texts
    return "\n".join(str(body[name]) for name in names if body.get(name))


def _title(body: Mapping[str, Any], key: str) -> str:
    return next((str(body[name]) for name in TITLES if body.get(name)), key)


def _source(body: Mapping[str, Any], key: str) -> str:
    return next((str(body[name]) for name in SOURCES if body.get(name)), key)
