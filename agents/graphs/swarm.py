"""The swarm: agents that hand the conversation to each other; who speaks is remembered from turn to turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, StateGraph

from agents.generate import HISTORY_TOKENS, generate
from agents.state import AgentState, Embed, emit_step, new_turn
from agents.toolrun import run_tools, wants_tools
from agents.tools.retrieve import with_retrieval
from retrieval.types import Retriever

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.tools import BaseTool
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.graph.state import CompiledStateGraph

TRANSFER = "transfer_to_"


@dataclass(frozen=True, slots=True)
class Member:
    """One agent of a swarm.

    Parameters
    ----------
    instructions: what its model is told first.
    description: when to hand over to it, told to the others.
    tools: its own, beside the hand-overs.
    model: its own; None for the swarm's.
    """

    instructions: str
    description: str = ""
    tools: Sequence[BaseTool] = ()
    model: BaseChatModel | None = None


DEFAULT = {"assistant": Member("Answer the user's question. Search the documents where they may know.", "questions of all kinds")}


def hand_over(name: str, description: str) -> BaseTool:
    """The tool by which a model hands the conversation to another member."""
    from langchain_core.tools import StructuredTool

    def transfer() -> str:
        return f"You are {name} now. Go on with the conversation."

    told = f"Hand the conversation to {name}: {description or name.replace('_', ' ')}"
    return StructuredTool.from_function(transfer, name=TRANSFER + name, description=told)


def build(
    model: BaseChatModel | None,
    retriever: Retriever | None,
    *,
    tools: Sequence[BaseTool] = (),
    checkpointer: BaseCheckpointSaver | None = None,
    members: Mapping[str, Member] | None = None,
    first: str | None = None,
    embed: Embed | None = None,
    history_tokens: int = HISTORY_TOKENS,
) -> CompiledStateGraph:
    """A graph in which the member that speaks may hand over to another.

    Hand-overs in a circle end at the run's step limit, or when a member has called tools six times in a turn and must answer.

    Parameters
    ----------
    model: of the members that have none of their own.
    retriever: offered to all members as a tool; None for none.
    tools: offered to all members.
    checkpointer: keeps threads, and who speaks on them.
    members: by name.
    first: who begins; the first member by default.
    embed: sentence embeddings, for checking citations.
    history_tokens: budget of the conversation in a model's prompt.

    Raises
    ------
    ValueError: a member has no model, or `first` is none of them.
    """
    team = dict(members or DEFAULT)
    begins = first or next(iter(team))
    if begins not in team:
        raise ValueError(f"'{begins}' is none of the members {', '.join(team)}")
    if dumb := [name for name, member in team.items() if (member.model or model) is None]:
        raise ValueError(f"{', '.join(dumb)} of the swarm has no chat model; set SMALTI_CHAT_MODEL, or give the member one")
    shared = with_retrieval(tools, retriever)
    transfers = {name: hand_over(name, member.description) for name, member in team.items()}
    offered = {
        name: [*member.tools, *shared, *(tool for other, tool in transfers.items() if other != name)]
        for name, member in team.items()
    }

    def speaker(name: str) -> Any:
        member = team[name]
        chat = member.model or model
        assert chat is not None

        async def speak(state: AgentState) -> dict[str, Any]:
            told = f"You are {name}. {member.instructions}"
            return await generate(state, chat, offered[name], embed, history_tokens, told)

        return speak

    def active(state: AgentState) -> str:
        now = state.get("active") or begins
        return now if now in team else begins  # a thread of a graph that had other members

    async def begin(state: AgentState) -> dict[str, Any]:
        return {**new_turn(), "active": active(state)}

    async def call_tools(state: AgentState) -> dict[str, Any]:
        done = await run_tools(state, offered[active(state)])
        called = [call["name"] for call in _calls(state) if call["name"].startswith(TRANSFER)]
        to = called[-1].removeprefix(TRANSFER) if called else ""
        if to not in team or to == active(state):
            return done
        with emit_step("hand_over", "route", inputs={"from": active(state)}) as step:
            step.outputs = {"to": to}
        return {**done, "active": to}

    graph = StateGraph(AgentState)
    graph.add_node("begin", begin)
    graph.add_node("tools", call_tools)
    for name in team:
        graph.add_node(name, speaker(name))
        graph.add_conditional_edges(name, lambda state: "tools" if wants_tools(state) else END, ["tools", END])
    graph.add_edge(START, "begin")
    for node in ("begin", "tools"):
        graph.add_conditional_edges(node, active, list(team))
    return graph.compile(checkpointer=checkpointer, name="swarm")


def _calls(state: AgentState) -> Sequence[Any]:
    """The tool calls of this turn's last message that has any."""
    for message in reversed(state["messages"]):
        if isinstance(message, HumanMessage):
            return ()
        if isinstance(message, AIMessage) and message.tool_calls:
            return message.tool_calls
    return ()
