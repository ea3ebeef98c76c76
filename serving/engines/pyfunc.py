"""Engines of MLflow models in their own process: rows, chat, embeddings and agents, by the model's task.

A model's task stands in its metadata (`metadata={"task": "llm/v1/chat"}`); MLflow writes it there for ChatModel
(`agent/v1/chat`), ChatAgent (`agent/v2/chat`) and ResponsesAgent (`agent/v1/responses`). Without one a model predicts rows.

Source: https://mlflow.org/docs/latest/genai/flavors/responses-agent-intro/ and
https://docs.databricks.com/aws/en/machine-learning/model-serving/score-foundation-models
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import orjson

from governance.call import CHUNK, Call, CallError, Engine, Event, Single, bad_request
from serving.engines.answer import Answer
from serving.engines.choices import several
from serving.engines.chunks import Chunks, chat_body
from serving.engines.messages import items_to_chat
from serving.engines.process import ModelProcess
from serving.engines.replicas import Replicas
from serving.protocols.request import present

Served = ModelProcess | Replicas


def engine(model: Served, task: str | None) -> Engine:
    """The engine of a model of this task."""
    return {
        "llm/v1/chat": _chat,
        "llm/v1/embeddings": _embeddings,
        "agent/v1/responses": _responses_agent,
        "agent/v1/chat": _chat,
        "agent/v2/chat": _chat_agent,
    }.get(task or "", _rows)(model)


def _rows(model: Served) -> Engine:
    """Reads `dataframe_split`, `dataframe_records`, `instances` or `inputs`; gives `{"predictions": [...]}`, and before it, where
    that is asked for, what the model's `predict_stream` gives."""

    async def predict(call: Call) -> Event:
        return Event("result", {"result": await model.ask("rows", call.payload, again=bool(model.info.get("rowwise")))})

    async def chunks(call: Call) -> AsyncIterator[Event]:
        given: list[Any] = []
        async with aclosing(model.stream(call.payload, kind="chunks")) as chunks:
            async for chunk in chunks:
                given.append(chunk)
                yield Event(CHUNK, {"delta": chunk})
        if given and all(isinstance(chunk, str) for chunk in given):
            given = ["".join(given)]
        yield Event("result", {"result": {"predictions": given}})

    return lambda call: chunks(call) if call.stream else Single(predict(call))


def _chat(model: Served) -> Engine:
    async def run(call: Call) -> AsyncIterator[Event]:
        body = chat_body(call.payload)
        body |= present({"custom_inputs": call.payload.get("custom_inputs"), "stream": call.stream or None})
        chunks = Chunks(answer := Answer(call), lambda: len(orjson.dumps(body["messages"])))
        started = False
        async with aclosing(model.stream(body) if call.stream else _once(model, body)) as given:
            async for chunk in given:
                if not started:  # a refusal by the model has its own status as long as nothing was sent
                    started = True
                    for event in answer.start():
                        yield event
                for event in chunks.read(_as_chunk(chunk)):
                    yield event
        if not started:
            raise CallError("The model gave no answer.", status=502)
        for event in chunks.end():
            yield event

    return several(run, prompt_once=True)


def _as_chunk(given: Any) -> Mapping[str, Any]:
    """A chunk in Chat Completions' shape; a model that gives text, or a list of texts, is taken at its word."""
    if isinstance(given, list) and given:
        given = given[0]
    if isinstance(given, str):
        return {"choices": [{"delta": {"content": given}}]}
    if isinstance(given, Mapping):
        if "choices" in given or "usage" in given:
            return given
        messages = given.get("messages")  # the state of a graph: its last message is the answer
        last = messages[-1] if isinstance(messages, list) and messages else None
        said = last.get("content") if isinstance(last, Mapping) else None
        return {"choices": [{"delta": {"content": said if isinstance(said, str) else orjson.dumps(given).decode()}}]}
    raise CallError("The model's answer is no chat completion. Look at its log.", status=502)


