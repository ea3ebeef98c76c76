"""Agents as endpoints: what `smalti.yaml` declares of an agent, made and registered; one that cannot be made says why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from agents import Agent, AgentLoadError, load_builder
from governance.call import Call, Engine, Event, unavailable
from serving.declarations import EndpointDeclaration
from serving.endpoint import Endpoint
from serving.engines.agent import agent_engine
from serving.settings import AgentEntity

if TYPE_CHECKING:
    from agents.tools.classical import Predict
    from serving.mcp_client import Listed
    from serving.platform import Platform

log = logging.getLogger("smalti")


def register_agent(platform: Platform, declaration: EndpointDeclaration, agent: AgentEntity) -> None:
    """Make an agent and register its endpoint; one agent's fault does not keep the others from answering."""
    entity: dict[str, Any] = {"entity_name": agent.builder}
    description = agent.description or declaration.description
    servers = list(dict.fromkeys(tool.mcp for tool in agent.tools if tool.mcp is not None))

    def make(listed: Listed) -> Engine:
        made = _agent(platform, declaration, agent, description, listed)
        return agent_engine(platform.runtime, made, base_url=platform.url, count_tokens=platform.encoder.count_tokens)

    platform.runtime.agents[declaration.name] = None
    try:
        if platform.alone:  # the assistant that nobody declared is there for documents: made once it is asked
            engine = _later(lambda: make({}))
        elif servers and platform.mcp:
            from serving.mcp_client import late_engine

            engine = late_engine(platform.mcp, servers, make)
        else:
            engine = make({})
    except Exception as error:
        reason = str(error) if isinstance(error, AgentLoadError) else f"{type(error).__name__}: {error}"
        log.warning("endpoint %s is not available: %s", declaration.name, reason)
        engine = broken(declaration.name, reason)
        entity |= {"state": {"deployment": "DEPLOYMENT_FAILED", "deployment_state_message": reason}}
    platform.endpoints.register(
        Endpoint(name=declaration.name, task="agent/v1/responses", engine=engine, entity=entity, description=description)
    )


def _agent(platform: Platform, declaration: EndpointDeclaration, agent: AgentEntity, description: str, listed: Listed) -> Agent:
    from serving.chat_model import EndpointChatModel
    from serving.tools import make_tools

    builder = load_builder(agent.builder)
    model, dispatcher = platform.settings.model_of(agent), platform.dispatcher
    return Agent(
        declaration.name,
        builder,
        EndpointChatModel(dispatcher=dispatcher, endpoint=model) if model else None,
        dispatcher.retriever(agent.index, diversity=agent.diversity),
        description=description,
        tools=make_tools(declaration.name, agent.tools, dispatcher, platform.inputs, listed),
        timeout=agent.timeout,
        step_limit=agent.step_limit,
        options=_options(platform, agent),
    )


def _options(platform: Platform, agent: AgentEntity) -> dict[str, Any]:
    """What a builder is handed beside its model and retriever: the router, the reader, embeddings, a verifier."""
    from agents.tools.classical import classical_router, verifier

    options: dict[str, Any] = {"router": platform.router, "reader": platform.reader, "embed": platform.encoder.aembed}
    if agent.router is not None:
        options["router"] = classical_router(_predict(platform, agent.router.endpoint), threshold=agent.router.threshold)
    if agent.verifier is not None:
        asked = agent.verifier
        predict = _predict(platform, asked.endpoint)
        options["verify"] = verifier(predict, supported=asked.supported, threshold=asked.threshold)
    return options


def _predict(platform: Platform, endpoint: str) -> Predict:
    """A classical endpoint for one row, by its signature's columns in their order; one that takes embeddings gets the text's."""

    async def predict(row: Mapping[str, Any]) -> Any:
        columns = [column["name"] for column in await asyncio.to_thread(platform.inputs, endpoint) if column.get("name")]
        if columns:
            payload: dict[str, Any] = {"dataframe_records": [dict(zip(columns, row.values(), strict=False))]}
        else:
            payload = {"inputs": (await platform.encoder.aembed([str(value) for value in row.values()])).tolist()}
        return (await platform.dispatcher.inner(endpoint, "predict", payload))["predictions"]

    return predict


def _later(make: Callable[[], Engine]) -> Engine:
    """An engine that is made, in a thread, when it is first called."""
    made: list[Engine] = []
    making = asyncio.Lock()

    async def run(call: Call) -> AsyncIterator[Event]:
        async with making:
            if not made:
                made.append(await asyncio.to_thread(make))
        events: Any = made[0](call)
        async with aclosing(events):
            async for event in events:
                yield event

    return run


def broken(name: str, reason: str) -> Engine:
    """An engine that says why there is none."""

    async def refuse(_: Call) -> AsyncIterator[Event]:
        raise unavailable(f"Endpoint {name!r} is not available: {reason}")
        yield Event("result", {})  # makes this an async generator

    return refuse
