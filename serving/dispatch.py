"""The dispatcher: finds the engine of a call and runs it through the gateway, from outside and from inside alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from governance import choices
from governance.call import Call, CallError, Engine, Event, Task, bad_request, current_call
from retrieval.gather import fused
from retrieval.types import Passage, Retriever
from serving.endpoint import Endpoint, Endpoints, not_served
from serving.engines.index import Searchable, index_engine

_FACES = {
    "agent": "/v1/chat/completions or /v1/responses",
    "chat": "/v1/chat/completions or /v1/responses",
    "embeddings": "/v1/embeddings",
    "predict": "/serving-endpoints/{name}/invocations with dataframe_split, dataframe_records, instances or inputs",
}

inner_usage: ContextVar[dict[str, int] | None] = ContextVar("smalti_inner_usage", default=None)
"""Where the inner model calls of the running answer add up their tokens; set by the agent engine."""

inner_loop: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("smalti_inner_loop", default=None)
"""The loop the running answer lives on, for nodes that call a model from a worker thread."""


class Policy(Protocol):
    """What is needed of `governance.gateway.Gateway`."""

    def call(self, call: Call, engine: Engine | None) -> AsyncIterator[Event]: ...

    async def invoke(self, call: Call, engine: Engine | None) -> Mapping[str, Any]: ...


class OfThreads(Protocol):
    """What is needed of `serving.thread_files.ThreadFiles`."""

    def find(self, owner: str, thread_id: str | None) -> str | None: ...

    def holds(self, index: str) -> bool: ...

    @property
    def engine(self) -> Engine: ...


class Dispatcher:
    """The way to every engine.

    Parameters
    ----------
    gateway: the policy function each call passes.
    endpoints: the registry of endpoints.
    indexes: the vector search indexes, reached by the tasks `search` and `document`.
    of_threads: the documents of conversations, reached by the same tasks.
    connections: the engine of every connection, reached by the task `http`.
    """

    def __init__(
        self,
        gateway: Policy,
        endpoints: Endpoints,
        indexes: Searchable | None = None,
        of_threads: OfThreads | None = None,
        *,
        connections: Engine | None = None,
    ) -> None:
        self._connections = connections
        self.gateway, self.endpoints, self.of_threads = gateway, endpoints, of_threads
        self._index_engine = index_engine(indexes) if indexes is not None else None

    def stream(self, call: Call) -> AsyncIterator[Event]:
        """The call's events; exactly one terminal event is the last. Raises `CallError` before the first one."""
        return self.gateway.call(call, self.engine(call))

    async def invoke(self, call: Call) -> Mapping[str, Any]:
        """The call's `result` or `response`; raises `CallError` where it failed."""
        return await self.gateway.invoke(call, self.engine(call))

    def engine(self, call: Call) -> Engine | None:
        """The engine that answers `call`, one that refuses it where the task does not fit, None where there is none."""
        if call.task in ("search", "document"):
            if self.of_threads is not None and self.of_threads.holds(call.endpoint):
                return self.of_threads.engine
            return self._index_engine
        if call.task == "http":
            return self._connections
        endpoint = self.endpoints.find(call.endpoint)
        if endpoint is None:
            return None
        if endpoint.call_task == "agent" and choices.asked(call) > 1:
            said = f"Field 'n' must be 1: {endpoint.name!r} is an agent, which gives one answer to a request."
            return _raising(bad_request(said, "n"))
        if call.served_entity is not None:
            served = [each["name"] for each in (endpoint.to_api()["config"] or {}).get("served_entities", ())]
            if served and call.served_entity not in served:
                return _raising(not_served(call, served))
        asked = "chat" if call.task == "agent" else call.task
        given = "chat" if endpoint.call_task == "agent" else endpoint.call_task
        return endpoint.engine if asked == given else _refusing(endpoint)

    def inner_call(self, endpoint: str, task: Task, payload: Mapping[str, Any], *, stream: bool = False) -> Call:
        """A call on behalf of the one being answered: its caller, thread and tags; raises RuntimeError outside of one."""
        outer = current_call.get()
        if outer is None or outer.caller is None:
            raise RuntimeError(f"{endpoint!r} was called outside of a governed call: run the agent through its endpoint.")
        return Call(
            endpoint=endpoint,
            task=task,
            payload=payload,
            caller=outer.caller,
            parent_id=outer.request_id,
            thread_id=outer.thread_id,
            stream=stream,
            usage_context=outer.usage_context,
        )

    async def inner(self, endpoint: str, task: Task, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """An inner unary call (`governance.call.Invoke`)."""
        return await self.invoke(self.inner_call(endpoint, task, payload))

    def retriever(self, indexes: str | Sequence[str], *, diversity: float = 0.0) -> Retriever:
        """What an agent is handed to search indexes (`docs` is `main.default.docs`), on behalf of whoever asks.

        What several find is put on one scale; passages that follow each other come as one. One index that fails, or that who asks
        may not query, fails the search. The documents of the conversation in which it is asked are searched with them.
        """
        names = [_full(name) for name in ([indexes] if isinstance(indexes, str) else indexes)]
        more = {"merge": True, **({"diversity": diversity} if diversity else {})}

        async def one(name: str, query: str, k: int) -> list[Passage]:
            found = await self.inner(name, "search", {"query": query, "k": k, **more})
            return [Passage.from_dict(row) for row in found["passages"]]

        async def retrieve(query: str, *, k: int = 5) -> Sequence[Passage]:
            outer, beside = current_call.get(), None
            if self.of_threads is not None and outer is not None and outer.caller is not None:
                beside = self.of_threads.find(outer.caller.principal, outer.thread_id)
            sought = [*names, beside] if beside else names
            return fused(await asyncio.gather(*(one(name, query, k) for name in sought)), k, query)

        return retrieve


def _full(index: str) -> str:
    return index if "." in index else f"main.default.{index}"


def _refusing(endpoint: Endpoint) -> Engine:
    """An engine that says which protocol reaches the endpoint."""
    face = _FACES[endpoint.call_task]
    return _raising(bad_request(f"Endpoint {endpoint.name!r} has task {endpoint.task}: call it by {face}.", "model"))


def _raising(error: CallError) -> Engine:
    """An engine that refuses within the gateway, so that the call is recorded."""

    async def refuse(call: Call) -> AsyncIterator[Event]:
        raise error
        yield  # makes this an async generator

    return refuse
