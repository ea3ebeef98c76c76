"""Threads and memories that a state from before schema 4 keeps under a bare name, brought to principals.

A user and a service principal may bear the same name, and shared what was kept under it. Each thread goes to whoever a run on it
was answered for, as the log of runs knows; all else to the one principal of that name, and where there are two, to the user.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, inspect, literal, select, text, update

from agents.tables import MAX_OWNER, memories, runs, threads
from governance.tables import grants, keys, principals

USER, SERVICE = "user:", "service_principal:"


def to_principals(connection: Connection) -> None:
    """Bring the owners of threads and memories to `KIND:NAME`, once, within the transaction that notes the schema's version."""
    seen = inspect(connection)
    if not seen.has_table(threads.name):
        return  # a database of another part
    if connection.dialect.name == "postgresql":
        for table in (threads, memories):
            connection.execute(text(f"ALTER TABLE {table.name} ALTER COLUMN owner TYPE VARCHAR({MAX_OWNER})"))
    held = select(threads.c.owner).union(select(memories.c.owner))
    names = [name for name in connection.execute(held).scalars() if name]
    users, services = _known(connection, USER), _known(connection, SERVICE)
    for name in sorted(names, key=len, reverse=True):  # so that nobody called `user:x` gets what was x's
        principal = f"{SERVICE if name in services and name not in users else USER}{name}"
        whose = (runs.c.thread_id == threads.c.id, runs.c.owner.in_([f"{USER}{name}", f"{SERVICE}{name}"]))
        told = select(runs.c.owner).where(*whose).order_by(runs.c.created).limit(1).scalar_subquery()
        new = func.coalesce(told, literal(principal))
        connection.execute(update(threads).where(threads.c.owner == name).values(owner=new))
        connection.execute(update(memories).where(memories.c.owner == name).values(owner=principal))


def _known(connection: Connection, prefix: str) -> set[str]:
    """The names of a kind that hold a key, a group or a grant, or had something run."""
    kind, seen = prefix.rstrip(":"), inspect(connection)
    found: set[str] = set()
    for table in (keys, principals):
        if seen.has_table(table.name):
            found.update(connection.execute(select(table.c.name).where(table.c.kind == kind)).scalars())
    for table, column in ((grants, grants.c.principal), (runs, runs.c.owner)):
        if seen.has_table(table.name):
            named = connection.execute(select(column).where(column.startswith(prefix, autoescape=True)).distinct())
            found.update(each.removeprefix(prefix) for each in named.scalars())
    return found
