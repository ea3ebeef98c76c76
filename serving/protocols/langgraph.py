"""LangGraph's server protocol: what its clients send to begin a run, and a run's events as they read them.

Source: https://docs.langchain.com/langgraph-platform/server-api-ref and the types of `langgraph_sdk`
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from agents.approvals import Waiting
from governance.call import Event, bad_request
from serving.engines.messages import langchain_to_items
from serving.protocols.request import describe, take

MODES = ("values", "messages", "messages-tuple", "updates", "custom", "events", "debug", "tasks", "checkpoints")
STATUS = {"in_progress": "running", "completed": "success", "incomplete": "success", "cancelled": "interrupted"}
"""A run's status in LangGraph's words; any other is `error`."""


def modes(value: Any) -> frozenset[str]:
    """`stream_mode`: one or several. Raises `CallError` (400)."""
    given = [value] if isinstance(value, str) else value if value is not None else ["values"]
    if not isinstance(given, list) or not all(mode in MODES for mode in given):
        raise bad_request(f"Field 'stream_mode' must be one or several of {', '.join(MODES)}.", "stream_mode")
    return frozenset(given)


def said(body: Mapping[str, Any], waiting: Waiting | None) -> list[dict[str, Any]]:
    """What a request says, as Responses items: its `input.messages`, or its `command.resume`. Raises `CallError` (400)."""
    command = take(body, "command", dict) or {}
    if "resume" in command:
        if waiting is None:
            raise bad_request("Field 'command.resume' answers nothing: no run of this thread waits for a person.", "command")
        return list(_decided(waiting, command["resume"]))
    if command:
        raise bad_request("Field 'command' may hold 'resume'; 'goto' and 'update' are not read.", "command")
    given = take(body, "input", dict) or {}
    messages = given.get("messages")
    messages = [messages] if isinstance(messages, (str, dict)) else messages
    if not isinstance(messages, list) or not messages:
        raise bad_request("Field 'input.messages' must hold at least one message.", "input")
    from langchain_core.messages import convert_to_messages

    try:
        return langchain_to_items(convert_to_messages(messages))
    except (ValueError, NotImplementedError, KeyError, TypeError):
        raise bad_request(
            "Field 'input.messages' holds something that is no message: send 'role' and 'content'.", "input"
        ) from None


def _decided(waiting: Waiting, resume: Any) -> Iterator[dict[str, Any]]:
    """A decision for each question: one for all, or by the question's id."""
    named = isinstance(resume, Mapping) and all(ask.id in resume for ask in waiting.asks)
    for ask in waiting.asks:
        value = resume[ask.id] if named else resume
        if not ask.approval:
            yield {"type": "function_call_output", "call_id": ask.id, "output": orjson.dumps(value).decode()}
            continue
        told: Mapping[str, Any] = {"approve": value} if isinstance(value, bool) else value
        if not isinstance(told, Mapping) or not isinstance(told.get("approve"), bool):
            raise bad_request(
                f"Field 'command.resume' must be true, false or an object with 'approve', not {describe(value)}.", "command"
            )
        item = {"type": "mcp_approval_response", "approval_request_id": ask.id, "approve": told["approve"]}
        if told.get("arguments") is not None:
            item["arguments"] = orjson.dumps(told["arguments"]).decode()
        yield {**item, **({"reason": str(told["reason"])} if told.get("reason") else {})}


def frame(event: str, data: Any, number: int | None = None) -> bytes:
    """One event; with a number, by which a stream is gone on with."""
    told = f"id: {number}\n".encode() if number is not None else b""
    return b"event: " + event.encode() + b"\ndata: " + orjson.dumps(data, default=str) + b"\n" + told + b"\n"


class Encoder:
    """A run's events in LangGraph's stream.

    Parameters
    ----------
    run_id, thread_id, assistant_id: named in the stream.
    wanted: the stream modes; those that tell of LangGraph's own steps say nothing.
    values: the state, once the run has ended.
    """

    def __init__(
        self,
        run_id: str,
        thread_id: str | None,
        assistant_id: str,
        wanted: frozenset[str],
        values: Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self._run = {"run_id": run_id, "thread_id": thread_id, "assistant_id": assistant_id}
        self._wanted, self._values = wanted, values
        self._text = ""

    async def event(self, event: Event, number: int) -> Sequence[bytes]:
        """What is sent for an event; the number goes with the last of it, so that nothing is lost by a reader that drops."""
        parts = [part async for part in self._parts(event)]
        last = len(parts) - 1
        return [frame(name, data, number if position == last else None) for position, (name, data) in enumerate(parts)]

    async def _parts(self, event: Event) -> AsyncIterator[tuple[str, Any]]:
        if event.type == "response.created":
            yield "metadata", {**self._run, "attempt": 1}
        elif event.type == "response.output_text.delta":
            delta = event.data["delta"]
            self._text += delta
            if "messages" in self._wanted:
                yield "messages/partial", [self._message("ai", self._text)]
            if "messages-tuple" in self._wanted:
                yield "messages", [self._message("AIMessageChunk", delta), {**self._run, "langgraph_node": "answer"}]
        elif event.type == "response.output_text.annotation.added" and "custom" in self._wanted:
            yield "custom", {"citation": event.data["annotation"]}
        elif event.terminal:
            async for part in self._end(event):
                yield part

    async def _end(self, event: Event) -> AsyncIterator[tuple[str, Any]]:
        response = event.data.get("response") or {}
        if "messages" in self._wanted and self._text:
            yield "messages/complete", [self._message("ai", self._text)]
        if error := response.get("error"):
            yield "error", {"error": error.get("code"), "message": error.get("message")}
            return
        values = await self._values(response)
        if "updates" in self._wanted:
            yield "updates", {self._run["assistant_id"]: {"messages": list(values.get("messages") or ())[-1:]}}
        yield "values", values
        yield "end", None

    def _message(self, kind: str, text: str) -> dict[str, Any]:
        return {"type": kind, "id": f"msg_{self._run['run_id']}", "content": text, "tool_calls": [], "response_metadata": {}}
