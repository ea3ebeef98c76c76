"""One run of an agent: what it is noted by, its limits, and the parts of LangGraph's stream that it gives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agents.agent import Agent
from agents.approvals import Waiting
from agents.branches import Branch
from agents.tables import ONCE, Thread

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph.state import CompiledStateGraph
    from langgraph.types import StateSnapshot

Part = tuple[tuple[str, ...], str, Any]
"""(namespace, mode, chunk) as LangGraph streams it with subgraphs: mode `custom`, `messages` or, once and last, `values`.
The first part of a run is `((), "started", run_id)`."""


whose: ContextVar[str | None] = ContextVar("smalti_whose", default=None)
"""The user whom the run in this context answers."""

Stood = tuple[str | None, "Sequence[Branch]"]
"""Where a thread stood: its last checkpoint (None: there was none), and the branches that had been left."""


class ThreadNotFound(Exception):
    """There is no such thread, or it is another owner's."""


class ThreadBusy(Exception):
    """The thread has a run going; one at a time."""


class AgentChanged(Exception):
    """What a person was asked belongs to a step that the agent's graph no longer has."""


class NothingAsked(ValueError):
    """There is nothing to answer."""


class RunLimit(Exception):
    """A run took more time or steps than its agent may."""


@dataclass(slots=True)
class Run:
    """A run on a thread: what it was asked, what it said, and the parts that its reader has yet to take."""

    thread: Thread
    id: str
    new: Sequence[BaseMessage]
    queue: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[Any] | None = None
    """Answers, or changes the thread; it is not cancelled with who asked for it."""
    begun: bool = False
    """Its task may be cancelled: the thread is where the run goes on from, and is settled however the run ends."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Its thread is at rest."""
    ending: bool = False
    """Its last part is out, or it was told to stop: the next run waits for it instead of failing."""
    said: str = ""
    citations: list[Mapping[str, Any]] = field(default_factory=list)
    waiting: Waiting | None = None
    ends_with: frozenset[str] | None = None
    """The values it ended with, by name; None where it was stopped."""
    decided: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: Stood | None = None
    """To where its thread can be taken back."""
    resumes: bool = False
    """It goes on with one that asked a person, and cannot be undone."""
    undone: bool = False
    """It was told to stop as if it had never been."""

    @property
    def once(self) -> bool:
        return self.thread.id.startswith(ONCE)


DONE = object()


async def parts(agent: Agent, graph: CompiledStateGraph, given: Any, config: RunnableConfig) -> AsyncGenerator[Part, None]:
    """LangGraph's stream within the agent's limits, the final state last. Raises RunLimit."""
    from langchain_core.messages import AIMessageChunk
    from langgraph.errors import GraphRecursionError

    final: Part | None = None
    durability: Any = {"durability": agent.durability} if graph.checkpointer else {}
    stream: Any = graph.astream(given, config, stream_mode=agent.modes, subgraphs=True, **durability)  # type: ignore[arg-type]
    clock = asyncio.timeout_at(asyncio.get_running_loop().time() + agent.timeout)
    async with aclosing(stream):
        while True:
            try:
                # a clock for each part: none may run while the reader holds one
                clock = asyncio.timeout_at(clock.when())
                async with clock:
                    namespace, mode, chunk = await anext(stream)
            except StopAsyncIteration:
                break
            except GraphRecursionError:
                message = f"{agent.name} took {agent.step_limit} steps without an end, which is its limit; ask more narrowly"
                raise RunLimit(message) from None
            except TimeoutError:
                if not clock.expired():
                    raise
                raise RunLimit(f"{agent.name} did not finish within {agent.timeout:g} s, which is its limit") from None
            if mode == "values":
                final = ((), "values", chunk) if not namespace else final
            elif mode != "messages" or isinstance(chunk[0], AIMessageChunk):
                yield namespace, mode, chunk
    if final is not None:  # only now is the checkpoint written
        yield final


def waits(state: StateSnapshot) -> bool:
    """Whether a step of the graph as it is now waits for a person, here or in a subgraph."""
    return any(waits(task.state) if isinstance(task.state, tuple) else bool(task.interrupts) for task in state.tasks)


def running(run: Run) -> dict[str, Any]:
    """What is noted of a run that goes on."""
    from langchain_core.messages import messages_to_dict

    return {"run_id": run.id, "messages": messages_to_dict(list(run.new))}


def asked(thread: Thread) -> list[BaseMessage]:
    """What the run that is noted as going on was asked."""
    from langchain_core.messages import messages_from_dict

    return messages_from_dict(json.loads(thread.running or "{}").get("messages") or [])
