"""A LangChain chat model that calls one of this server's chat endpoints, through the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import orjson
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field

from governance.call import CallError
from serving.dispatch import Dispatcher, inner_loop, inner_usage
from serving.engines.messages import langchain_to_items
from serving.protocols import chat
from serving.protocols.errors import response_error
from serving.protocols.request import present


class EndpointChatModel(BaseChatModel):
    """Calls a chat endpoint on behalf of whoever the running call is answered for.

    Parameters
    ----------
    dispatcher: the way to the endpoint.
    endpoint: its name.
    temperature, max_tokens, stop: for calls that do not say.

    Raises
    ------
    governance.call.CallError: when the call is refused or fails.
    RuntimeError: outside of a governed call.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    dispatcher: Dispatcher = Field(exclude=True, repr=False)
    endpoint: str
    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None

    @property
    def _llm_type(self) -> str:
        return "smalti-endpoint"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.endpoint}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable | BaseTool],
        *,
        tool_choice: str | dict | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools; `tool_choice` is a tool's name, `any`/`required`/True, `auto`, `none`, or OpenAI's object."""
        given = [convert_to_openai_tool(tool) for tool in tools]
        names = {tool["function"]["name"] for tool in given}
        if isinstance(tool_choice, str) and tool_choice in names:
            tool_choice = {"type": "function", "function": {"name": tool_choice}}
        elif tool_choice in ("any", True):
            tool_choice = "required"
        return self.bind(tools=given, **present({"tool_choice": tool_choice or None}), **kwargs)

    def _payload(self, messages: Sequence[BaseMessage], stop: list[str] | None, options: dict[str, Any]) -> dict[str, Any]:
        text_format = chat.response_format(options)
        return present(
            {
                "model": self.endpoint,
                "input": langchain_to_items(messages),
                "stop": stop or self.stop,
                "temperature": options.get("temperature", self.temperature),
                "top_p": options.get("top_p"),
                "seed": options.get("seed"),
                "max_output_tokens": options.get("max_tokens", self.max_tokens),
                "tools": chat.tools(options),
                "tool_choice": chat.tool_choice(options),
                "text": {"format": text_format} if text_format else None,
            }
        )

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = self.dispatcher.inner_call(self.endpoint, "chat", self._payload(messages, stop, kwargs), stream=True)
        events: Any = self.dispatcher.stream(call)
        tools: dict[int, int] = {}
        try:
            async for event in events:
                body = event.data
                match event.type:
                    case "response.output_text.delta":
                        chunk = AIMessageChunk(content=body["delta"])
                    case "response.output_item.added" if body["item"]["type"] == "function_call":
                        item = body["item"]
                        position = tools[body["output_index"]] = len(tools)
                        part = tool_call_chunk(name=item["name"], args="", id=item["call_id"], index=position)
                        chunk = AIMessageChunk(content="", tool_call_chunks=[part])
                    case "response.function_call_arguments.delta":
                        part = tool_call_chunk(args=body["delta"], index=tools[body["output_index"]])
                        chunk = AIMessageChunk(content="", tool_call_chunks=[part])
                    case "response.completed" | "response.incomplete":
                        chunk = _last(body["response"])
                    case "response.failed":
                        raise response_error(body["response"])
                    case _:
                        continue
                generation = ChatGenerationChunk(message=chunk)
                if run_manager is not None and chunk.text:
                    await run_manager.on_llm_new_token(chunk.text, chunk=generation)
                yield generation
        finally:
            await events.aclose()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self.dispatcher.inner_call(self.endpoint, "chat", self._payload(messages, stop, kwargs))
        response = await self.dispatcher.invoke(call)
        texts: list[str] = []
        calls: list[dict[str, Any]] = []
        wrong: list[dict[str, Any]] = []
        for item in response.get("output") or ():
            if item["type"] == "message":
                texts += [part.get("text") or "" for part in item["content"]]
            elif item["type"] == "function_call":
                try:
                    arguments = orjson.loads(item["arguments"] or "{}")
                    calls.append({"name": item["name"], "args": arguments, "id": item["call_id"], "type": "tool_call"})
                except orjson.JSONDecodeError as error:
                    fields = {"name": item["name"], "args": item["arguments"], "id": item["call_id"], "error": str(error)}
                    wrong.append({**fields, "type": "invalid_tool_call"})
        last = _last(response)
        message = AIMessage(
            "".join(texts),
            tool_calls=calls,
            invalid_tool_calls=wrong,
            usage_metadata=last.usage_metadata,
            response_metadata=last.response_metadata,
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """For nodes that are plain functions: they run in a worker thread, the call on the answer's own loop."""
        loop = inner_loop.get()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            if loop is not None:
                return asyncio.run_coroutine_threadsafe(self._agenerate(messages, stop, None, **kwargs), loop).result()
        raise CallError("Call this model with 'await model.ainvoke(…)' inside an agent that is asked through its endpoint.")


def _last(response: Mapping[str, Any]) -> AIMessageChunk:
    """What the end of an answer tells: usage and why it ended. Counts the tokens to the running answer's account."""
    counts = response.get("usage") or {}
    read, written = int(counts.get("input_tokens") or 0), int(counts.get("output_tokens") or 0)
    usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
    account = inner_usage.get()
    if account is not None:
        for key, value in (("input_tokens", read), ("output_tokens", written), ("total_tokens", read + written)):
            account[key] = account.get(key, 0) + value
    metadata = {"finish_reason": chat.finish_reason(response), "model_name": response.get("model") or ""}
    return AIMessageChunk(content="", usage_metadata=usage, response_metadata=metadata, chunk_position="last")
