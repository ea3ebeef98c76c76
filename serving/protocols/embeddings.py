"""OpenAI embeddings, as floats or base64.

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from governance.call import Call, CallError, Event, bad_request
from serving.protocols.request import Request, choice, describe, named, number, present, tagged, take

MAX_INPUTS = 2048
"""Texts in one request, as OpenAI limits them."""


def decode(body: Mapping[str, Any], *, model: str | None = None) -> Request:
    """An embeddings request; `model` names the endpoint where the path does. Raises `CallError` (400)."""
    name = model or named(body)
    texts = body.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list):
        raise bad_request(f"Field 'input' must be a string or an array of strings, not {describe(texts)}.", "input")
    if not texts:
        raise bad_request("Field 'input' is empty: send at least one text.", "input")
    if len(texts) > MAX_INPUTS:
        raise bad_request(f"Field 'input' has {len(texts)} texts; at most {MAX_INPUTS} are embedded per request.", "input")
    for position, text in enumerate(texts):
        if isinstance(text, int | list):
            told = "a string, not tokens: LangChain's OpenAIEmbeddings sends text with check_embedding_ctx_length=False"
            raise bad_request(f"Field 'input[{position}]' must be {told}.", f"input[{position}]")
        if not isinstance(text, str):
            raise bad_request(f"Field 'input[{position}]' must be a string, not {describe(text)}.", f"input[{position}]")
    payload = {"input": texts, "dimensions": number(body, "dimensions", 1, 65536, kind=int), "user": take(body, "user", str)}
    encoding = choice(body, "encoding_format", ("float", "base64")) or "float"
    return Request(name, present(payload), task="embeddings", options={"encoding": encoding}, **tagged(body))


class Encoder:
    """An embeddings answer. The engine's result is `{"embeddings": array (n, d), "model", "usage"}`."""

    def __init__(self, call: Call, *, encoding: str = "float") -> None:
        self._call, self._encoding = call, encoding

    def event(self, event: Event) -> bytes:
        return b""

    def failure(self, error: CallError) -> bytes:
        return b""

    def body(self, result: Mapping[str, Any]) -> bytes:
        vectors = np.ascontiguousarray(result["embeddings"], dtype="<f4")
        if self._encoding == "base64":
            rows: Any = [base64.b64encode(row.tobytes()).decode() for row in vectors]
        else:
            rows = list(vectors)
        tokens = (result.get("usage") or {}).get("input_tokens", 0)
        answer = {
            "object": "list",
            "data": [{"object": "embedding", "index": position, "embedding": row} for position, row in enumerate(rows)],
            "model": result.get("model") or self._call.endpoint,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
