"""Rows for a classical model: Databricks' scoring formats read against the model's MLflow signature.

The check is compiled once from the signature, so that a request costs no DataFrame per row; what is wrong is said with the
column's name. Runs in the model's own process.

Sources: https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#json-input and
https://docs.databricks.com/aws/en/machine-learning/model-serving/score-custom-model-endpoints
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_FLOATS = frozenset((int, float, type(None)))
_TEXTS = frozenset((str, type(None)))
_NUMBERS = "biuf"


class Refused(Exception):
    """A request that does not fit the model; `param` is the field or column at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param


Columns = dict[str, np.ndarray]
Read = Callable[[Mapping[str, Any]], tuple[Any, int]]
"""`read(payload)`: what the model is handed (columns, or whatever it takes as it is) and how many rows that is."""


def reader(signature: Any) -> tuple[Read, bool]:
    """What reads requests for a model of this signature (None: none), and whether it gives `Columns`."""
    schema = getattr(signature, "inputs", None)
    if schema is None:
        return _open, False
    if schema.is_tensor_spec():
        return _tensors(schema), False
    kinds = [_KINDS.get(getattr(spec.type, "name", "")) for spec in schema.inputs]
    if not schema.has_input_names() or None in kinds:
        optional = {spec.name for spec in schema.inputs if not spec.required}
        return lambda payload: _loose(payload, schema.input_names() if schema.has_input_names() else None, optional), False
    return Table(schema, kinds), True


def typed(payload: Mapping[str, Any]) -> tuple[Any, int]:
    """For a `PythonModel` whose signature are its type hints: the list as it was sent, which the model checks itself."""
    key, value = split(payload)
    if key.startswith("dataframe"):
        return _open(payload)
    values = value if isinstance(value, list) else [value]
    return values, len(values)


def listed(payload: Mapping[str, Any]) -> tuple[Any, int]:
    """For a chain without a signature: its rows as they were sent, each with the keys that it has and no others."""
    _, value = split(payload)
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        return value, len(value)
    return _open(payload)


def split(payload: Mapping[str, Any]) -> tuple[str, Any]:
    """The one format a request uses, and its value."""
    used = [key for key in FORMATS if payload.get(key) is not None]
    if len(used) != 1:
        raise Refused(f"Send exactly one of {', '.join(FORMATS)}; the body has {' and '.join(used) or 'none of them'}.")
    return used[0], payload[used[0]]


class Table:
    """Requests for a signature of plain, named columns."""

    def __init__(self, schema: Any, kinds: Sequence[Any]) -> None:
        self._specs = [(spec.name, bool(spec.required), kind) for spec, kind in zip(schema.inputs, kinds, strict=True)]
        self.names = [name for name, _, _ in self._specs]
        self._optional = frozenset(name for name, required, _ in self._specs if not required)
        self._doubles = all(spec.type.name == "double" and spec.required for spec in schema.inputs)

    def rows(self, payload: Mapping[str, Any]) -> list[list[Any]] | None:
        """The rows as they were sent, where they are numbers in the signature's order for columns of doubles alone; else None,
        and a call looks closer. Saves an array a column for each request."""
        if not self._doubles:
            return None
        sent = payload.get("dataframe_split")
        if sent is None:
            data = payload.get("instances")
        else:
            data = sent.get("data") if isinstance(sent, Mapping) and sent.get("columns") == self.names else None
        if not data or type(data) is not list:
            return None
        width = len(self.names)
        for row in data:
            if type(row) is not list or len(row) != width or not set(map(type, row)) <= _FLOATS:
                return None
        return data

    def __call__(self, payload: Mapping[str, Any]) -> tuple[Columns, int]:
        values, rows = _columns(payload, self.names, self._optional)
        columns: Columns = {}
        for name, required, kind in self._specs:
            given = values.get(name)
            if given is None:
                if required:
                    there = ", ".join(map(str, list(values)[:20])) or "none"
                    raise Refused(f"Column {name!r} is missing. The model takes {', '.join(self.names)}; sent: {there}.", name)
                continue
            try:
                columns[name] = kind(name, given)
            except Refused:
                if required or any(value is not None for value in given):
                    raise  # a column may be left out, and be sent without values as well
        return columns, rows


