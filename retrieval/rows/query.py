"""Questions to an index over rows: nearest, worded or both; filtered, reranked, sorted, counted by value, page by page."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from retrieval import filters, words
from retrieval import search as searching
from retrieval.ask import QUERY_TYPES
from retrieval.errors import BadRequest
from retrieval.guard import both
from retrieval.memory import Snapshot
from retrieval.postings import Postings
from retrieval.rows import facets
from retrieval.rows.rerank import DEPTH, Rerank, reranked
from retrieval.rows.schema import Spec, key_of
from retrieval.rows.store import RowIndex, RowStore
from retrieval.rows.write import Embed

Row = TypeVar("Row")
Scored = list[tuple[int, float]]
"""Slots with their scores, best first."""
Seen = Callable[[Snapshot], np.ndarray | None]
"""Which rows who asks may see; None for all."""


async def query(store: RowStore, name: str, asked: Mapping[str, Any], embed: Embed, rerank: Rerank, seen: Seen) -> dict[str, Any]:
    """Rows for a checked query (`retrieval.ask.read`): `{"columns", "rows"}` with, where asked for, `facets` and `debug`.

    Each row ends with its score. `asked["offset"]` and `asked["page"]` give a part of what `num_results` asks for.

    Raises
    ------
    BadRequest: the query does not fit the index.
    """
    index = await asyncio.to_thread(store.get, name)
    mode, text = QUERY_TYPES[asked["query_type"]], asked.get("query_text") or ""
    columns = _columns(index, asked)
    vector = await question(index, asked, mode, text, embed)
    if mode != "dense" and not text.strip():
        raise BadRequest(f"field 'query_text' must be the text to search for with query_type {asked['query_type']}")
    found = await asyncio.to_thread(Found, store, index, asked, mode, text, vector, seen)
    debug: dict[str, Any] = {}
    if wanted := asked.get("rerank"):
        _known(index, wanted["columns"])
        top = [found.text(slot, wanted["columns"]) for slot, _ in found.hits[:DEPTH]]
        found.hits, debug = await reranked(rerank, wanted["model"], text, top, found.hits)
    answer = {"columns": [*columns, "score"], "rows": await asyncio.to_thread(found.page, columns), "debug": debug}
    if asked.get("facets") and not asked.get("offset"):
        answer["facets"] = await asyncio.to_thread(found.facets)
    return answer


def _columns(index: RowIndex, asked: Mapping[str, Any]) -> list[str]:
    columns = asked.get("columns") or [name for name in index.spec.columns if name != index.spec.vector]
    _known(index, columns)
    return columns


def _known(index: RowIndex, columns: Sequence[str]) -> None:
    for column in columns:
        if index.spec.columns and column not in index.spec.columns:
            raise BadRequest(f"unknown column {column!r}: index {index.name} has {', '.join(index.spec.columns)}")


async def question(index: RowIndex, asked: Mapping[str, Any], mode: str, text: str, embed: Embed) -> np.ndarray | None:
    spec, given = index.spec, asked.get("query_vector")
    if mode == "lexical":
        return None
    if spec.subtype == "FULL_TEXT":
        raise BadRequest(f"index {index.name} has no vectors: query it with query_type FULL_TEXT")
    if given is not None:
        with np.errstate(over="ignore"):
            vector = np.asarray(given, np.float32)
            squared = vector @ vector
        if not np.isfinite(squared):
            raise BadRequest("field 'query_vector' must hold numbers whose squares 32 bits can hold")
        if spec.dimension and vector.shape != (spec.dimension,):
            raise BadRequest(f"field 'query_vector' must hold {spec.dimension} numbers, not {len(given)}")
        return vector
    if spec.query_model and text:
        made = np.asarray((await embed(spec.query_model, [text], None))[0], np.float32)
        if spec.vector and made.shape != (spec.dimension,):
            raise BadRequest(
                f"endpoint {spec.query_model!r} gave {made.size} dimensions; index {index.name} has {spec.dimension}"
            )
        return made
    raise BadRequest(f"index {index.name} has self-managed vectors: give query_vector, or query_type FULL_TEXT")


class Found:
    """What one query found."""

    def __init__(
        self,
        store: RowStore,
        index: RowIndex,
        asked: Mapping[str, Any],
        mode: str,
        text: str,
        vector: np.ndarray | None,
        seen: Seen,
    ) -> None:
        self._spec, self._asked, self._mode = index.spec, asked, mode
        self._query = searching.tidy(text)
        store.read(index, lambda rows: (None, self._look(rows, index, vector, seen)))

    def _look(self, rows: Snapshot, index: RowIndex, vector: np.ndarray | None, seen: Seen) -> list[int]:
        self.rows, asked, mode = rows, self._asked, self._mode
        self._mask = filters.of(rows, asked["filters"], index.spec.shown) if asked.get("filters") else None
        self._seen = seen(rows)
        self._vector = vector if index.spec.dimension else None
        self._words = _within(rows, index, asked["query_columns"]) if asked.get("query_columns") else rows
        least = asked.get("score_threshold")
        self.found = searching.search(
            self._words,
            self._query,
            self._vector,
            self._depth(),
            mode,
            mask=self._mask,
            seen=self._seen,
            collapse=False,
            diversity=asked.get("diversity", 0.0),
        )
        self.hits: Scored = [(hit.slot, hit.score) for hit in self.found if least is None or hit.score >= least]
        return [hit.slot for hit in self.found]

    def _depth(self) -> int:
        """How many hits there must be: whole orders are needed to sort, fifty to rerank, else up to the end of the page."""
        asked = self._asked
        if asked.get("sort_columns"):
            return asked["num_results"]
        return max(asked.get("offset", 0) + asked.get("page", asked["num_results"]), DEPTH if asked.get("rerank") else 0)

    def text(self, slot: int, columns: Sequence[str]) -> str:
        body = self.rows.fields[slot]
        return "\n".join(str(body[column]) for column in columns if body.get(column) is not None)

    def page(self, columns: Sequence[str]) -> list[list[Any]]:
        offset = self._asked.get("offset", 0)
        scored = self._sorted()[: self._asked["num_results"]]
        chosen = scored[offset : offset + self._asked.get("page", self._asked["num_results"])]
        return [[*(_shown(self._spec, self.rows, slot, column) for column in columns), score] for slot, score in chosen]

    def _sorted(self) -> Scored:
        fields, known = self.rows.fields, list(self._spec.columns)
        return in_order(self.hits, self._asked.get("sort_columns") or [], known, lambda slot, column: fields[slot].get(column))

    def facets(self) -> list[list[Any]]:
        """Counts over all rows that match: that meet the filter and, where only words are searched, hold one of them."""
        mask = both(self._mask, self._seen)
        matched = self.rows.alive if mask is None else self.rows.alive & mask
        if self._mode == "lexical":
            spans = self._words.spans(searching.terms(self._query, self._words.languages))
            matched = matched & (self._words.lexical(spans) > 0)
        return facets.count(self.rows, matched, facets.parse(self._asked["facets"]), self._spec.shown)


def in_order(
    scored: list[tuple[Row, float]], clauses: Sequence[str], columns: Sequence[str], value: Callable[[Row, str], Any]
) -> list[tuple[Row, float]]:
    """What was found, sorted by clauses as `price DESC`; what has no value comes last. Raises BadRequest: no such column."""
    for clause in reversed(clauses):
        column, _, order = clause.strip().rpartition(" ")
        column = column.strip()
        if column not in columns:
            raise BadRequest(f"unknown column {column!r} in 'sort_columns': there are {', '.join(columns)}")
        known = [each for each in scored if value(each[0], column) is not None]
        known.sort(key=lambda each, column=column: _sortable(value(each[0], column)), reverse=order.upper() == "DESC")
        scored = known + [each for each in scored if value(each[0], column) is None]
    return scored


def _within(rows: Snapshot, index: RowIndex, columns: Sequence[str]) -> Snapshot:
    """The snapshot with the words of some columns only; made once for each state of the index."""
    for column in columns:
        if column not in index.spec.texts:
            raise BadRequest(f"field 'query_columns' names {column!r}: text columns are {', '.join(index.spec.texts) or 'none'}")
    key = ("words", tuple(sorted(set(columns))))
    found = rows.cache.get(key)
    if found is None:
        ids, counts, sizes = [], [], []
        lengths = np.zeros(rows.size, np.float32)
        for slot in range(rows.size):
            fields = rows.fields[slot]
            terms = words.decode(words.encode(" ".join(str(fields[name]) for name in key[1] if fields.get(name))))
            ids.append(terms.ids)
            counts.append(terms.text.astype(np.float32))
            sizes.append(len(terms.ids))
            lengths[slot] = float(terms.text.sum())
        slots = np.repeat(np.arange(rows.size, dtype=np.int32), sizes)
        average = float(lengths.mean()) if rows.size else 0.0
        postings = (Postings.build(np.concatenate(ids), slots, np.concatenate(counts), lengths, average),) if ids else ()
        found = rows.cache[key] = replace(rows, postings=postings, lengths=lengths, cache={})
    return found


def scan(store: RowStore, name: str, count: int, after: str | None, seen: Seen) -> dict[str, Any]:
    """Rows in the order of their keys, after one: `{"data": [row, …], "last_primary_key"}`."""
    index = store.get(name)
    return store.read(index, lambda rows: _page(rows, index.spec, count, after, seen))


def _page(rows: Snapshot, spec: Spec, count: int, after: str | None, seen: Seen) -> tuple[dict[str, Any], list[int]]:
    order = rows.cache.get("order")
    if order is None:
        order = sorted((_sortable(rows.fields[i].get(spec.primary_key)), i) for i in map(int, np.flatnonzero(rows.alive)))
        rows.cache["order"] = order
    at = 0
    if after is not None:
        numeric = bool(order) and order[0][0][0] == 0
        try:
            mark = _sortable(_number(after) if numeric else after)
        except ValueError:
            raise BadRequest("field 'last_primary_key' must be a primary key of the index") from None
        at = bisect.bisect_right(order, (mark, len(rows.keys)))
    mask = seen(rows)
    taken = order[at : at + count] if mask is None else [each for each in order[at:] if mask[each[1]]][:count]
    data = []
    for _, slot in taken:
        row = dict(rows.fields[slot])
        if spec.vector:
            row[spec.vector] = [float(x) for x in rows.matrix[slot]]
        data.append(row)
    last = key_of(rows.fields[taken[-1][1]][spec.primary_key]) if taken else None
    return {"data": data, "last_primary_key": last}, [slot for _, slot in taken]


def _shown(spec: Spec, rows: Snapshot, slot: int, column: str) -> Any:
    if column == spec.vector:
        return [float(x) for x in rows.matrix[slot]]
    return rows.fields[slot].get(column)


def _number(key: str) -> float:
    try:
        return int(key)  # exact: one of 64 bits may be more than a float tells apart
    except ValueError:
        return float(key)


def _sortable(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float) else (1, str(value))
