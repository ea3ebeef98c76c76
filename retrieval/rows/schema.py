"""What an index over rows is made of: its columns, what is embedded, and the check of a row against them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from retrieval.errors import BadRequest

__all__ = ["Spec", "checked", "infer", "key_of", "read", "replace"]

KINDS = ("DIRECT_ACCESS", "DELTA_SYNC")
SUBTYPES = ("HYBRID", "FULL_TEXT", "VECTOR")
PIPELINES = ("TRIGGERED", "CONTINUOUS")
LONGEST, NESTED = 1 << 63, 16
"""Whole numbers are of 64 bits; lists are nested at most that deep."""
INTEGERS = frozenset({"int", "integer", "long", "bigint", "short", "smallint", "byte", "tinyint"})
NUMBERS = frozenset({"float", "double", "decimal", "real"})
STRINGS = frozenset({"string", "text", "varchar", "date", "timestamp"})
VECTORS = frozenset({"array<float>", "array<double>"})
MAX_DIMENSION = 4096


@dataclass(frozen=True, slots=True)
class Spec:
    """An index over rows, as its maker described it.

    Parameters
    ----------
    columns: type by name; empty where a source table decides.
    vector: the column of self-managed vectors, "" where none.
    text: the column that is embedded, "" where none; by endpoint `model`; questions by `query_model`.
    dimension: of the vectors; 0 while it is not known, or where there are none.
    chosen: columns that a sync takes over; empty for all.
    """

    primary_key: str
    kind: str
    subtype: str = "HYBRID"
    columns: Mapping[str, str] = field(default_factory=dict)
    vector: str = ""
    dimension: int = 0
    text: str = ""
    model: str = ""
    query_model: str = ""
    source: str = ""
    pipeline: str = "TRIGGERED"
    chosen: tuple[str, ...] = ()

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, stored: str) -> Spec:
        values = json.loads(stored)
        return cls(**{**values, "chosen": tuple(values["chosen"])})

    @property
    def texts(self) -> list[str]:
        """Columns that words are searched in."""
        return [name for name, kind in self.columns.items() if kind.partition("(")[0] in STRINGS and name != self.primary_key]

    @property
    def shown(self) -> list[str]:
        """Columns that a query may ask for or filter by."""
        return list(self.columns)


def read(body: Mapping[str, Any]) -> Spec:
    """The spec in a create request. Raises BadRequest naming the field and what it accepts."""
    key, kind = _text(body, "primary_key"), _text(body, "index_type").upper()
    if kind not in KINDS:
        raise BadRequest(f"field 'index_type' must be one of {', '.join(KINDS)}, not {kind!r}")
    subtype = str(body.get("index_subtype") or "HYBRID").upper()
    if subtype not in SUBTYPES:
        raise BadRequest(f"field 'index_subtype' must be one of {', '.join(SUBTYPES)}, not {subtype!r}")
    name = "direct_access_index_spec" if kind == "DIRECT_ACCESS" else "delta_sync_index_spec"
    given = body.get(name)
    if not isinstance(given, dict):
        raise BadRequest(f"field {name!r} must be an object: index_type {kind} needs it")
    vector, dimension = "", 0
    for entry in _entries(given, "embedding_vector_columns"):
        vector, size = _text(entry, "name"), entry.get("embedding_dimension")
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_DIMENSION:
            raise BadRequest(f"field 'embedding_dimension' of column {vector!r} must be a whole number from 1 to {MAX_DIMENSION}")
        dimension = size
    text = model = asked = ""
    for entry in _entries(given, "embedding_source_columns"):
        model = _text(entry, "embedding_model_endpoint_name")
        asked = entry.get("model_endpoint_name_for_query") or model
        if vector and not entry.get("name"):  # rows bring their vectors, and questions are embedded
            model = ""
        else:
            text = _text(entry, "name")
    if vector and text:
        raise BadRequest("an index has embedding_vector_columns or embedding_source_columns, not both")
    if not vector and not text and subtype != "FULL_TEXT":
        raise BadRequest(
            "the index needs embedding_vector_columns or embedding_source_columns; without vectors, index_subtype FULL_TEXT"
        )
    shared = {"vector": vector, "dimension": dimension, "text": text, "model": model, "query_model": str(asked)}
    if kind == "DELTA_SYNC":
        pipeline = str(given.get("pipeline_type") or "TRIGGERED").upper()
        if pipeline not in PIPELINES:
            raise BadRequest(f"field 'pipeline_type' must be one of {', '.join(PIPELINES)}, not {pipeline!r}")
        chosen = given.get("columns_to_sync") or given.get("columns_to_index") or []
        if not isinstance(chosen, list) or not all(isinstance(each, str) for each in chosen):
            raise BadRequest("field 'columns_to_sync' must be a list of column names")
        return Spec(key, kind, subtype, source=_text(given, "source_table"), pipeline=pipeline, chosen=tuple(chosen), **shared)
    columns = _schema(given)
    for name in filter(None, (key, vector, text)):
        if name not in columns:
            raise BadRequest(f"column {name!r} is not in schema_json, which has {', '.join(columns)}")
    if vector and columns[vector] not in VECTORS:
        raise BadRequest(f"column {vector!r} must be array<float>, not {columns[vector]}")
    return Spec(key, kind, subtype, columns=columns, **shared)


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadRequest(f"field {name!r} must be a non-empty string")
    return value


def _entries(given: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = given.get(name) or []
    if not isinstance(value, list) or len(value) > 1 or not all(isinstance(each, dict) for each in value):
        raise BadRequest(f"field {name!r} must be a list of one object")
    return value


def _schema(given: Mapping[str, Any]) -> dict[str, str]:
    value = given.get("schema_json")
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict) or not parsed or not all(isinstance(each, str) for each in parsed.values()):
        raise BadRequest(
            'field \'schema_json\' must be a JSON object of column types, as {"id": "string", "vec": "array<float>"}'
        )
    columns = {str(name): kind.lower().replace(" ", "") for name, kind in parsed.items()}
    for name, kind in columns.items():
        if not (kind.partition("(")[0] in INTEGERS | NUMBERS | STRINGS | {"boolean"} or kind.startswith("array<")):
            raise BadRequest(
                f"column {name!r} has type {kind!r}: accepted are string, int, long, float, double, boolean, array<…>"
            )
    return columns


def infer(rows: Sequence[Mapping[str, Any]], vector: str) -> dict[str, str]:
    """Column types of a source table, from its rows."""
    columns: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if value is None:
                columns.setdefault(name, "")
                continue
            kind = (
                "boolean"
                if isinstance(value, bool)
                else "long"
                if isinstance(value, int)
                else "double"
                if isinstance(value, float)
                else ("array<float>" if name == vector else "array<string>")
                if isinstance(value, list)
                else "string"
            )
            if columns.get(name) in ("", None):
                columns[name] = kind
            elif columns[name] != kind:
                columns[name] = "double" if {columns[name], kind} == {"long", "double"} else "string"
    return {name: kind or "string" for name, kind in columns.items()}


def key_of(value: Any) -> str:
    """A primary key as rows are named by it. Raises ValueError for what cannot be one."""
    if value is None or isinstance(value, bool | dict | list) or value == "":
        raise ValueError("has no primary key")
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if "\x00" in text:  # PostgreSQL stores none
        raise ValueError("has a NUL in its primary key")
    return text.encode("utf-8", "replace").decode()


def checked(spec: Spec, row: Any) -> tuple[str, dict[str, Any], np.ndarray | None]:
    """A row's key, columns and vector. Raises ValueError saying what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError("is not an object")
    key = key_of(row.get(spec.primary_key))
    if len(key) > 1000:
        raise ValueError("has a primary key of more than 1,000 characters")
    body: dict[str, Any] = {}
    for name, value in row.items():
        kind = spec.columns.get(name)
        if kind is None:
            raise ValueError(f"has column {name!r}, which the index does not have")
        if name != spec.vector:
            body[name] = _value(name, kind.partition("(")[0], value)
    vector = None
    if spec.vector:
        try:
            vector = np.asarray(row.get(spec.vector), np.float32)
        except (TypeError, ValueError, OverflowError):
            vector = np.empty(0, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            usable = vector.shape == (spec.dimension,) and np.isfinite(vector @ vector)  # a distance is of squares
        if not usable:
            raise ValueError(f"needs {spec.dimension} finite numbers in {spec.vector!r}")
    return key, body, vector


def _value(name: str, kind: str, value: Any) -> Any:
    if value is None:
        return None
    if kind in INTEGERS:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool) and -LONGEST <= value < LONGEST:
            return value
    elif kind in NUMBERS:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return value
    elif kind == "boolean":
        if isinstance(value, bool):
            return value
    elif kind.startswith("array<"):
        if isinstance(value, list):
            return _storable(name, value)
    elif isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    raise ValueError(f"has in {name!r} what is not of type {kind}")


def _deep(value: Any, most: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most < 0 or any(_deep(each, most - 1) for each in inner)


def _storable(name: str, value: list[Any]) -> list[Any]:
    """A list as JSON can hold it."""
    if _deep(value, NESTED):
        raise ValueError(f"has in {name!r} lists nested more than {NESTED} deep")
    try:
        return json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise ValueError(f"has in {name!r} a number that is not finite") from None
