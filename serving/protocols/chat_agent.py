"""MLflow's ChatAgent as Databricks' invocations answer it: `messages` of a whole answer, `delta` of each part of a stream.

Both stand beside Chat Completions' `choices`, so that clients which know only those read the answer too.

Source: https://mlflow.org/docs/latest/genai/serving/chat-agent/ and mlflow/types/agent.py (ChatAgentResponse, ChatAgentChunk)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from governance.call import Event
from serving.protocols import chat, sse


class Encoder(chat.Encoder):
    """The answer of an endpoint of task `agent/v2/chat`. Parameters as of `chat.Encoder`."""

    def event(self, event: Event) -> bytes:
        framed = super().event(event)
        item = event.data.get("item") or {}
        if event.type == "response.output_item.done" and item["type"] != "message":
            for message in _messages([item]):
                framed += sse.data({**self._head, "choices": [], "delta": message})
        return framed

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None, /, **more: Any) -> bytes:
        message = {"role": "assistant", "content": delta.get("content") or "", "id": f"msg_{self._call.request_id}"}
        ended = {"finish_reason": finish} if finish else {}
        return super()._chunk(delta, finish, delta=message, **ended, **more)

    def body(self, result: Mapping[str, Any]) -> bytes:
        output = result.get("output") or ()
        answer = {"messages": list(_messages(output)), "finish_reason": chat.finish_reason(result)}
        return orjson.dumps({**orjson.loads(super().body(result)), **answer})


def _messages(output: Any) -> Iterator[dict[str, Any]]:
    """Output items as `ChatAgentMessage`s."""
    for item in output:
        match item["type"]:
            case "message":
                text = "".join(part.get("text") or part.get("refusal") or "" for part in item["content"])
                yield {"role": "assistant", "content": text, "id": item["id"]}
            case "function_call":
                yield {"role": "assistant", "content": "", "tool_calls": [chat.called(item)], "id": item["id"]}
            case "function_call_output":
                about = {"tool_call_id": item["call_id"], "name": item.get("name") or "tool"}
                yield {"role": "tool", "content": item["output"], **about, "id": item.get("id") or f"fco_{item['call_id']}"}
