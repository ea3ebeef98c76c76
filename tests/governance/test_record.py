from __future__ import annotations

import pytest

from governance.call import Call, Event
from governance.record import body_of, failed_status, lean, request_of, usage_of


def test_vectors_are_not_recorded_and_their_length_is() -> None:
    answer = {"data": [{"index": 0, "embedding": [0.1] * 384}], "scores": [0.5, 0.4]}
    assert lean(answer, "embeddings") == {"data": [{"index": 0, "embedding": "<384 numbers>"}], "scores": [0.5, 0.4]}
    assert lean(answer, "agent") is answer


def test_credentials_handed_on_to_tools_are_not_recorded() -> None:
    tools = [{"type": "mcp", "server_url": "https://x", "authorization": "t", "headers": {"a": "b"}}, {"type": "function"}, "odd"]
    call = Call("assistant", "agent", {"input": "hi", "tools": tools})
    assert request_of(call)["tools"] == [
        {"type": "mcp", "server_url": "https://x", "authorization": "[redacted]", "headers": "[redacted]"},
        {"type": "function"},
        "odd",
    ]
    assert call.payload["tools"] is tools  # the engine's own stays as it is


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        ({"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}, {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
        ({"prompt_tokens": 4, "total_tokens": 4}, {"input_tokens": 4, "total_tokens": 4}),
        (None, {}),
        ("much", {}),
        ({"input_tokens": "x"}, {}),
    ],
)
def test_usage_is_read_by_either_name(usage: object, found: dict[str, int]) -> None:
    assert usage_of({"usage": usage}) == found


def test_bodies_and_their_status() -> None:
    assert body_of(Event("result", {"result": {"a": 1}})) == {"a": 1}
    assert body_of(Event("result", {"data": []})) == {"data": []}
    assert body_of(Event("result", {"result": [1]})) == {"value": [1]}
    assert failed_status({"error": {"code": "rate_limit_exceeded"}}) == 429
    assert failed_status({"error": None}) == 500
