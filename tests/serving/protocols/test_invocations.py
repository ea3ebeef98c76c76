from __future__ import annotations

from typing import Any

import pytest

from governance.call import Call, CallError
from serving.protocols import invocations


@pytest.mark.parametrize(
    ("body", "task", "kind"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, "llm/v1/chat", "chat_answer"),
        ({"input": "x"}, "llm/v1/embeddings", "embeddings"),
        ({"input": "x"}, "agent/v1/responses", "responses"),
        ({"input": "x"}, None, "chat_answer"),  # there is no such endpoint, whatever the body
        ({"prompt": "x", "extra_params": {"seed": "3", "user": "ann"}}, "llm/v1/chat", "completions"),
    ],
)
def test_the_body_and_the_task_choose_the_protocol(body: dict[str, Any], task: str | None, kind: str) -> None:
    request, encoder = invocations.decode(body, model="named", task=task)
    assert type(encoder(Call("named", "chat", {}))).__module__ == f"serving.protocols.{kind}"
    assert request.model == "named"
    if "extra_params" in body:
        assert (request.payload["seed"], request.payload["user"]) == (3, "ann")


@pytest.mark.parametrize(
    ("task", "wanted"), [("llm/v1/embeddings", "input"), ("llm/v1/chat", "messages"), ("agent/v1/responses", "input")]
)
def test_a_body_that_asks_nothing_is_told_what_to_send(task: str, wanted: str) -> None:
    with pytest.raises(CallError) as caught:
        invocations.decode({"inputs": [1]}, model="m", task=task)
    assert (caught.value.status, caught.value.param) == (400, wanted)