def _columns(
    payload: Mapping[str, Any], names: Sequence[str], optional: Collection[str] = ()
) -> tuple[dict[str, list[Any]], int]:
    """Columns by name, whatever format they came in, and the number of rows."""
    key, value = split(payload)
    if key == "dataframe_split":
        if not isinstance(value, Mapping) or not isinstance(value.get("data"), list):
            raise Refused("'dataframe_split' must be an object with 'columns' and 'data'.", key)
        columns = value.get("columns")
        if columns is None:
            columns = list(names)
        if not isinstance(columns, list) or not all(isinstance(name, str | int) for name in columns):
            raise Refused("'dataframe_split.columns' must be an array of names.", "dataframe_split.columns")
        if len(set(columns)) < len(columns):
            raise Refused("'dataframe_split.columns' names a column twice.", "dataframe_split.columns")
        return _transposed(value["data"], columns, "dataframe_split.data")
    if key == "inputs" and isinstance(value, Mapping):
        table = {name: given if isinstance(given, list) else [given] for name, given in value.items()}
        lengths = {name: len(given) for name, given in table.items()}
        if len(set(lengths.values())) > 1:
            raise Refused(f"The columns of 'inputs' differ in length: {lengths}.", key)
        return table, next(iter(lengths.values()), 0)
    if not isinstance(value, list):
        raise Refused(f"{key!r} must be an array of rows.", key)
    if not value:
        return {name: [] for name in names}, 0
    if not isinstance(value[0], Mapping):
        if key == "dataframe_records":
            raise Refused("'dataframe_records' must be an array of objects, one a row.", key)
        if len(names) == 1 and not isinstance(value[0], list):
            return {names[0]: value}, len(value)
        return _transposed(value, names, key)
    table = {}
    known: dict[str, None] = {}
    for position, row in enumerate(value):
        if not isinstance(row, Mapping):
            raise Refused(f"Row {position} of {key!r} is no object, but the rows before it are.", key)
        known.update(dict.fromkeys(row))
    for name in known:
        try:
            table[name] = [row.get(name) for row in value] if name in optional else [row[name] for row in value]
        except KeyError:
            if name in names:
                position = next(index for index, row in enumerate(value) if name not in row)
                raise Refused(f"Row {position} of {key!r} lacks column {name!r}.", name) from None
    return table, len(value)


def _transposed(data: list[Any], columns: Sequence[str], where: str) -> tuple[dict[str, list[Any]], int]:
    width = len(columns)
    for position, row in enumerate(data):
        if not isinstance(row, list):
            raise Refused(f"Row {position} of {where!r} is no array.", where)
        if len(row) != width:
            raise Refused(
                f"Row {position} of {where!r} has {len(row)} values for {width} columns ({', '.join(map(str, columns))}).", where
            )
    if not data:
        return {name: [] for name in columns}, 0
    return {name: list(column) for name, column in zip(columns, zip(*data, strict=True), strict=True)}, len(data)


# --- one column ---


def _wrong(name: str, values: Sequence[Any], wanted: str, fits: Callable[[Any], bool]) -> Refused:
    position = next((index for index, value in enumerate(values) if not fits(value)), 0)
    shown = repr(values[position]) if values else "nothing"
    return Refused(f"Column {name!r} takes {wanted}; row {position} has {shown[:60]}.", name)


def _float(dtype: Any) -> Any:
    def read(name: str, values: list[Any]) -> np.ndarray:
        if not set(map(type, values)) <= _FLOATS:
            raise _wrong(name, values, "numbers", lambda value: type(value) in _FLOATS)
        return np.array(values, dtype=dtype)

    return read


def _integer(dtype: Any) -> Any:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max

    def fits(value: Any) -> bool:
        return (type(value) is int or (type(value) is float and value.is_integer())) and low <= value <= high

    def read(name: str, values: list[Any]) -> np.ndarray:
        if not all(map(fits, values)):
            raise _wrong(name, values, f"{np.dtype(dtype).itemsize * 8}-bit integers", fits)
        return np.array(values, dtype=dtype)

    return read


def _boolean(name: str, values: list[Any]) -> np.ndarray:
    if any(type(value) is not bool for value in values):
        raise _wrong(name, values, "true or false", lambda value: type(value) is bool)
    return np.array(values, dtype=bool)


def _objects(values: Sequence[Any]) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def _text(name: str, values: list[Any]) -> np.ndarray:
    if not set(map(type, values)) <= _TEXTS:
        raise _wrong(name, values, "text", lambda value: type(value) in _TEXTS)
    return _objects(values)


def _binary(name: str, values: list[Any]) -> np.ndarray:
    try:
        return _objects([None if value is None else base64.b64decode(value, validate=True) for value in values])
    except (binascii.Error, TypeError, ValueError):
        raise Refused(f"Column {name!r} takes bytes as base64 text.", name) from None


