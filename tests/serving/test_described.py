"""What `get_open_api` tells of a model of rows: bodies that the model takes are valid, and those that it refuses are not."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator

from agents.tools.signature import schema
from serving.described import described
from serving.endpoint import Endpoint
from serving.signature import Signature

_OBJECT = {"a": {"type": "string", "required": True}, "b": {"type": "array", "items": {"type": "long"}, "required": False}}
COLUMNS = [
    {"type": "double", "name": "größe", "required": True},
    {"type": "object", "name": "obj", "properties": _OBJECT},
    {"type": "map", "name": "map", "values": {"type": "boolean"}, "required": True},
    {"type": "datetime", "name": "when", "required": False},
]
ROW = {"größe": 1.5, "obj": {"a": "x", "b": [1]}, "map": {"k": True}}
CELLS = list(ROW.values())
PARAMS = [{"name": "t", "type": "double", "default": 0.5}, {"name": "k", "type": "long", "default": [1], "shape": [-1]}]
TENSOR = [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}}]
NAMED = [{"name": name, **TENSOR[0]} for name in ("x", "y")]
ONE = [{"type": "string", "name": "word"}]


def of(inputs: Any, outputs: Any = None, params: Any = None) -> dict[str, Any]:
    given = {"inputs": inputs, "outputs": outputs, "params": params}
    signature = Signature.of({name: orjson.dumps(each).decode() if each else None for name, each in given.items()})
    endpoint = Endpoint("rows", "predict", lambda call: iter(()))  # type: ignore[arg-type,return-value]
    return described(endpoint, "http://h", signature)["paths"]["/invocations"]["post"]


def takes(inputs: Any, body: Any, params: Any = None) -> bool:
    asked = of(inputs, params=params)["requestBody"]["content"]["application/json"]["schema"]
    Draft202012Validator.check_schema(asked)
    return Draft202012Validator(asked).is_valid(body)


@pytest.mark.parametrize(
    ("inputs", "body", "fits"),
    [
        (COLUMNS, {"dataframe_records": [ROW]}, True),
        (COLUMNS, {"dataframe_records": [{**ROW, "when": "2024-01-01T00:00:00Z"}]}, True),
        (COLUMNS, {"dataframe_records": [{**ROW, "größe": "big"}]}, False),
        (COLUMNS, {"dataframe_records": [{"größe": 1}]}, False),
        (COLUMNS, {"dataframe_records": [{**ROW, "obj": {"b": [1]}}]}, False),
        (COLUMNS, {"dataframe_records": [{**ROW, "map": {"k": 1}}]}, False),
        (COLUMNS, {"dataframe_split": {"columns": list(ROW), "data": [CELLS]}}, True),
        (COLUMNS, {"dataframe_split": {"columns": ["a", "a"], "data": []}}, False),
        (COLUMNS, {"inputs": {name: [cell] for name, cell in ROW.items()}}, True),
        (COLUMNS, {"instances": [[*CELLS, None]]}, True),
        (COLUMNS, {"instances": [[1]]}, False),
        (COLUMNS, {"instances": [ROW], "inputs": ROW}, False),
        (COLUMNS, {}, False),
        (ONE, {"instances": ["a", "b"]}, True),
        (ONE, {"inputs": {"word": ["a"]}}, True),
        (ONE, {"inputs": [1]}, False),
        (TENSOR, {"instances": [[1, 2], [3, 4.5]]}, True),
        (TENSOR, {"inputs": [[1, 2, 3]]}, False),
        (TENSOR, {"dataframe_records": [{"a": 1}]}, False),
        (NAMED, {"inputs": {"x": [[1, 2]], "y": [[1, 2]]}}, True),
        (NAMED, {"inputs": {"x": [[1, 2]]}}, False),
        (None, {"dataframe_records": [{"a": 1}]}, True),
        (None, {"inputs": {"anything": 1}}, True),
        ([{"type": "string"}], {"instances": ["a"]}, True),
    ],
)
def test_a_body_is_valid_where_the_signature_takes_it(inputs: Any, body: Any, fits: bool) -> None:
    assert takes(inputs, body) == fits


def test_parameters_and_predictions_are_told() -> None:
    for params, fits in (({"t": 1, "k": [1, 2]}, True), ({"t": "x"}, False), ({"k": 3}, False)):
        assert takes(ONE, {"instances": ["a"], "params": params}, PARAMS) == fits

    def given(outputs: Any) -> Any:
        return of(ONE, outputs)["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["predictions"]

    assert given([{"type": "string"}]) == {"type": "array", "items": {"type": "string"}}
    assert given(TENSOR)["items"]["maxItems"] == 2
    assert given(COLUMNS)["items"]["required"] == ["größe", "obj", "map"]
    assert given(None) == {}


def test_a_signature_that_cannot_be_read_says_nothing() -> None:
    for broken in (None, "x", {"inputs": "[{"}, {"inputs": 3}, {"inputs": '"text"'}):
        assert Signature.of(broken) == Signature()
    assert schema(Signature.of({"inputs": '[{"type": "any", "name": "x"}]'}).inputs)["properties"] == {"x": {}}
