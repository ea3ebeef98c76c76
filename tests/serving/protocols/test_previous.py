from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from governance.call import Call, Caller, CallError
from serving.protocols import previous
from tests.serving.upstream import house

pytestmark = pytest.mark.anyio


async def test_a_response_is_found_again_by_whom_it_was_given_to(tmp_path: Path) -> None:
    with house(tmp_path) as made:
        key = made.key("ann", "endpoint:agent")

        async def ask(text: str, **more: Any) -> str:
            payload = {"input": [{"type": "message", "role": "user", "content": text}], **more.pop("payload", {})}
            return (await made.dispatcher.invoke(Call("agent", "agent", payload, key, **more)))["id"]

        ann = made.identity.authenticate(key)
        found = previous.find(made.journal, ann, await ask("hello"))
        assert [item["content"] for item in found.items] == ["hello", "hello"]
        assert (found.items[1]["role"], found.thread_id, found.response["status"]) == ("assistant", None, "completed")
        assert previous.find(made.journal, ann, await ask("on", thread_id="t")).thread_id == "t"
        tool = {"type": "function", "name": "f", "parameters": {}}
        called = previous.find(made.journal, ann, await ask("call", payload={"tools": [tool]}))
        assert called.items[1] == {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"city":"Rome"}'}
        listed = called.input_items()
        assert [item["content"] for item in listed["data"]] == [[{"type": "input_text", "text": "call"}]]
        assert (listed["first_id"], listed["has_more"]) == (listed["last_id"], False)
        unstored = await ask("secret", payload={"store": False})
        for caller, response in ((ann, unstored), (ann, "resp_none"), (ann, "x" * 500), (Caller("bob"), found.response["id"])):
            with pytest.raises(CallError) as caught:
                previous.find(made.journal, caller, response)
            assert (caught.value.status, caught.value.param) == (404, "previous_response_id")
