"""Queries of the vector search API to an index over a folder, whose rows are passages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from retrieval.ask import QUERY_TYPES
from retrieval.errors import BadRequest
from retrieval.guard import NOBODY, Groups
from retrieval.rows.query import in_order
from retrieval.rows.rerank import DEPTH, reranked
from retrieval.types import Passage

COLUMNS = ("id", "document_id", "source", "title", "heading", "text", "start", "end", "page", "similarity", "lexical")
MAX_K = 1000


class Folders(Protocol):
    """What is needed of `retrieval.index.Indexes`."""

    async def asearch(
        self,
        name: str,
        query: str,
        *,
        k: int = 5,
        mode: str = "hybrid",
        filters: Mapping[str, Any] | str | None = None,
        groups: Groups = NOBODY,
    ) -> list[Passage]: ...

    async def rerank(self, model: str, query: str, texts: Sequence[str]) -> np.ndarray: ...

    def warning(self, name: str, query: str) -> str: ...

    def facets(self, name: str, asked: Mapping[str, Any], groups: Groups = NOBODY) -> list[list[Any]]: ...


async def query(folders: Folders, name: str, asked: Mapping[str, Any], groups: Groups) -> dict[str, Any]:
    """Rows for a checked query, as `retrieval.rows.query.query` gives them.

    Raises
    ------
    BadRequest: the query does not fit such an index.
    """
    text = asked.get("query_text")
    if not text:
        raise BadRequest("field 'query_text' must be the text to search for: the index embeds questions itself")
    columns = asked.get("columns") or ["id", "source", "text"]
    wanted = asked.get("rerank")
    for column in (*columns, *(wanted["columns"] if wanted else ())):
        if column not in COLUMNS:
            raise BadRequest(f"unknown column {column!r}: accepted are {', '.join(COLUMNS)}")
    if set(asked.get("query_columns") or ()) - {"text"}:
        raise BadRequest("field 'query_columns' may name 'text' alone: an index over a folder searches its text")
    offset, page = asked.get("offset", 0), asked.get("page", asked["num_results"])
    depth = asked["num_results"] if asked.get("sort_columns") else max(offset + page, DEPTH if wanted else 0)
    found = await folders.asearch(
        name, text, k=min(depth, MAX_K), mode=QUERY_TYPES[asked["query_type"]], filters=asked.get("filters"), groups=groups
    )
    least = asked.get("score_threshold", float("-inf"))
    rows = [passage.to_dict() for passage in found if passage.score >= least]
    scored: list[tuple[dict[str, Any], float]] = [(row, row["score"]) for row in rows]
    debug: dict[str, Any] = {}
    if wanted:
        texts = ["\n".join(str(row[c]) for c in wanted["columns"] if row[c] is not None) for row in rows[:DEPTH]]
        scored, debug = await reranked(folders.rerank, wanted["model"], text, texts, scored)
    if QUERY_TYPES[asked["query_type"]] == "hybrid" and (warning := await asyncio.to_thread(folders.warning, name, text)):
        debug = {**debug, "warnings": [*debug.get("warnings", ()), warning]}
    scored = in_order(scored, asked.get("sort_columns") or [], COLUMNS, lambda row, column: row[column])
    chosen = scored[: asked["num_results"]][offset : offset + page]
    data = [[*(row[column] for column in columns), score] for row, score in chosen]
    answer: dict[str, Any] = {"columns": [*columns, "score"], "rows": data, "debug": debug}
    if asked.get("facets") and not offset:
        answer["facets"] = await asyncio.to_thread(folders.facets, name, asked, groups)
    return answer
