from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema, TensorSpec

from serving.engines.rows import Refused, reader

MIXED = Schema(
    [
        ColSpec(DataType.double, "price"),
        ColSpec(DataType.long, "count"),
        ColSpec(DataType.string, "name"),
        ColSpec(DataType.boolean, "new", required=False),
    ]
)
ROW = {"price": 1.5, "count": 2, "name": "x"}


def read(schema: Schema, payload: dict[str, Any]) -> Any:
    return reader(ModelSignature(inputs=schema))[0](payload)


@pytest.mark.parametrize(
    "payload",
    [
        {"dataframe_split": {"columns": ["name", "price", "count"], "data": [["x", 1.5, 2]], "index": [0]}},
        {"dataframe_records": [ROW]},
        {"instances": [ROW | {"extra": "is left out"}]},
        {"inputs": {"price": [1.5], "count": [2.0], "name": ["x"]}},
        {"inputs": ROW},
    ],
)
def test_every_format_means_the_same(payload: dict[str, Any]) -> None:
    columns, rows = read(MIXED, payload)
    assert rows == 1
    assert {name: (values.dtype.kind, values.tolist()) for name, values in columns.items()} == {
        "price": ("f", [1.5]),
        "count": ("i", [2]),
        "name": ("O", ["x"]),
    }


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"dataframe_records": [{"price": 1, "name": "x"}]}, "Column 'count' is missing"),
        ({"dataframe_records": [ROW, {"price": 1, "name": "x"}]}, "Row 1 of 'dataframe_records' lacks column 'count'"),
        ({"dataframe_records": [ROW, ROW | {"price": "1"}]}, "Column 'price' takes numbers; row 1 has '1'"),
        ({"dataframe_records": [ROW | {"price": True}]}, "Column 'price' takes numbers; row 0 has True"),
        ({"dataframe_records": [ROW | {"count": 1.5}]}, "Column 'count' takes 64-bit integers; row 0 has 1.5"),
        ({"dataframe_records": [ROW | {"count": None}]}, "Column 'count' takes 64-bit integers; row 0 has None"),
        ({"dataframe_records": [ROW | {"count": 2**63}]}, "Column 'count' takes 64-bit integers"),
        ({"dataframe_records": [ROW | {"name": 3}]}, "Column 'name' takes text"),
        ({"dataframe_records": [ROW | {"new": 1}]}, "Column 'new' takes true or false"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [1]]}}, "Row 1 of 'dataframe_split.data' has 1 values"),
        ({"inputs": {"price": [1, 2], "count": [1], "name": ["x"]}}, "differ in length"),
        ({"dataframe_split": [], "instances": []}, "exactly one of"),
        ({}, "exactly one of"),
        ({"instances": "x"}, "array of rows"),
    ],
)
def test_what_is_wrong_is_named(payload: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        read(MIXED, payload)


def test_nothing_known_of_a_number_is_not_a_number() -> None:
    columns, _ = read(MIXED, {"dataframe_records": [ROW | {"price": None}]})
    assert np.isnan(columns["price"][0])


def test_tensors_keep_their_shape() -> None:
    schema = Schema([TensorSpec(np.dtype(np.float32), (-1, 3))])
    tensor, rows = read(schema, {"instances": [[1, 2, 3], [4, 5, 6]]})
    assert (tensor.dtype, tensor.shape, rows) == (np.float32, (2, 3), 2)
    for wrong, message in (([[1, 2]], "has shape"), ([[1, 2, 3], [1]], "ragged"), ([["a", "b", "c"]], "takes numbers")):
        with pytest.raises(Refused, match=message):
            read(schema, {"inputs": wrong})
