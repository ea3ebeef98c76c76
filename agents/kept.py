"""Results of tool calls, kept the moment they are there: before the next tool runs, and before any checkpoint.

A checkpoint is written when a step of the graph is done, and what LangGraph keeps within a step is written in the background. A
process that is killed in between would have called a tool without knowing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

from sqlalchemy import Engine, delete, insert, select

from agents.tables import tool_results

if TYPE_CHECKING:
    from langchain_core.messages import ToolMessage
    from langgraph.checkpoint.serde.base import SerializerProtocol


async def committed(write: Callable[..., object], *arguments: object) -> None:
    """Write in a thread; who is cancelled meanwhile goes on only when that is done, since a thread cannot be stopped."""
    writing = asyncio.ensure_future(asyncio.to_thread(write, *arguments))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        raise


class Kept:
    """The results of the run on a thread. A call is known by its idempotency key.

    Parameters
    ----------
    serde: of the checkpoints: what they may hold, a result may.
    """

    def __init__(self, engine: Engine, thread_id: str, serde: SerializerProtocol) -> None:
        self._engine, self._thread_id, self._serde = engine, thread_id, serde

    async def find(self, key: str) -> ToolMessage | None:
        """The result of a call that was made before."""
        return (await asyncio.to_thread(self._read)).get(key)

    async def save(self, key: str, result: ToolMessage) -> None:
        """Commit a result; a run that is cancelled meanwhile ends only then, since the tool has run."""
        kind, data = self._serde.dumps_typed(result)
        row = {"thread_id": self._thread_id, "key": key, "type": kind, "data": data}
        await committed(self._insert, row)

    async def all(self) -> list[ToolMessage]:
        return list((await asyncio.to_thread(self._read)).values())

    async def clear(self) -> None:
        """Forget them: the thread's history holds them now."""
        await asyncio.to_thread(self._delete)

    def _insert(self, row: dict[str, object]) -> None:
        with self._engine.begin() as connection:
            connection.execute(insert(tool_results).values(**row))

    def _read(self) -> dict[str, ToolMessage]:
        query = select(tool_results).where(tool_results.c.thread_id == self._thread_id)
        with self._engine.connect() as connection:
            return {row.key: self._serde.loads_typed((row.type, row.data)) for row in connection.execute(query)}

    def _delete(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(tool_results).where(tool_results.c.thread_id == self._thread_id))


kept: ContextVar[Kept | None] = ContextVar("smalti_kept", default=None)
"""Where the tools of the run that goes on in this context keep their results; None where it has no thread."""
