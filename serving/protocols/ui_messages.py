"""The UI message stream of Vercel's AI SDK (versions 5 and 6): what `useChat` sends, and the parts it draws.

The client resends the conversation, so that nothing is kept here. Source: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from governance.call import Call, CallError, Event, bad_request
from serving.protocols import sse
from serving.protocols.request import Request, describe, take

ROLES = ("user", "assistant", "system")


def decode(body: Mapping[str, Any], *, model: str | None = None) -> Request:
    """A chat request; raises `CallError` (400)."""
    messages = take(body, "messages", list, required=True)
    items = [item for position, message in enumerate(messages) for item in _items(message, f"messages[{position}]")]
    if not items:
        raise bad_request("Field 'messages' holds no text: send at least one message of the user's.", "messages")
    return Request(model or "", {"model": model or "", "input": items}, stream=True)


def _items(message: Any, path: str) -> Iterator[dict[str, Any]]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise bad_request(f"Field {path!r} must be a message with role {', '.join(ROLES)}, not {describe(message)}.", path)
    if isinstance(message.get("content"), str) and "parts" not in message:  # as earlier versions sent it
        message = {**message, "parts": [{"type": "text", "text": message["content"]}]}
    parts = take(message, "parts", list, path=f"{path}.", required=True)
    if any(isinstance(part, dict) and part.get("type") == "file" for part in parts):
        raise bad_request(f"Field '{path}.parts' holds a file; this endpoint reads text only.", f"{path}.parts")
    text = "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict) and part.get("type") == "text")
    if text:
        yield {"type": "message", "role": message["role"], "content": text}
    for part in parts:
        if isinstance(part, dict) and part.get("type") == "data-decision" and isinstance(part.get("data"), dict):
            decision = part["data"]
            asked, approve = take(decision, "id", str, required=True), take(decision, "approve", bool, required=True)
            yield {"type": "mcp_approval_response", "approval_request_id": asked, "approve": approve}


class Encoder:
    """An answer as a UI message stream: text, its sources, questions to a person (`data-approval`), and an end."""

    headers = ((b"x-vercel-ai-ui-message-stream", b"v1"),)

    def __init__(self, call: Call) -> None:
        self._call = call
        self._open: str | None = None
        self._sources = 0
        self._settled: set[int] = set()  # calls that the agent makes itself

    def event(self, event: Event) -> bytes:
        return b"".join(sse.data(part) for part in self._parts(event)) + (sse.DONE if event.terminal else b"")

    def _parts(self, event: Event) -> Iterator[dict[str, Any]]:
        data = event.data
        if event.type == "response.created":
            yield {"type": "start", "messageId": f"msg_{self._call.request_id}"}
            yield {"type": "start-step"}
        elif event.type == "response.output_text.delta":
            if self._open is None:
                self._open = str(data["item_id"])
                yield {"type": "text-start", "id": self._open}
            yield {"type": "text-delta", "id": self._open, "delta": data["delta"]}
        elif event.type == "response.output_text.annotation.added":
            annotation = data["annotation"]
            self._sources += 1
            where = {"url": annotation.get("url") or "", "title": annotation.get("title") or ""}
            yield {"type": "source-url", "sourceId": f"source_{self._sources}", **where}
        elif event.type == "response.output_item.added":
            if data["item"]["type"] == "function_call" and data["item"].get("status") == "completed":
                self._settled.add(data["output_index"])
        elif event.type == "response.output_item.done":
            item = data["item"]
            if item["type"] == "message":
                yield from self._close()
            elif item["type"] == "mcp_approval_request":
                asked = {key: item[key] for key in ("id", "name", "arguments")}
                yield {"type": "data-approval", "id": item["id"], "data": asked}
            elif item["type"] == "function_call" and data["output_index"] not in self._settled:
                called = {key: item[key] for key in ("call_id", "name", "arguments")}
                yield {"type": "data-question", "id": item["call_id"], "data": called}
        elif event.terminal:
            yield from self._close()
            response = data.get("response") or {}
            if error := response.get("error"):
                yield {"type": "error", "errorText": error.get("message") or "the answer failed"}
            elif response.get("status") == "cancelled":
                yield {"type": "abort"}
            yield {"type": "finish-step"}
            yield {"type": "finish", "messageMetadata": {"requestId": self._call.request_id}}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open is not None:
            yield {"type": "text-end", "id": self._open}
            self._open = None

    def failure(self, error: CallError) -> bytes:
        return sse.data({"type": "error", "errorText": error.message}) + sse.DONE

    def body(self, result: Mapping[str, Any]) -> bytes:
        raise NotImplementedError("answers of this protocol are always streamed")
