"""The engine of an embedding model within this process (`llm/v1/embeddings`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from governance.call import Call, Engine, Event, bad_request


class TextEncoder(Protocol):
    """What is needed of `retrieval.embed.Encoder`."""

    name: str
    dimension: int

    async def aembed(self, texts: Sequence[str]) -> Any: ...

    def count_tokens(self, text: str) -> int: ...


def embedding_engine(encoder: TextEncoder) -> Engine:
    """Reads `{"input": [str, …]}`; gives `{"embeddings": [[float, …], …], "model", "usage"}`."""

    def count(texts: Sequence[str]) -> int:
        return sum(encoder.count_tokens(text) for text in texts)

    async def run(call: Call) -> AsyncIterator[Event]:
        texts = call.payload["input"]
        if call.payload.get("dimensions") not in (None, encoder.dimension):
            raise bad_request(f"Field 'dimensions' must be {encoder.dimension}: {encoder.name} gives no other.", "dimensions")
        vectors, tokens = await asyncio.gather(encoder.aembed(texts), asyncio.to_thread(count, texts))
        usage = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
        yield Event(
            "result", {"result": {"embeddings": vectors.tolist(), "model": call.endpoint, "usage": usage}, "usage": usage}
        )

    return run
