"""An agent: a builder, what it was handed, and the graphs it made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

RUN_TIMEOUT = 600.0
"""Seconds after which a run ends with `RunLimit`."""

STEP_LIMIT = 40
"""LangGraph supersteps after which a run ends with `RunLimit`."""


class Agent:
    """A named graph: compiled without a checkpointer for single questions, and with one for threads.

    Parameters
    ----------
    name, description: as an endpoint shows them.
    builder: `build(model, retriever, *, tools=(), checkpointer=None, …)`.
    options: further keyword arguments of the builder (`router`, `reader`, `embed`, `k`, …); those that it does not take
        are left out.
    timeout: seconds a run may take.
    step_limit: LangGraph supersteps a run may take.

    Raises
    ------
    TypeError: the builder returned something else than a compiled graph. Whatever the builder raises.
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
        timeout: float = RUN_TIMEOUT,
        step_limit: int = STEP_LIMIT,
    ) -> None:
        self.name, self.description = name, description
        self.timeout, self.step_limit = timeout, step_limit
        self._builder, self._arguments = builder, (model, retriever)
        parameters = inspect.signature(builder).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        given = {"tools": tools, **(options or {})}
        self._options = {key: value for key, value in given.items() if takes_all or key in parameters}
        # Our nodes emit checked text themselves; of other graphs LangGraph's own stream of model tokens is passed on.
        ours = (getattr(builder, "__module__", "") or "").startswith("agents.graphs.")
        approved = [tool for tool in tools if (getattr(tool, "metadata", None) or {}).get("approval")]
        self.asks = bool(approved)
        """A tool of it asks a person before it is called."""
        self.durability: Literal["sync", "exit"] = "exit" if ours and not tools else "sync"
        """Where nothing has effects outside, one checkpoint a run is enough: what is lost with it is asked again."""
        self.modes: list[str] = ["custom", "values"] if ours else ["custom", "messages", "values"]
        self.graph = self._built()
        self._threaded: tuple[Any, CompiledStateGraph] | None = None

    def threaded(self, checkpointer: Any) -> CompiledStateGraph:
        """The graph over a checkpointer; compiled once for each."""
        if self._threaded is None or self._threaded[0] is not checkpointer:
            graph = self._built(checkpointer=checkpointer)
            if graph.checkpointer is None:  # compiled without what the builder was handed
                graph = graph.copy({"checkpointer": checkpointer})
            self._threaded = (checkpointer, graph)
        return self._threaded[1]

    def _built(self, **more: Any) -> CompiledStateGraph:
        from langgraph.pregel import Pregel

        graph = self._builder(*self._arguments, **{**self._options, **more})
        if not isinstance(graph, Pregel):
            raise TypeError(
                f"its builder returned {type(graph).__name__}, which is no compiled graph; "
                "end it with `return graph.compile(checkpointer=checkpointer)`"
            )
        return graph  # type: ignore[return-value]
