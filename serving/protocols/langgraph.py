"""LangGraph's server protocol: what its clients send to begin a run, and a run's events as they read them.

Source: https://docs.langchain.com/langgraph-platform/server-api-ref and the types of `langgraph_sdk`
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from agents.approvals import Waiting
from governance.call import Event, bad_request
from serving.engines.messages import langchain_to_items
from serving.protocols.langgraph_decisions import decided
from serving.protocols.request import take

MODES = ("values", "messages", "messages-tuple", "updates", "custom", "events", "debug", "tasks", "checkpoints")
STATUS = {"in_progress": "running", "completed": "success", "incomplete": "success", "cancelled": "interrupted"}
"""A run's status in LangGraph's words; any other is `error`."""


def modes(value: Any) -> frozenset[str]:
    """`stream_mode`: one or several. Raises `CallError` (400)."""
    given = [value] if isinstance(value, str) else value if value is not None else ["values"]
    if not isinstance(given, list) or not all(mode in MODES for mode in given):
        raise bad_request(f"Field 'stream_mode' must be one or several of {', '.join(MODES)}.", "stream_mode")
    return frozenset(given)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run begins with.

    Parameters
    ----------
    items: what is said, as Responses items; empty where nothing is.
    state: the state of the thread that it goes on from; None is the last.
    again: what stands there is answered again.
    end: the question to a person is left, and nothing else done.
    """

    items: list[dict[str, Any]]
    state: str | None = None
    again: bool = False
    end: bool = False


def asked(body: Mapping[str, Any], waiting: Waiting | None) -> Asked:
    """What a request says: its `input.messages`, its `command`, or nothing (`input` null). Raises `CallError` (400)."""
    state = checkpoint(body)
    command = take(body, "command", dict) or {}
    if "resume" in command:
        if waiting is None:
            raise bad_request("Field 'command.resume' answers nothing: no run of this thread waits for a person.", "command")
        return Asked(list(decided(waiting, command["resume"])), state)
    if command.get("goto") in ("__end__", ["__end__"]) and not command.get("update"):
        return Asked([], state, end=True)
    if command:
        raise bad_request("Field 'command' may hold 'resume', or 'goto': '__end__'; 'update' is for POST …/state.", "command")
    given = body.get("input")
    if given is None:
        return Asked([], state, again=True)
    messages = take(body, "input", dict).get("messages")
    messages = [messages] if isinstance(messages, (str, dict)) else messages
    if not isinstance(messages, list) or not messages:
        raise bad_request("Field 'input.messages' must hold at least one message.", "input")
    from langchain_core.messages import convert_to_messages

    try:
        found = convert_to_messages(messages)
    except (ValueError, NotImplementedError, KeyError, TypeError):
        raise bad_request(
            "Field 'input.messages' holds something that is no message: send 'role' and 'content'.", "input"
        ) from None
    for position, message in enumerate(found):
        if any(isinstance(part, dict) and part.get("type") not in _READ for part in message.content):
            raise bad_request(f"Field 'input.messages[{position}]' holds more than text, which agents do not read.", "input")
    return Asked(langchain_to_items(found), state)


_READ = (None, "text", "tool_use", "tool_call", "reasoning", "thinking")
"""Kinds of content blocks: text, and those of a model's own message that is sent back."""


def checkpoint(body: Mapping[str, Any], field: str = "checkpoint") -> str | None:
    """The state that `checkpoint` or `checkpoint_id` names. Raises `CallError` (400)."""
    named: Any = body.get(field) if isinstance(body.get(field), str) else take(body, field, dict)
    if isinstance(named, Mapping):
        named = take(named, "configurable", dict, path=f"{field}.") or named
        if take(named, "checkpoint_ns", str, path=f"{field}."):
            raise bad_request(f"Field '{field}.checkpoint_ns' must be empty: of subgraphs no states are kept.", field)
        named = take(named, "checkpoint_id", str, path=f"{field}.")
    return named or (take(body, "checkpoint_id", str) if field == "checkpoint" else None)


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
    begun: the state as the run begins; None where a stream is gone on with.
    """

    def __init__(
        self,
        run_id: str,
        thread_id: str | None,
        assistant_id: str,
        wanted: frozenset[str],
        values: Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]],
        begun: Mapping[str, Any] | None = None,
    ) -> None:
        self._begun = begun
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
            if self._begun is not None and "values" in self._wanted:
                yield "values", self._begun
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
            if asks := values.get("__interrupt__"):
                yield "updates", {"__interrupt__": asks}
        yield "values", values
        yield "end", None

    def _message(self, kind: str, text: str) -> dict[str, Any]:
        return {"type": kind, "id": f"msg_{self._run['run_id']}", "content": text, "tool_calls": [], "response_metadata": {}}
