"""Requests of the vector search API, checked: what a query, a scan or a change of rows asks for."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from retrieval import filters as filtering
from retrieval.errors import BadRequest
from retrieval.rows import facets
from retrieval.rows.rerank import BUILT_IN

QUERY_TYPES = {"HYBRID": "hybrid", "ANN": "dense", "FULL_TEXT": "lexical"}
MAX_RESULTS = 10_000
MAX_PAGE = 1000
"""Rows of one answer; the rest comes by page token."""

_NUMBER = (int, float)
FIELDS: Mapping[str, Any] = {
    "columns": list,
    "query_text": str,
    "query_vector": list,
    "num_results": int,
    "query_type": str,
    "score_threshold": _NUMBER,
    "filters_json": str,
    "filter_string": str,
    "sort_columns": list,
    "facets": list,
    "query_columns": list,
    "reranker": dict,
    "columns_to_rerank": list,
    "debug_level": int,
    # Sent by clients, and of no effect here.
    "endpoint_name": str,
    "query_source": str,
    "query_experiment_config": dict,
}
_WANTED = {list: "a list", dict: "an object", str: "a string", int: "a whole number"}
_STRINGS = ("columns", "sort_columns", "facets", "query_columns", "columns_to_rerank")


def read(body: Mapping[str, Any]) -> dict[str, Any]:
    """A query with its defaults. Raises BadRequest naming the field and what it accepts."""
    given = {key: value for key, value in body.items() if value is not None}
    for key, value in given.items():
        if key not in FIELDS:
            raise BadRequest(f"field {key!r} is not supported: a query takes {', '.join(FIELDS)}")
        if not isinstance(value, FIELDS[key]) or isinstance(value, bool):
            raise BadRequest(f"field {key!r} must be {_WANTED.get(FIELDS[key], 'a number')}")
    for key in _STRINGS:
        if not all(isinstance(each, str) for each in given.get(key, ())):
            raise BadRequest(f"unknown column in {key!r}: it must be a list of column names")
    kind = given.get("query_type", "ANN").upper()
    if kind not in QUERY_TYPES:
        raise BadRequest(f"unknown query_type {given['query_type']!r}: accepted are {', '.join(QUERY_TYPES)}")
    count = given.get("num_results", 10)
    if not 1 <= count <= MAX_RESULTS:
        raise BadRequest(f"field 'num_results' must be between 1 and {MAX_RESULTS}, not {count}")
    for clause in given.get("sort_columns", ()):
        if not re.fullmatch(r"\S.* (ASC|DESC)", clause, re.I):
            raise BadRequest("field 'sort_columns' must hold clauses as 'price ASC' or 'rating DESC'")
    asked: dict[str, Any] = {"query_type": kind, "num_results": count}
    if "query_vector" in given:
        vector = given["query_vector"]
        if not vector or not all(isinstance(x, _NUMBER) and not isinstance(x, bool) and math.isfinite(x) for x in vector):
            raise BadRequest("field 'query_vector' must be a list of finite numbers")
        asked["query_vector"] = vector
    if not given.get("query_text", "").strip() and "query_vector" not in asked:
        raise BadRequest("field 'query_text' must be the text to search for (or give query_vector)")
    if "filters_json" in given and "filter_string" in given:
        raise BadRequest("give 'filters_json' or 'filter_string', not both")
    if given.get("filters_json"):
        asked["filters"] = filtering.parse(given["filters_json"])
    elif given.get("filter_string", "").strip():
        asked["filters"] = given["filter_string"]
    if reranker := _reranker(given):
        asked["rerank"] = reranker
    if given.get("facets"):
        facets.parse(given["facets"])
    kept = ("columns", "query_text", "score_threshold", "sort_columns", "debug_level", "facets", "query_columns")
    return asked | {name: given[name] for name in kept if given.get(name) not in (None, [])}


def _reranker(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """`{"model", "columns"}` of what is to be reranked by what; None where nothing is."""
    config = given.get("reranker") or {}
    parameters = config.get("parameters") or {}
    model = config.get("model") or BUILT_IN
    columns = (parameters.get("columns_to_rerank") if isinstance(parameters, dict) else None) or given.get("columns_to_rerank")
    if not config and not columns:
        return None
    if not isinstance(model, str) or not isinstance(columns, list) or not all(isinstance(each, str) for each in columns):
        raise BadRequest(
            "field 'reranker' must be an object with the columns to look at, as"
            ' {"model": "databricks_reranker", "parameters": {"columns_to_rerank": ["text"]}}'
        )
    return {"model": model, "columns": columns}


def scan(body: Mapping[str, Any]) -> dict[str, Any]:
    """A scan: `{"op", "count", "after"}`."""
    count, after = body.get("num_results", 10), body.get("last_primary_key")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_RESULTS:
        raise BadRequest(f"field 'num_results' must be a whole number between 1 and {MAX_RESULTS}")
    if not isinstance(after, str | int | float | None):
        raise BadRequest("field 'last_primary_key' must be a primary key of the index")
    return {"op": "scan", "count": count, "after": None if after in (None, "") else str(after)}


def inputs(body: Mapping[str, Any]) -> list[Any]:
    """The rows of an upsert."""
    value = body.get("inputs_json")
    try:
        rows = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list) or not rows:
        raise BadRequest("field 'inputs_json' must be a JSON list of rows, as a string")
    return rows


def keys(given: Any) -> list[str]:
    """The keys of a deletion."""
    if not isinstance(given, list) or not given or not all(isinstance(key, str | int) for key in given):
        raise BadRequest("field 'primary_keys' must be a list of primary keys")
    return [str(key) for key in given]


def token(body: Mapping[str, Any], offset: int) -> str:
    """A page token: the query, and where its next page begins. It grants nothing: the next page is asked for anew."""
    return base64.urlsafe_b64encode(json.dumps({"query": dict(body), "offset": offset}).encode()).decode()


def untoken(body: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The query's body, and where its next page begins."""
    try:
        value = json.loads(base64.urlsafe_b64decode(str(body.get("page_token"))))
        query, offset = dict(value["query"]), value["offset"]
        if not isinstance(offset, int) or not 0 < offset < MAX_RESULTS:
            raise ValueError
        read(query)
        return query, offset
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise BadRequest("field 'page_token' must be the next_page_token of an answer") from None
