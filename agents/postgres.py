"""The checkpoints of threads in PostgreSQL, for servers that share a database.

Source: https://reference.langchain.com/python/langgraph.checkpoint.postgres
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

_CONNECTIONS = 8


async def open_saver(url: str, serde: Any) -> AsyncPostgresSaver:
    """The checkpoints of a database, made if there are none, in the running loop."""
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg import AsyncConnection
    from psycopg.rows import DictRow, dict_row
    from psycopg_pool import AsyncConnectionPool

    options: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
        url, min_size=1, max_size=_CONNECTIONS, kwargs=options, open=False
    )
    await pool.open(wait=True, timeout=30)
    saver = AsyncPostgresSaver(pool, serde=serde)
    async with pool.connection() as connection:
        await connection.execute("SELECT pg_advisory_lock(5025)")  # servers that start at the same time
        try:
            await saver.setup()
        finally:
            await connection.execute("SELECT pg_advisory_unlock(5025)")
    return saver


async def close_saver(saver: AsyncPostgresSaver) -> None:
    await _pool(saver).close()


async def known(saver: AsyncPostgresSaver, thread_id: str) -> bool:
    """Whether anything was said on a thread."""
    async with _pool(saver).connection() as connection:
        found = await connection.execute("SELECT 1 FROM checkpoints WHERE thread_id = %s LIMIT 1", (thread_id,))
        return await found.fetchone() is not None


async def prune(saver: AsyncPostgresSaver, thread_id: str, *, waiting: bool = False, kept: Sequence[str] = ()) -> None:
    """Keep a thread's last checkpoint alone, and `kept`, and of the values they are made of those that they name."""
    last = "(SELECT MAX(checkpoint_id) FROM checkpoints WHERE thread_id = %s AND checkpoint_ns = '')"
    within = "" if waiting else " OR checkpoint_ns != ''"
    async with _pool(saver).connection() as connection, connection.transaction():
        for table in ("checkpoint_writes", "checkpoints"):
            await connection.execute(
                f"DELETE FROM {table} WHERE thread_id = %s AND ((checkpoint_ns = '' AND checkpoint_id < {last} "
                f"AND NOT checkpoint_id = ANY(%s)){within})",
                (thread_id, thread_id, list(kept)),
            )
        await connection.execute(_UNNAMED, (thread_id,))


async def take_back(saver: AsyncPostgresSaver, thread_id: str, last: str) -> None:
    """Drop the checkpoints of a thread that came after `last`."""
    async with _pool(saver).connection() as connection, connection.transaction():
        for table in ("checkpoint_writes", "checkpoints"):
            await connection.execute(
                f"DELETE FROM {table} WHERE thread_id = %s AND (checkpoint_id > %s OR checkpoint_ns != '')", (thread_id, last)
            )
        await connection.execute("DELETE FROM checkpoint_writes WHERE thread_id = %s AND checkpoint_id = %s", (thread_id, last))
        await connection.execute(_UNNAMED, (thread_id,))


_UNNAMED = (
    "DELETE FROM checkpoint_blobs b WHERE b.thread_id = %s AND NOT EXISTS (SELECT 1 FROM checkpoints c WHERE "
    "c.thread_id = b.thread_id AND c.checkpoint_ns = b.checkpoint_ns "
    "AND c.checkpoint -> 'channel_versions' ->> b.channel = b.version)"
)
"""Values that no checkpoint of a thread names any more."""


def _pool(saver: AsyncPostgresSaver) -> Any:
    return saver.conn
