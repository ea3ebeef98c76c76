from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from governance.call import Call, CallError
from serving.protocols import embeddings


def test_texts() -> None:
    assert embeddings.decode({"model": "m", "input": "a"}).payload == {"input": ["a"]}
    request = embeddings.decode({"model": "m", "input": ["a", ""], "dimensions": 3, "encoding_format": "base64"})
    assert (request.payload, request.options, request.task) == (
        {"input": ["a", ""], "dimensions": 3},
        {"encoding": "base64"},
        "embeddings",
    )


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"), ({"input": []}, "input"), ({"input": [1, 2]}, "input[0]"), ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"), ({"dimensions": "3"}, "dimensions"), ({"model": None}, "model"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(CallError) as caught:
        embeddings.decode({"model": "m", "input": "a"} | change)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("rows", [[[0.1, -2.0], [3.5, 4.0]], np.array([[0.1, -2.0], [3.5, 4.0]], dtype=np.float32)])
def test_base64_is_little_endian_floats(rows: Any) -> None:
    call, result = Call("m", "embeddings", {}), {"embeddings": rows, "usage": {"input_tokens": 7}}
    plain = json.loads(embeddings.Encoder(call).body(result))
    coded = json.loads(embeddings.Encoder(call, encoding="base64").body(result))
    assert plain["data"][1] == {"object": "embedding", "index": 1, "embedding": [3.5, 4.0]}
    unpacked = [np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") for row in coded["data"]]
    np.testing.assert_allclose(unpacked, [[0.1, -2.0], [3.5, 4.0]], rtol=1e-6)
    assert (plain["usage"], plain["model"], plain["object"]) == ({"prompt_tokens": 7, "total_tokens": 7}, "m", "list")
