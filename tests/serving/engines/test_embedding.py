from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from governance.call import Call, CallError
from serving.endpoint import Endpoint
from serving.engines.embedding import embedding_engine
from tests.serving.upstream import house

pytestmark = pytest.mark.anyio


class Lengths:
    """An encoder of two dimensions."""

    name, dimension = "lengths", 2

    async def aembed(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    def count_tokens(self, text: str) -> int:
        return len(text.split())


async def test_vectors_usage_and_a_lean_journal(tmp_path: Path) -> None:
    with house(tmp_path) as made:
        made.endpoints.register(Endpoint("lengths", "llm/v1/embeddings", embedding_engine(Lengths())))

        def call(**payload: object) -> Call:
            return Call("lengths", "embeddings", {"input": ["one two", ""], **payload}, made.admin)

        result = await made.dispatcher.invoke(call(dimensions=2))
        assert result["embeddings"] == [[7.0, 1.0], [0.0, 1.0]]
        assert result["usage"]["total_tokens"] == 2
        assert made.rows()[0]["input_tokens"] == 2
        with pytest.raises(CallError, match="must be 2") as caught:
            await made.dispatcher.invoke(call(dimensions=5))
        assert (caught.value.status, caught.value.param) == (400, "dimensions")
