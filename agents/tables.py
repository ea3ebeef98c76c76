"""Threads in the database: whose they are and what goes on there; what was said is in the checkpoints. And the log of runs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

metadata = MetaData()

MAX_OWNER = 300
"""Characters of a principal."""

threads = Table(
    "threads",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("owner", String(MAX_OWNER), nullable=False),
    Column("title", String(200), nullable=False),
    Column("agent", String(200), nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("running", Text),  # JSON: the run going on and what it was asked; left behind by a process that was killed
    Column("waiting", Text),  # JSON: what a run that stopped for a person asks
    Column("waiting_run", String(64), index=True),
    Index("threads_by_owner", "owner", "updated"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(300), nullable=False),
    Column("agent", String(256), nullable=False),
    Column("thread_id", String(200)),
    Column("status", String(16), nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Index("runs_by_owner", "owner", "created"),
    Index("runs_by_thread", "thread_id", "created"),
)

run_hosts = Table(
    "run_hosts",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("host", String(64), nullable=False, index=True),
)
"""On which of several servers a run that goes on was begun."""

run_events = Table(
    "run_events",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("type", String(80), nullable=False),
    Column("data", LargeBinary, nullable=False),  # JSON
)

tool_results = Table(
    "tool_results",
    metadata,
    Column("thread_id", String(200), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("type", String(40), nullable=False),
    Column("data", LargeBinary, nullable=False),
)
"""Results of the tools of a run that goes on, or waits for a person."""

thread_metadata = Table(
    "thread_metadata",
    metadata,
    Column("thread_id", String(200), primary_key=True),
    Column("data", Text, nullable=False),  # JSON: a client's own tags
)

thread_branches = Table(
    "thread_branches",
    metadata,
    Column("thread_id", String(200), primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("checkpoint_id", String(64), nullable=False),  # empty where nothing of it is kept by itself
    Column("leaf", String(32), nullable=False),
)
"""Branches of threads that were left by going on from an earlier state, in the order in which they were."""

thread_values = Table(
    "thread_values",
    metadata,
    Column("thread_id", String(200), primary_key=True),
    Column("key", String(32), primary_key=True),
    Column("type", String(40), nullable=False),
    Column("data", LargeBinary, nullable=False),
)
"""What graphs keep from turn to turn beside their messages, by the key of a thread's state."""

memories = Table(
    "memories",
    metadata,
    Column("owner", String(MAX_OWNER), primary_key=True),
    Column("namespace", String(200), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("value", Text, nullable=False),  # JSON
    Column("vector", LargeBinary),  # float32
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
)
"""What users are remembered by, across threads."""

MAX_BRANCHES = 30
"""Branches that are kept of a thread; each holds all that was said on it."""
MAX_ID = 200
TITLE_CHARS = 80
ONCE = "run:"
"""Begins the id of a thread that belongs to one run, which may have to wait for a person; not listed."""


@dataclass(frozen=True, slots=True)
class Thread:
    """A conversation. Times are Unix seconds; `agent` answered last; `running` and `waiting` are JSON, as the table has them."""

    id: str
    owner: str
    title: str
    agent: str
    created: float
    updated: float
    running: str | None = None
    waiting: str | None = None
    waiting_run: str | None = None


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

    def begin(self, thread_id: str, running: Mapping[str, Any]) -> None:
        """Note what is run, so that a thread whose process was killed can be told from one that is at rest."""
        with self._engine.begin() as connection:
            connection.execute(update(threads).where(threads.c.id == thread_id).values(running=json.dumps(running)))

    def end(self, thread_id: str, agent: str, waiting: Mapping[str, Any] | None = None) -> None:
        """Note that nothing runs, and what is waited for."""
        noted = {"waiting": json.dumps(waiting), "waiting_run": waiting["run_id"]} if waiting else {}
        values = {"updated": time.time(), "agent": agent, "running": None, "waiting": None, "waiting_run": None, **noted}
        with self._engine.begin() as connection:
            connection.execute(update(threads).where(threads.c.id == thread_id).values(**values))

    def waiting_for(self, run_id: str, owner: str) -> Thread | None:
        """The owner's thread on which this run waits for a person."""
        query = select(threads).where(threads.c.waiting_run == run_id, threads.c.owner == owner)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        return Thread(*row) if row else None

    def list(self, owner: str, limit: int) -> Sequence[Thread]:
        ours = (threads.c.owner == owner, threads.c.id.not_like(f"{ONCE}%"))
        query = select(threads).where(*ours).order_by(threads.c.updated.desc(), threads.c.id).limit(limit)
        with self._engine.connect() as connection:
            return [Thread(*row) for row in connection.execute(query)]

    def tags(self, thread_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The clients' own tags of threads, by thread id."""
        query = select(thread_metadata).where(thread_metadata.c.thread_id.in_(list(thread_ids)))
        with self._engine.connect() as connection:
            return {row.thread_id: json.loads(row.data) for row in connection.execute(query)}

    def tag(self, thread_id: str, tags: Mapping[str, Any]) -> dict[str, Any]:
        """Add tags to a thread; all that it has then."""
        with self._engine.begin() as connection:
            found = connection.execute(select(thread_metadata.c.data).where(thread_metadata.c.thread_id == thread_id)).scalar()
            new = {**json.loads(found or "{}"), **tags}
            if found is None:
                connection.execute(insert(thread_metadata).values(thread_id=thread_id, data=json.dumps(new)))
            else:
                change = update(thread_metadata).where(thread_metadata.c.thread_id == thread_id)
                connection.execute(change.values(data=json.dumps(new)))
        return new

    def rename(self, thread_id: str, owner: str, title: str) -> bool:
        change = update(threads).where(threads.c.id == thread_id, threads.c.owner == owner).values(title=shorten(title))
        with self._engine.begin() as connection:
            return connection.execute(change).rowcount > 0

    def delete(self, thread_id: str, owner: str) -> bool:
        with self._engine.begin() as connection:
            gone = connection.execute(delete(threads).where(threads.c.id == thread_id, threads.c.owner == owner))
            if gone.rowcount:
                connection.execute(delete(thread_metadata).where(thread_metadata.c.thread_id == thread_id))
            return gone.rowcount > 0
