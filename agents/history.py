"""Message histories that every provider accepts: tool calls answered, within a budget, nothing twice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, SystemMessage, ToolCall, ToolMessage

UNANSWERED = "The tool did not finish: the run was stopped before its result. Call it again if the result is still needed."

MALFORMED = "malformed_arguments"
"""The argument that stands for those of a call which could not be read."""


def text_of(message: BaseMessage) -> str:
    """The text of a message, whatever blocks its content is made of."""
    content = message.content
    if isinstance(content, str):
        return content
    parts = [block if isinstance(block, str) else str(block.get("text") or "") for block in content]
    return "".join(parts)


def questions(messages: Sequence[BaseMessage]) -> list[str]:
    """What the user said, oldest first; turns without text are left out."""
    return [text for m in messages if isinstance(m, HumanMessage) and (text := text_of(m).strip())]


def fresh(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """What is new in a resent history: the messages after the last assistant message that carry something to answer."""
    last = max((i for i, m in enumerate(messages) if isinstance(m, AIMessage)), default=-1)
    return list(messages[last + 1 :])


def unanswered(new: Sequence[BaseMessage], said: Sequence[Any]) -> list[BaseMessage]:
    """What is new without results of tool calls that have theirs: a client may invent some for calls that a person stopped."""
    answered: set[str] = set()
    for message in said:
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        answered -= {call_id for call_id, _ in _calls(message)}
    return [m for m in new if not (isinstance(m, ToolMessage) and m.tool_call_id in answered)]


def settle(messages: Sequence[AnyMessage], unanswered: str = UNANSWERED) -> list[AnyMessage]:
    """The history with every tool call answered at its place, by an error where no result came, and no stray result.

    A run that is cancelled between a model's tool call and the tool's result leaves the call unanswered, and providers
    refuse such a history. Empty assistant messages without calls are dropped for the same reason.
    """
    results: dict[str, list[tuple[int, ToolMessage]]] = {}
    for position, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            results.setdefault(message.tool_call_id, []).append((position, message))
    calls_of: dict[str, list[int]] = {}  # models that count their calls anew in each message use an id twice
    for position, message in enumerate(messages):
        for call_id, _ in _calls(message):
            calls_of.setdefault(call_id, []).append(position)
    settled: list[AnyMessage] = []
    for position, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            continue
        if isinstance(message, AIMessage) and not _calls(message) and not text_of(message).strip():
            continue
        settled.append(message)
        for call_id, name in _calls(message):
            until = min((other for other in calls_of[call_id] if other > position), default=len(messages))
            found = next((result for at, result in results.get(call_id, ()) if position < at < until), None)
            settled.append(found or ToolMessage(unanswered, tool_call_id=call_id, name=name, status="error"))
    return settled


def _calls(message: AnyMessage) -> list[tuple[str, str | None]]:
    """(id, name) of the tool calls of a message."""
    if not isinstance(message, AIMessage):
        return []
    made = (*message.tool_calls, *message.invalid_tool_calls)
    return [(call_id, call.get("name")) for call in made if (call_id := call.get("id")) is not None]


def calls_of(message: AIMessage | None) -> list[ToolCall]:
    """A message's tool calls. One whose arguments are no JSON object has them as text, under `MALFORMED`: the model is told."""
    if message is None:
        return []
    wrong = [
        ToolCall(name=call.get("name") or "", args={MALFORMED: call.get("args") or ""}, id=call.get("id"), type="tool_call")
        for call in message.invalid_tool_calls
    ]
    return [*message.tool_calls, *wrong]


def estimate(message: BaseMessage) -> int:
    """Tokens of a message, roughly: four characters each, and a few for its frame."""
    calls: Any = message.tool_calls if isinstance(message, AIMessage) else ()
    return 4 + (len(text_of(message)) + sum(len(str(call.get("args"))) for call in calls)) // 4


def trim(messages: Sequence[AnyMessage], budget: int) -> list[AnyMessage]:
    """The end of a history within `budget` tokens.

    System messages stay. The rest begins with a user message, so that no tool result stands without its call; the last
    user message and what follows it stay whatever they cost.
    """
    fixed = [m for m in messages if isinstance(m, SystemMessage)]
    rest = [m for m in messages if not isinstance(m, SystemMessage)]
    left = budget - sum(estimate(m) for m in fixed)
    start = len(rest)
    kept_user = False
    for position in range(len(rest) - 1, -1, -1):
        left -= estimate(rest[position])
        if left < 0 and kept_user:
            break
        if isinstance(rest[position], HumanMessage):
            start, kept_user = position, True
    return [*fixed, *(rest[start:] if kept_user else rest)]


def summarise(messages: Sequence[AnyMessage], budget: int) -> str:
    """An extract of turns within `budget` tokens: how each began, a line a turn; where they are too many, the last ones.

    It needs no model, so that a long conversation costs nothing more than its prompt.
    """
    lines: list[str] = []
    for message in messages:
        text = " ".join(text_of(message).split())
        if text and isinstance(message, (HumanMessage, AIMessage)):
            who = "User" if isinstance(message, HumanMessage) else "Assistant"
            first = _SENTENCE.match(text)
            said = first[0] if first else text
            lines.append(f"{who}: {said if len(said) <= _LINE else said[: _LINE - 1] + '…'}")
    left, start = budget * 4, len(lines)
    while start and left > len(lines[start - 1]):
        start -= 1
        left -= len(lines[start]) + 1
    return "\n".join(lines[start:])


_LINE = 240
"""Characters of a turn in a summary."""
_SENTENCE = re.compile(r".+?[.!?](?=\s|$)")


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of a thread as a page draws it; `request_id` is that of the run it belongs to."""

    role: str
    text: str
    request_id: str = ""
    citations: Sequence[Mapping[str, Any]] = ()
    mode: str = ""
    abstained: bool = False
    status: str = "completed"


def turns_of(messages: Sequence[BaseMessage]) -> list[Turn]:
    """The turns of a thread from its messages, whose ids begin with their run's request id."""
    turns: list[Turn] = []
    request_id, before = "", ""
    for message in messages:
        text = text_of(message)
        if isinstance(message, HumanMessage):
            request_id, before = str(message.id or "").partition(":")[0], ""
            turns.append(Turn("user", text, request_id))
        elif isinstance(message, AIMessage):
            if message.tool_calls:  # what was said before a tool call is part of the answer that follows
                before += f"{text}\n\n" if text else ""
                continue
            kept = message.response_metadata
            turns.append(
                Turn(
                    "assistant",
                    before + text,
                    request_id,
                    tuple(kept.get("citations") or ()),
                    str(kept.get("mode") or ""),
                    bool(kept.get("abstained")),
                    str(kept.get("status") or "completed"),
                )
            )
            before = ""
    return turns
