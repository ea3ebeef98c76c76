"""Changing what a thread holds from outside a run, as LangGraph's `update_state` does.

Source: https://docs.langchain.com/oss/python/langgraph/use-time-travel
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agents.checkpoints import INNER, configured

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langgraph.graph.state import CompiledStateGraph

MADE = frozenset({"documents", "citations", "route", "offset", "plan", "notes", "supported", "abstained", "mode", "active"})
"""Values that our graphs make of each question; nobody else can."""


class NotAnUpdate(ValueError):
    """Values that a graph's state cannot take."""


def checked(graph: CompiledStateGraph, values: Mapping[str, Any], as_node: str | None, run_id: str) -> dict[str, Any]:
    """The values as a graph's state takes them; nothing is written yet.

    Parameters
    ----------
    values: by channel; `messages` in any form that LangChain reads. One whose id is there replaces it, type `remove` removes it.
    as_node: the node that is taken to have written them, from where the graph would go on; None lets LangGraph find it.
    run_id: begins the ids of messages that have none.

    Raises
    ------
    NotAnUpdate: the graph has no such value or node, or what is given is none.
    """
    nodes = [name for name in graph.nodes if not name.startswith("__")]
    if as_node is not None and as_node not in (*nodes, "__start__", "__end__"):
        raise NotAnUpdate(f"'{as_node[:80]}' is no node of this graph; it has {', '.join(nodes)}")
    known = [name for name in graph.channels if not name.startswith(INNER)]
    taken = [name for name in known if not ("messages" in known and name in MADE and "offset" in known)]
    if strange := [str(name)[:80] for name in values if name not in taken]:
        raise NotAnUpdate(f"'{strange[0]}' cannot be set from outside; this graph takes {', '.join(taken) or 'nothing'}")
    given: dict[str, Any] = dict(values)
    if "messages" in given:
        given["messages"] = messages_of(given["messages"], run_id)
    return given


async def apply(graph: CompiledStateGraph, thread_id: str, given: dict[str, Any], as_node: str | None) -> None:
    """Write what was `checked` into the state of a thread on which nothing runs. Raises NotAnUpdate."""
    if as_node == "__end__" and given:
        await _written(graph, thread_id, given, None)
        given = {}
    try:
        await _written(graph, thread_id, given or None, as_node)
    except Exception as error:  # a graph's own reducers and edges may raise anything
        raise NotAnUpdate(f"the graph does not take this: {str(error)[:300]}") from None


async def _written(graph: CompiledStateGraph, thread_id: str, values: dict[str, Any] | None, as_node: str | None) -> None:
    from langgraph.errors import InvalidUpdateError

    try:
        await graph.aupdate_state(configured(thread_id), values, as_node=as_node)
    except InvalidUpdateError:
        if as_node is not None:
            raise
        await graph.aupdate_state(configured(thread_id), values, as_node="__start__")  # nothing ran that it could come from


def messages_of(given: Any, run_id: str) -> list[BaseMessage]:
    """Messages in any form that LangChain reads, each with an id. Raises NotAnUpdate."""
    from langchain_core.messages import convert_to_messages

    listed: Sequence[Any] = given if isinstance(given, list) else [given]
    try:
        found = convert_to_messages(listed)
    except (ValueError, NotImplementedError, KeyError, TypeError):
        raise NotAnUpdate("'messages' holds something that is no message: send 'role' and 'content'") from None
    for position, message in enumerate(found):
        message.id = message.id or f"{run_id}:{position}"
    return found
