"""Agents as endpoints: what `smalti.yaml` declares of an agent, made and registered; one that cannot be made says why."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from agents import Agent, AgentLoadError, load_builder
from governance.call import Call, Engine, Event, unavailable
from serving.endpoint import Endpoint
from serving.engines.agent import agent_engine
from serving.mcp_client import Listed, late_engine
from serving.settings import AgentEntity, EndpointDeclaration
from serving.tools import make_tools

if TYPE_CHECKING:
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

    try:
        engine = late_engine(platform.mcp, servers, make) if servers else make({})
    except Exception as error:
        reason = str(error) if isinstance(error, AgentLoadError) else f"{type(error).__name__}: {error}"
        log.warning("endpoint %s is not available: %s", declaration.name, reason)
        engine = broken(declaration.name, reason)
        entity |= {"state": {"deployment": "DEPLOYMENT_FAILED", "deployment_state_message": reason}}
    platform.endpoints.register(
        Endpoint(name=declaration.name, task="agent/v1/responses", engine=engine, entity=entity, description=description)
    )


def _agent(platform: Platform, declaration: EndpointDeclaration, agent: AgentEntity, description: str, listed: Listed) -> Agent:
    builder = load_builder(agent.builder)
    model, dispatcher = platform.settings.model_of(agent), platform.dispatcher
    return Agent(
        declaration.name,
        builder,
        dispatcher.chat_model(model) if model else None,
        dispatcher.retriever(agent.index, diversity=agent.diversity),
        description=description,
        tools=make_tools(declaration.name, agent.tools, dispatcher, platform.inputs, listed),
        timeout=agent.timeout,
        step_limit=agent.step_limit,
        options={"router": platform.router, "reader": platform.reader, "embed": platform.encoder.aembed},
    )


def broken(name: str, reason: str) -> Engine:
    """An engine that says why there is none."""

    async def refuse(_: Call) -> AsyncIterator[Event]:
        raise unavailable(f"Endpoint {name!r} is not available: {reason}")
        yield Event("result", {})  # makes this an async generator

    return refuse
