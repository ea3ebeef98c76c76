"""What a graph keeps from turn to turn beside its messages, noted at the end of each run, so that a thread can go back to it.

A graph whose state is its messages notes nothing. Ours make all but a swarm's speaker anew for each question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, delete, insert, select

from agents.checkpoints import INNER
from agents.edits import MADE
from agents.tables import thread_values

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol
    from langgraph.graph.state import CompiledStateGraph


def lasting(graph: CompiledStateGraph) -> list[str]:
    """The channels of a graph that last from turn to turn, beside its messages."""
    made = MADE - {"active"} if "offset" in graph.channels else frozenset[str]()
    return [name for name in graph.channels if not name.startswith(INNER) and name not in made and name != "messages"]


class Values:
    """The values of a thread's states. Blocking.

    Parameters
    ----------
    serde: of the checkpoints: what they may hold, these may.
    """

    def __init__(self, engine: Engine, thread_id: str, serde: SerializerProtocol) -> None:
        self._engine, self._thread_id, self._serde = engine, thread_id, serde
        self._known: set[str] | None = None

    @property
    def known(self) -> set[str]:
        """The keys of the states for which values are noted."""
        if self._known is None:
            query = select(thread_values.c.key).where(thread_values.c.thread_id == self._thread_id)
            with self._engine.connect() as connection:
                self._known = set(connection.execute(query).scalars())
        return self._known

    def save(self, key: str, values: Mapping[str, Any]) -> None:
        """Note the values of the state of this key."""
        kind, data = self._serde.dumps_typed(dict(values))
        this = (thread_values.c.thread_id == self._thread_id, thread_values.c.key == key)
        row = {"thread_id": self._thread_id, "key": key, "type": kind, "data": data}
        with self._engine.begin() as connection:
            connection.execute(delete(thread_values).where(*this))
            connection.execute(insert(thread_values).values(**row))
        self._known = None

    def at(self, keys: Sequence[str]) -> Mapping[str, Any] | None:
        """The values in a state: those noted for it or last before it; None where the thread notes none.

        `keys`: of the states from the thread's begin to this one.
        """
        if not self.known:
            return None
        key = next((key for key in reversed(keys) if key in self.known), None)
        if key is None:
            return {}
        query = select(thread_values).where(thread_values.c.thread_id == self._thread_id, thread_values.c.key == key)
        with self._engine.connect() as connection:
            row = connection.execute(query).one()
        return self._serde.loads_typed((row.type, row.data))

    def copy(self, to: str) -> None:
        """Note the same for another thread that has the same states."""
        query = select(thread_values).where(thread_values.c.thread_id == self._thread_id)
        with self._engine.begin() as connection:
            rows: Sequence[Any] = connection.execute(query).all()
            new = [{"thread_id": to, "key": r.key, "type": r.type, "data": r.data} for r in rows]
            if new:
                connection.execute(insert(thread_values), new)

    def delete(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(thread_values).where(thread_values.c.thread_id == self._thread_id))