def _embeddings(model: Served) -> Engine:
    async def run(call: Call) -> AsyncIterator[Event]:
        texts = call.payload["input"]
        body = present({"input": texts, "dimensions": call.payload.get("dimensions")})
        given = await model.ask("whole", body, again=True)
        usage: Mapping[str, Any] = {}
        if isinstance(given, Mapping):
            usage = given.get("usage") or {}
            given = [row["embedding"] for row in sorted(given.get("data") or (), key=lambda row: row.get("index", 0))]
        if not isinstance(given, list) or len(given) != len(texts) or not all(isinstance(row, list) for row in given):
            raise CallError("The model's answer is no list of embeddings, one a text. Look at its log.", status=502)
        if (wanted := call.payload.get("dimensions")) and len(given[0]) != wanted:
            raise bad_request(f"Field 'dimensions' must be {len(given[0])}: this model gives no other.", "dimensions")
        tokens = usage.get("prompt_tokens") or usage.get("total_tokens") or sum(-(-len(text) // 4) for text in texts)
        counts = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
        yield Event("result", {"result": {"embeddings": given, "model": call.endpoint, "usage": counts}, "usage": counts})

    return run


def _responses_agent(model: Served) -> Engine:
    async def run(call: Call) -> AsyncIterator[Event]:
        body = {key: value for key, value in call.payload.items() if key not in ("model", "conversation", "previous_response_id")}
        if call.thread_id:
            body["context"] = {"conversation_id": call.thread_id, **(body.get("context") or {})}
        async for event in _answered(call, model, body, _ResponsesReader):
            yield event

    return run


def _chat_agent(model: Served) -> Engine:
    async def run(call: Call) -> AsyncIterator[Event]:
        context = {"conversation_id": call.thread_id} if call.thread_id else None
        given = {"context": call.payload.get("context") or context, "custom_inputs": call.payload.get("custom_inputs")}
        body = {"messages": items_to_chat(call.payload), **present(given)}
        async for event in _answered(call, model, body, _ChatAgentReader):
            yield event

    return run


async def _once(model: Served, body: Any) -> AsyncGenerator[Any]:
    yield await model.ask("whole", body)


async def _answered(call: Call, model: Served, body: dict[str, Any], make: Any) -> AsyncIterator[Event]:
    """What an agent gives, written as one answer."""
    answer = Answer(call)
    reader = make(answer)
    started = False
    async with aclosing(model.stream(body) if call.stream else _once(model, body)) as given:
        async for item in given:
            if not started:
                started = True
                for event in answer.start():
                    yield event
            for event in reader.read(item):
                yield event
    if not started:
        raise CallError("The agent gave no answer.", status=502)
    for event in reader.calls.ask():
        yield event
    read, written = -(-len(orjson.dumps(body)) // 4), -(-len(answer.written) // 4)
    usage = reader.usage or {"input_tokens": read, "output_tokens": written}
    for event in answer.finish(usage=usage, custom_outputs=reader.custom_outputs):
        yield event


class _Calls:
    """An agent's calls of tools. Those whose results follow are part of its answer, whole; others are the client's to make."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._held: list[Mapping[str, Any]] = []

    def hold(self, item: Mapping[str, Any]) -> None:
        """A `function_call` item, of which it is not known yet whose it is."""
        self._held.append(item)

    def settle(self, item: Mapping[str, Any]) -> Iterator[Event]:
        """A `function_call_output` item: what was called before it was called by the agent."""
        for call in self._held:
            yield from self._answer.item({"id": f"fc_{call.get('call_id')}", **call, "status": "completed"})
        self._held = []
        yield from self._answer.item({"id": f"fco_{item.get('call_id')}", "status": "completed", **item})

    def ask(self) -> Iterator[Event]:
        """What is held is the client's to call."""
        for call in self._held:
            yield from self._answer.call_tool(call.get("call_id") or "", call.get("name") or "")
            yield from self._answer.arguments(call.get("arguments") or "")
        self._held = []


class _ResponsesReader:
    """Reads `ResponsesAgentResponse` and `ResponsesAgentStreamEvent`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._streamed: set[str] = set()
        self._annotated = False
        self.calls = _Calls(answer)
        self.usage: Mapping[str, int] | None = None
        self.custom_outputs: Mapping[str, Any] | None = None

    def read(self, given: Mapping[str, Any]) -> Iterator[Event]:
        self.custom_outputs = given.get("custom_outputs") or self.custom_outputs
        match given.get("type"):
            case "response.output_text.delta":
                yield from self.calls.ask()
                self._streamed.add(str(given.get("item_id")))
                yield from self._answer.write(given.get("delta") or "")
            case "response.output_text.annotation.added" if isinstance(given.get("annotation"), Mapping):
                self._annotated = True
                yield from self._answer.annotate(given["annotation"])
            case "response.output_item.done":
                yield from self._item(given.get("item") or {})
            case "error" | "response.failed":
                raise CallError(str(given.get("message") or given.get("error") or "The agent failed.")[:500], status=502)
            case "response.completed":
                self._end(given.get("response") or {})
            case None:
                for item in given.get("output") or ():
                    yield from self._item(item)
                self._end(given)

    def _end(self, response: Mapping[str, Any]) -> None:
        self.custom_outputs = response.get("custom_outputs") or self.custom_outputs
        self.usage = response.get("usage") or self.usage

    def _item(self, item: Mapping[str, Any]) -> Iterator[Event]:
        match item.get("type"):
            case "message":
                yield from self.calls.ask()
                streamed = str(item.get("id")) in self._streamed
                for part in item.get("content") or ():
                    if not streamed:
                        yield from self._answer.write(part.get("text") or part.get("refusal") or "")
                    for annotation in () if self._annotated else part.get("annotations") or ():
                        yield from self._answer.annotate(annotation)
                self._annotated = False
            case "function_call":
                self.calls.hold(item)
            case "function_call_output":
                yield from self.calls.settle(item)
            case str():
                yield from self._answer.item(item)


class _ChatAgentReader:
    """Reads `ChatAgentResponse` and `ChatAgentChunk`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.calls = _Calls(answer)
        self.usage: Mapping[str, int] | None = None
        self.custom_outputs: Mapping[str, Any] | None = None

    def read(self, given: Mapping[str, Any]) -> Iterator[Event]:
        self.custom_outputs = given.get("custom_outputs") or self.custom_outputs
        if counts := given.get("usage"):
            self.usage = {
                "input_tokens": counts.get("prompt_tokens") or 0,
                "output_tokens": counts.get("completion_tokens") or 0,
            }
        for message in [given["delta"]] if given.get("delta") else given.get("messages") or ():
            text = message.get("content") or ""
            if message.get("role") == "tool":
                output = {"type": "function_call_output", "call_id": message.get("tool_call_id") or "", "output": text}
                yield from self.calls.settle(output)
            elif message.get("role") == "assistant":
                if text:
                    yield from self.calls.ask()
                    yield from self._answer.write(text)
                for call in message.get("tool_calls") or ():
                    named = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
                    self.calls.hold({"type": "function_call", "call_id": call["id"], **named})
