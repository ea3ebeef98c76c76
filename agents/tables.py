"""Threads in the database: whose they are and what they are called. What was said is in the checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Column, Engine, Float, Index, MetaData, String, Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

metadata = MetaData()

threads = Table(
    "threads",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("title", String(200), nullable=False),
    Column("agent", String(200), nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Index("threads_by_owner", "owner", "updated"),
)

MAX_ID = 200
TITLE_CHARS = 80


@dataclass(frozen=True, slots=True)
class Thread:
    """A conversation. Times are Unix seconds; `agent` answered last."""

    id: str
    owner: str
    title: str
    agent: str
    created: float
    updated: float


def shorten(text: str) -> str:
    """A title from a message: its first words on one line."""
    line = " ".join(text.split())
    if len(line) <= TITLE_CHARS:
        return line or "New chat"
    cut = line[: TITLE_CHARS - 1]
    return (cut.rsplit(" ", 1)[0] if " " in cut[40:] else cut) + "…"


class Threads:
    """The thread table. Blocking; every method checks the owner, and a thread of another owner is not there."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        metadata.create_all(engine)

    def find(self, thread_id: str, owner: str) -> Thread | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(threads).where(threads.c.id == thread_id, threads.c.owner == owner)).first()
        return Thread(*row) if row else None

    def claim(self, thread_id: str, owner: str, *, title: str, agent: str) -> Thread | None:
        """The thread, made if there is none of this id; None where it is another owner's."""
        found = self.find(thread_id, owner)
        if found is not None:
            return found
        now = time.time()
        try:
            with self._engine.begin() as connection:
                connection.execute(
                    insert(threads).values(id=thread_id, owner=owner, title=shorten(title), agent=agent, created=now, updated=now)
                )
        except IntegrityError:  # made meanwhile, or not ours
            return self.find(thread_id, owner)
        return Thread(thread_id, owner, shorten(title), agent, now, now)

    def touch(self, thread_id: str, agent: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(threads).where(threads.c.id == thread_id).values(updated=time.time(), agent=agent))

    def list(self, owner: str, limit: int) -> Sequence[Thread]:
        query = select(threads).where(threads.c.owner == owner).order_by(threads.c.updated.desc(), threads.c.id).limit(limit)
        with self._engine.connect() as connection:
            return [Thread(*row) for row in connection.execute(query)]

    def rename(self, thread_id: str, owner: str, title: str) -> bool:
        change = update(threads).where(threads.c.id == thread_id, threads.c.owner == owner).values(title=shorten(title))
        with self._engine.begin() as connection:
            return connection.execute(change).rowcount > 0

    def delete(self, thread_id: str, owner: str) -> bool:
        with self._engine.begin() as connection:
            gone = connection.execute(delete(threads).where(threads.c.id == thread_id, threads.c.owner == owner))
            return gone.rowcount > 0
