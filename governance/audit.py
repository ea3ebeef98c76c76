"""Who changed which key, grant or policy, when, and from what to what: written in the transaction of the change itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, select

from governance.frames import iso, moment
from governance.tables import audit_log

COMMAND_LINE = "command line"
"""Actor of a change made beside the server, by whoever may write the state folder."""
SESSION = {"create": "session.begin", "revoke": "session.end"}
"""Actions of keys that come and go by themselves, with a command, a sign-in or a token: on record, but no change of policy."""


def record(connection: Connection, actor: str | None, action: str, subject: str, before: Any = None, after: Any = None) -> None:
    """Note a change. `before` and `after` are JSON values without secrets; None for nothing."""
    connection.execute(
        audit_log.insert().values(
            time=iso(time.time_ns()),
            actor=(actor or COMMAND_LINE)[:256],
            action=action,
            subject=subject[:600],
            before=None if before is None else orjson.dumps(before, default=str).decode(),
            after=None if after is None else orjson.dumps(after, default=str).decode(),
        )
    )


def note(engine: Engine, actor: str, action: str, subject: str, before: Any = None, after: Any = None) -> None:
    """`record`, of a change that was made elsewhere than in this database."""
    with engine.begin() as connection:
        record(connection, actor, action, subject, before, after)


def entries(
    engine: Engine, *, limit: int = 100, subject: str | None = None, since: str | None = None, sessions: bool = False
) -> list[Mapping[str, Any]]:
    """The newest changes first: id, time (ISO 8601, UTC), actor, action, subject, before, after.

    Parameters
    ----------
    sessions: those of `SESSION` too, which are many; a `subject` has all of its own in any case.

    Raises `ValueError` for a `since` that is no time.
    """
    statement = select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)
    if subject is not None:
        statement = statement.where(audit_log.c.subject == subject)
    elif not sessions:
        statement = statement.where(audit_log.c.action.not_in(SESSION.values()))
    if since is not None:
        statement = statement.where(audit_log.c.time >= iso(moment(since)))
    with engine.connect() as connection:
        rows = connection.execute(statement).mappings().all()
    return [{**row, "before": _value(row["before"]), "after": _value(row["after"])} for row in rows]


def _value(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
