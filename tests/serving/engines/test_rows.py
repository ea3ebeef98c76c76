from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema, TensorSpec

from serving.engines.rows import Refused, reader
from serving.engines.worker import Wire

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
        ({"dataframe_split": {"columns": ["price", "price"], "data": [[1, 2]]}}, "names a column twice"),
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


def test_missing_values_and_what_an_integer_cannot_hold() -> None:
    single = Schema([TensorSpec(np.dtype(np.float32), (-1, 2))])
    tensor, _ = read(single, {"inputs": [[1, None]]})
    assert (tensor.dtype, np.isnan(tensor).tolist()) == (np.float32, [[False, True]])
    with pytest.raises(Refused, match="takes numbers"):
        read(single, {"inputs": [["1", None]]})
    for kind, value in (("int64", 1.5), ("int64", 9.3e18), ("uint8", 256), ("uint8", -1), ("int64", None)):
        with pytest.raises(Refused, match="takes"):
            read(Schema([TensorSpec(np.dtype(kind), (-1, 2))]), {"inputs": [[1, value]]})
    assert read(Schema([TensorSpec(np.dtype("uint8"), (-1, 2))]), {"inputs": [[255, 0.0]]})[0].tolist() == [[255, 0]]


def test_columns_that_may_be_left_out_may_come_without_values() -> None:
    columns = [ColSpec("double", "x"), ColSpec("long", "n", required=False), ColSpec("string", "s", required=False)]
    schema = Schema([*columns, ColSpec("datetime", "d", required=False)])
    found, rows = read(schema, {"dataframe_records": [{"x": 1, "n": None, "d": None}, {"x": 2, "s": "t"}]})
    assert (rows, list(found), found["s"].tolist()) == (2, ["x", "s", "d"], [None, "t"])
    with pytest.raises(Refused, match="Column 'n' takes 64-bit integers; row 1 has None"):
        read(schema, {"dataframe_records": [{"x": 1, "n": 1}, {"x": 2}]})
    with pytest.raises(Refused, match="Column 'd' takes points in time as ISO 8601 text; row 0 has 1700000000000"):
        read(schema, {"dataframe_records": [{"x": 1, "d": 1_700_000_000_000}]})


def test_points_in_time_are_written_in_several_ways_in_one_request() -> None:
    schema = Schema([ColSpec("datetime", "d")])
    offsets = ["2024-05-05T02:00:00+02:00", "2024-05-05T00:00:00Z"]
    sent = ["2024-02-29T12:00:00", "2024-02-29", None, "1999-12-31T23:59:59.123456", *offsets]
    found, _ = read(schema, {"inputs": {"d": sent}})
    told = ["2024-02-29T12:00", "2024-02-29", "NaT", "1999-12-31T23:59:59.123456", "2024-05-05", "2024-05-05"]
    np.testing.assert_array_equal(found["d"], np.array(told, dtype="datetime64[ns]"))
    with pytest.raises(Refused, match=r"Column 'd' takes points in time as ISO 8601 text: .*not a date"):
        read(schema, {"inputs": {"d": ["2024-02-29", "not a date"]}})


def test_what_models_give_is_told_as_json() -> None:
    import pandas as pd
    from scipy.sparse import csr_matrix

    def told(value: object) -> object:
        return orjson.loads(Wire.frame(1, "result", value)[4:])[2]

    assert told(pd.Series([1.0, 2.0], index=["a", "a"])) == [{"0": 1.0}, {"0": 2.0}]  # as MLflow's server gives it
    assert told(pd.DataFrame({"t": [pd.Timestamp("2020-01-01"), pd.NaT]})) == [{"t": "2020-01-01T00:00:00"}, {"t": None}]
    assert told(csr_matrix([[1, 0]])) == [[1, 0]]
    assert told({1}) == [1]
    assert told(number for number in (1, 2)) == [1, 2]
