"""Chat Completions as models speak it: the request a chat model is sent, and its chunks turned into an answer's events.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

import orjson

from governance.call import Event, unavailable
from serving.engines.answer import Answer
from serving.engines.messages import items_to_chat, text_of
from serving.protocols.request import LOGPROBS, present

_MOST_TOKENS = 10**9
_COPIED = frozenset((
    "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop", "parallel_tool_calls",
))  # fmt: skip


def chat_body(payload: Mapping[str, Any], *, limit: str = "max_tokens") -> dict[str, Any]:
    """A Responses request as a Chat Completions request without `model` and `stream`; `limit` names the field for
    `max_output_tokens`."""
    body = {key: payload[key] for key in payload if key in _COPIED} | {
        "messages": items_to_chat(payload),
        limit: payload.get("max_output_tokens"),
        "tools": [_tool(tool) for tool in payload.get("tools") or ()] or None,
        "tool_choice": _tool_choice(payload.get("tool_choice")),
        "response_format": _response_format(payload.get("text")),
        "reasoning_effort": (payload.get("reasoning") or {}).get("effort"),
    }
    if LOGPROBS in (payload.get("include") or ()):
        body |= {"logprobs": True, "top_logprobs": payload.get("top_logprobs")}
    return present(body)


def prompt_body(payload: Mapping[str, Any]) -> dict[str, Any]:
    """A Responses request as a request of the older text completions, whose prompt is all that was said."""
    said = [text_of(item["content"]) for item in payload.get("input") or () if item.get("type", "message") == "message"]
    copied = {key: payload[key] for key in payload if key in _COPIED and key != "parallel_tool_calls"}
    logprobs = (payload.get("top_logprobs") or 0) if LOGPROBS in (payload.get("include") or ()) else None
    return present(copied | {"prompt": "\n".join(said), "max_tokens": payload.get("max_output_tokens"), "logprobs": logprobs})


class Chunks:
    """Turns the chunks of Chat Completions or of text completions (or one whole completion) into events.

    Parameters
    ----------
    answer: what is being written.
    asked: tells the length of what the model was sent, in characters; for models that count no tokens.
    """

    def __init__(self, answer: Answer, asked: Callable[[], int]) -> None:
        self._answer, self._asked = answer, asked
        self._calls: list[_ToolCall] = []  # in the order in which they began
        self._tool: _ToolCall | None = None  # the one that is being told
        self._usage: dict[str, int] = {}
        self.finish: str | None = None

    def read(self, chunk: Mapping[str, Any]) -> list[Event]:
        if error := chunk.get("error"):
            message = error.get("message") if isinstance(error, dict) else str(error)
            raise unavailable(f"The model failed: {' '.join(str(message).split())[:300]}", status=502)
        if usage := chunk.get("usage"):
            self._count(usage)
        if not (choices := chunk.get("choices")):
            return []
        events: list[Event] = []
        choice = choices[0]
        delta = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        logprobs = _logprobs(told) if (told := choice.get("logprobs")) else None
        if (text := _content(delta.get("content")) or delta.get("refusal")) or logprobs:
            events = [*self._ended(), *self._answer.write(text or "", logprobs)]
        if calls := delta.get("tool_calls"):
            for position, call in enumerate(calls):
                events += self._tool_call(call, position)
        self.finish = self.finish or choice.get("finish_reason")
        return events

    def _count(self, usage: Mapping[str, Any]) -> None:
        details = usage.get("completion_tokens_details") or {}
        counts = {
            "input_tokens": usage.get("prompt_tokens") or 0,
            "output_tokens": usage.get("completion_tokens") or 0,
            "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            "reasoning_tokens": details.get("reasoning_tokens") or 0,
        }
        if any(counts.values()) and all(isinstance(count, int) and 0 <= count <= _MOST_TOKENS for count in counts.values()):
            self._usage = counts  # any others are estimated

    def _tool_call(self, call: Mapping[str, Any], position: int) -> list[Event]:
        """A piece of a tool call. Calls whose pieces come by turns are told one after the other: the others wait."""
        function, index, name = call.get("function") or {}, call.get("index", position), call.get("id")
        own = next((each for each in reversed(self._calls) if each.index == index), None)
        if own is None or (name and own.id and name != own.id):  # some upstreams give every call the same index
            own = _ToolCall(index, name or "", function.get("name") or "")
            self._calls.append(own)
        part = function.get("arguments") or ""
        own.arguments += part
        if own is self._tool:
            return self._answer.arguments(part)
        if own.told:
            if part.strip():
                raise TypeError("a tool call that goes on after its end")
            return []
        return self._begun(own) if self._tool is None or self._tool.whole else []

    def _begun(self, call: _ToolCall) -> list[Event]:
        """Tell a call as far as it has come, in place of the one before."""
        self._tool, call.told = call, True
        began = self._answer.call_tool(call.id or f"call_{call.index}", call.name)
        return [*began, *self._answer.arguments(call.arguments)]

    def _ended(self) -> list[Event]:
        """No more pieces come: the calls that waited."""
        if not self._calls:
            return []
        events = [event for call in self._calls if not call.told for event in self._begun(call)]
        self._tool = None
        return events

    def end(self) -> list[Event]:
        return [*self._ended(), *self._finished()]

    def _finished(self) -> list[Event]:
        incomplete = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(self.finish or "")
        if self._usage:
            return self._answer.finish(usage=self._usage, incomplete=incomplete)
        # limits count tokens, so an upstream that tells none is estimated
        written = self._answer.written + "".join(call.arguments for call in self._calls)
        usage = {"input_tokens": -(-self._asked() // 4), "output_tokens": -(-len(written) // 4)}
        return self._answer.finish(usage=usage, metadata={"usage": "estimated"}, incomplete=incomplete)


class _ToolCall:
    """One call of a tool, as far as it has come."""

    __slots__ = ("arguments", "id", "index", "name", "told")

    def __init__(self, index: Any, identifier: str, name: str) -> None:
        self.index, self.id, self.name, self.arguments, self.told = index, identifier, name, "", False

    @property
    def whole(self) -> bool:
        """Whether its arguments are JSON, to which nothing can be added."""
        try:
            orjson.loads(self.arguments)
        except orjson.JSONDecodeError:
            return False
        return True


def _logprobs(told: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Log probabilities as Chat Completions tell them; text completions do it in parallel lists (llama.cpp's as in a chat)."""
    if not (tokens := told.get("tokens")):
        return told.get("content")
    rows = zip_longest(tokens, told.get("token_logprobs") or (), told.get("top_logprobs") or ())
    return [
        _token(token, own) | {"top_logprobs": [_token(*other) for other in (others or {}).items()]}
        for token, own, others in rows
        if token is not None and own is not None
    ]


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _content(content: Any) -> str:
    """Text of a delta; reasoning models of some upstreams send a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict) and part.get("type") == "text")
    return content or ""


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = present({key: tool.get(key) for key in ("name", "description", "parameters")})
    return {"type": "function", "function": function | ({"strict": True} if tool.get("strict") else {})}


def _tool_choice(value: Any) -> Any:
    return {"type": "function", "function": {"name": value["name"]}} if isinstance(value, Mapping) else value


def _response_format(text: Mapping[str, Any] | None) -> dict[str, Any] | None:
    given = (text or {}).get("format") or {"type": "text"}
    if given["type"] == "text":
        return None
    if given["type"] != "json_schema":
        return {"type": given["type"]}
    return {"type": "json_schema", "json_schema": {key: value for key, value in given.items() if key != "type"}}