def _datetime(name: str, values: list[Any]) -> np.ndarray:
    import pandas as pd

    if not set(map(type, values)) <= _TEXTS:  # of a number nobody knows what it counts
        raise _wrong(name, values, "points in time as ISO 8601 text", lambda value: type(value) in _TEXTS)
    texts = pd.Series(values, dtype=object)
    try:  # rows may tell theirs to the day, to the second or to its parts, with an offset or without: those are UTC
        try:
            read = pd.to_datetime(texts, format="ISO8601", utc=True)
        except ValueError:
            read = pd.to_datetime(texts, format="mixed", utc=True)
        if (odd := (read.dt.year < 1678) | (read.dt.year > 2261)).any():  # in nanoseconds they would wrap round
            raise ValueError(f"{values[int(odd.argmax())]} is outside of the years 1678 to 2261")
    except (ValueError, TypeError, OverflowError) as error:
        why = " ".join(str(error).split())
        raise Refused(f"Column {name!r} takes points in time as ISO 8601 text: {why}"[:300], name) from None
    return read.dt.tz_localize(None).to_numpy(dtype="datetime64[ns]")


_KINDS: dict[str, Any] = {
    "double": _float(np.float64),
    "float": _float(np.float32),
    "integer": _integer(np.int32),
    "long": _integer(np.int64),
    "boolean": _boolean,
    "string": _text,
    "binary": _binary,
    "datetime": _datetime,
}


# --- other signatures ---


def _array(value: Any, dtype: Any, shape: Sequence[int], what: str) -> np.ndarray:
    try:
        made = np.asarray(value)
    except ValueError:
        raise Refused(f"{what} is ragged: its rows differ in length.", what) from None
    if dtype.kind == "f" and made.dtype == object and set(map(type, made.flat)) <= _FLOATS:
        made = made.astype(np.float64)  # a number that is missing
    if dtype.kind in _NUMBERS and made.size and made.dtype.kind not in _NUMBERS:
        raise Refused(f"{what} takes numbers ({dtype.name}); it holds something else.", what)
    if len(shape) == made.ndim + 1 and shape[0] == -1:
        made = made[np.newaxis]  # one row, sent bare
    if len(shape) != made.ndim or any(want not in (-1, have) for want, have in zip(shape, made.shape, strict=True)):
        raise Refused(f"{what} has shape {made.shape}; the model takes {tuple(shape)}.", what)
    if dtype.kind in "iu" and made.size and made.dtype != dtype:  # NumPy would make another number of it
        limits = np.iinfo(dtype)
        odd = (
            (made < limits.min)
            | (made >= limits.max + 1)
            | (np.not_equal(np.floor(made), made) if made.dtype.kind == "f" else False)
        )
        if odd.any():
            raise Refused(f"{what} takes integers from {limits.min} to {limits.max}; it holds {made[odd].flat[0]}.", what)
    return made.astype(dtype, copy=False)


def _tensors(schema: Any) -> Read:
    specs = [(spec.name, spec.type, spec.shape) for spec in schema.inputs]

    def read(payload: Mapping[str, Any]) -> tuple[Any, int]:
        key, value = split(payload)
        if key.startswith("dataframe"):
            raise Refused(f"This model takes tensors: send 'instances' or 'inputs', not {key!r}.", key)
        if len(specs) == 1 and not isinstance(value, Mapping):
            _, dtype, shape = specs[0]
            made = _array(value, dtype, shape, f"{key!r}")
            return made, len(made)
        if key == "instances":
            rows = value if isinstance(value, list) and all(isinstance(row, Mapping) for row in value) else []
            value = {name: [row.get(name) for row in rows] for name, _, _ in specs if any(name in row for row in rows)}
        given = value if isinstance(value, Mapping) else {}
        tensors = {}
        for name, dtype, shape in specs:
            if name not in given:
                raise Refused(f"Tensor {name!r} is missing. The model takes {', '.join(str(each[0]) for each in specs)}.", name)
            tensors[name] = _array(given[name], dtype, shape, f"{name!r}")
        return tensors, len(next(iter(tensors.values())))

    return read


def _loose(payload: Mapping[str, Any], names: Sequence[str] | None, optional: Collection[str]) -> tuple[Any, int]:
    """A DataFrame of whatever was sent, for signatures that MLflow itself enforces (arrays, objects, maps)."""
    import pandas as pd

    if names is None:
        return _open(payload)
    columns, rows = _columns(payload, names, optional)
    return pd.DataFrame({name: _objects(values) for name, values in columns.items()}), rows


def _open(payload: Mapping[str, Any]) -> tuple[Any, int]:
    """For a model without a signature: what the format says, unchecked."""
    import pandas as pd

    key, value = split(payload)
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        return pd.DataFrame(value), len(value)  # what a row lacks is missing there, as in MLflow's own server
    if key.startswith("dataframe"):
        columns, rows = _columns(payload, ())
        return pd.DataFrame(columns, index=None if columns else pd.RangeIndex(rows)), rows
    if isinstance(value, Mapping):
        return {name: np.asarray(given) for name, given in value.items()}, 1
    try:
        made = np.asarray(value if isinstance(value, list) else [value])
    except ValueError:
        raise Refused(f"{key!r} is ragged: its rows differ in length.", key) from None
    return made, len(made)
