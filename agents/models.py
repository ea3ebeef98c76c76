"""Chat models for tests: they say what they are told to say."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field, PrivateAttr

Reply = str | AIMessage | Exception


class ScriptedModel(BaseChatModel):
    """Replays `replies` in order, streaming a token at a time.

    A reply is text, an `AIMessage` (with tool calls, say), or an exception to raise. What it was asked is in `calls`, the
    tools that were bound in `bound`.

    Raises
    ------
    AssertionError: asked more often than it has replies.
    """

    replies: list[Any] = Field(default_factory=list)
    delay: float = 0.0
    """Seconds between tokens."""
    supports_tools: bool = True
    _calls: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _bound: list[Any] = PrivateAttr(default_factory=list)

    @property
    def calls(self) -> list[list[BaseMessage]]:
        return self._calls

    @property
    def bound(self) -> list[Any]:
        return self._bound

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable | Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[Any, AIMessage]:
        if not self.supports_tools:
            raise NotImplementedError("this model calls no tools")
        self._bound = list(tools)
        return self

    def _next(self, messages: Sequence[BaseMessage]) -> AIMessage:
        position = len(self._calls)
        self._calls.append(list(messages))
        assert position < len(self.replies), f"ScriptedModel was asked {position + 1} times and has {len(self.replies)} replies"
        reply = self.replies[position]
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, AIMessage) else AIMessage(reply)

    def _chunks(self, reply: AIMessage) -> Iterator[ChatGenerationChunk]:
        text = reply.content if isinstance(reply.content, str) else "".join(str(b) for b in reply.content)
        for token in re.findall(r"\s*\S+|\s+$", text):
            yield ChatGenerationChunk(message=AIMessageChunk(content=token))
        made = [*((call, _json(call["args"])) for call in reply.tool_calls), *((c, c["args"]) for c in reply.invalid_tool_calls)]
        calls = [
            tool_call_chunk(name=call["name"], args=args, id=call["id"], index=index) for index, (call, args) in enumerate(made)
        ]
        yield ChatGenerationChunk(
            message=AIMessageChunk(content="", tool_call_chunks=calls, usage_metadata=reply.usage_metadata, chunk_position="last")
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield from self._chunks(self._next(messages))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._chunks(self._next(messages)):
            if self.delay:
                await asyncio.sleep(self.delay)
            yield chunk


def _json(args: Mapping[str, Any]) -> str:
    import json

    return json.dumps(dict(args))
