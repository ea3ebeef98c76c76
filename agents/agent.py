"""An agent: a builder, what it was handed, and the graphs it made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph


class Agent:
    """A named graph: compiled without a checkpointer for single questions, and with one for threads.

    Parameters
    ----------
    name, description: as an endpoint shows them.
    builder: `build(model, retriever, *, tools=(), checkpointer=None, …)`.
    options: further keyword arguments of the builder (`router`, `reader`, `embed`, `k`, …); those that it does not take
        are left out.
    """

    def __init__(
        self,
        name: str,
        builder: Callable[..., CompiledStateGraph],
        model: Any,
        retriever: Any,
        *,
        description: str = "",
        tools: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.description = name, description
        self._builder, self._arguments = builder, (model, retriever)
        parameters = inspect.signature(builder).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        given = {"tools": tools, **(options or {})}
        self._options = {key: value for key, value in given.items() if takes_all or key in parameters}
        # Our nodes emit checked text themselves; of other graphs LangGraph's own stream of model tokens is passed on.
        ours = (getattr(builder, "__module__", "") or "").startswith("agents.graphs.")
        self.modes: list[str] = ["custom", "values"] if ours else ["custom", "messages", "values"]
        self.graph: CompiledStateGraph = builder(*self._arguments, **self._options)
        self._threaded: tuple[Any, CompiledStateGraph] | None = None

    def threaded(self, checkpointer: Any) -> CompiledStateGraph:
        """The graph over a checkpointer; compiled once for each."""
        if self._threaded is None or self._threaded[0] is not checkpointer:
            options = {**self._options, "checkpointer": checkpointer}
            self._threaded = (checkpointer, self._builder(*self._arguments, **options))
        return self._threaded[1]
