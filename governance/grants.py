"""What a caller may do: grants of a level on an endpoint or an index. What is not granted is denied.

Levels are those of Databricks serving endpoints (https://docs.databricks.com/api/workspace/servingendpoints/setpermissions):
CAN_VIEW < CAN_QUERY < CAN_MANAGE. Principals are `user:NAME`, `group:NAME` and `service_principal:NAME`; securables are
`endpoint:NAME`, `connection:NAME`, and `index:`, `model:` and `volume:CATALOG.SCHEMA.NAME`. Levels may be written as what Unity
Catalog calls them: of a registered model BROWSE, EXECUTE and MANAGE, of a connection USE_CONNECTION in the middle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, delete, select, update

from governance import audit
from governance.call import Caller, forbidden
from governance.changes import Changes
from governance.tables import grants

LEVELS = ("CAN_VIEW", "CAN_QUERY", "CAN_MANAGE")
_RANK = {level: rank for rank, level in enumerate(LEVELS)}
_DOING = {"CAN_VIEW": "see", "CAN_QUERY": "call", "CAN_MANAGE": "manage"}
_PRINCIPALS = ("user", "group", "service_principal")
_SECURABLES = ("endpoint", "index", "search_endpoint", "model", "volume", "connection")
PRIVILEGES = {"BROWSE": "CAN_VIEW", "EXECUTE": "CAN_QUERY", "MANAGE": "CAN_MANAGE"}
"""Unity Catalog's privileges on a registered model, as levels."""
PRIVILEGES_OF = {
    "model": PRIVILEGES,
    "endpoint": PRIVILEGES,
    "index": {"BROWSE": "CAN_VIEW", "SELECT": "CAN_QUERY", "MODIFY": "CAN_MANAGE", "MANAGE": "CAN_MANAGE"},
    "volume": {"BROWSE": "CAN_VIEW", "READ_VOLUME": "CAN_QUERY", "WRITE_VOLUME": "CAN_MANAGE", "MANAGE": "CAN_MANAGE"},
    "connection": {"BROWSE": "CAN_VIEW", "USE_CONNECTION": "CAN_QUERY", "MANAGE": "CAN_MANAGE"},
}
"""The same of each kind of securable that Unity Catalog knows."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One grant. `via` names the securable whose grant brought it along; empty for a direct one."""

    principal: str
    securable: str
    level: str
    via: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"principal": self.principal, "securable": self.securable, "level": self.level, "via": self.via or None}


class Grants:
    """Grants of one database. Thread-safe; a change is in force on the next request of every process.

    Parameters
    ----------
    engine: the state database.
    resources: names the securables that calling one needs (an agent's indexes and its model). Granting CAN_QUERY or more
        on it grants CAN_QUERY on those too, and revoking it takes them back.
    """

    def __init__(self, engine: Engine, resources: Callable[[str], Sequence[str]] = lambda securable: ()) -> None:
        self.changes = Changes.of(engine)
        self._engine = engine
        self._resources = resources
        self._lock = threading.Lock()
        self._seen = 0
        self._held: dict[str, dict[str, int]] = {}

    # --- asking ---

    def check(self, caller: Caller, securable: str, level: str = "CAN_QUERY") -> None:
        """Raises `CallError` 403 that says who lacks what, and the command that grants it."""
        if caller.scopes is not None and securable not in caller.scopes:
            raise forbidden(f"this key is good for {', '.join(sorted(caller.scopes)) or 'nothing'} only, not for {securable}")
        if not self.allowed(caller, securable, level):
            principal = f"{caller.kind}:{caller.name}"
            raise forbidden(
                f"{principal} may not {_DOING[level]} {securable}: it needs {level}; "
                f"an admin grants it with `smalti grants add {principal} {securable} {level}`"
            )

    def allowed(self, caller: Caller, securable: str, level: str = "CAN_QUERY") -> bool:
        if caller.scopes is not None and securable not in caller.scopes:
            return False
        if caller.admin:
            return True
        return self._rank(caller, securable) >= _RANK[level]

    def level(self, caller: Caller, securable: str) -> str | None:
        """The caller's highest level on a securable; None without any."""
        if caller.scopes is not None and securable not in caller.scopes:
            return None
        rank = _RANK["CAN_MANAGE"] if caller.admin else self._rank(caller, securable)
        return LEVELS[rank] if rank >= 0 else None

    def list(self, securable: str | None = None, principal: str | None = None) -> list[Grant]:
        statement = select(grants).order_by(grants.c.securable, grants.c.principal, grants.c.via)
        if securable is not None:
            statement = statement.where(grants.c.securable == securable)
        if principal is not None:
            statement = statement.where(grants.c.principal == principal)
        with self._engine.connect() as connection:
            return [_grant(row._mapping) for row in connection.execute(statement)]

    # --- changing ---

    def grant(self, principal: str, securable: str, level: str, *, by: Caller | None = None) -> list[Grant]:
        """Give a principal a level on a securable, in place of the direct one it had.

        Also gives CAN_QUERY on what the securable needs. Returns everything granted, the asked one first. A `by` who is no
        admin hands on only those needed securables that it manages itself. Raises `ValueError` for a malformed principal,
        securable or level; names need not exist yet.
        """
        return self.apply(securable, [(principal, level)], by=by)

    def apply(
        self, securable: str, entries: Iterable[tuple[str, str]], *, replace: bool = False, by: Caller | None = None
    ) -> list[Grant]:
        """Several `(principal, level)` at once, all or none; `replace` first takes back every direct grant on it."""
        securable = check_securable(securable)
        wanted = [(check_principal(principal), check_level(level)) for principal, level in entries]
        needed = [check_securable(name) for name in self._resources(securable)]
        if by is not None and not by.admin:
            needed = [name for name in needed if self.allowed(by, name, "CAN_MANAGE")]
        granted: list[Grant] = []
        with self.changes.write("grants") as (connection, _):
            before = _held(connection, securable)
            if replace:
                direct = (grants.c.securable == securable) & (grants.c.via == "")
                connection.execute(delete(grants).where(direct | (grants.c.via == securable)))
            for principal, level in wanted:
                granted.append(_store(connection, Grant(principal, securable, level), by))
                if _RANK[level] >= _RANK["CAN_QUERY"]:
                    granted += [
                        _store(connection, Grant(principal, name, "CAN_QUERY", securable), by)
                        for name in needed
                        if name != securable
                    ]
                else:
                    connection.execute(delete(grants).where(grants.c.principal == principal, grants.c.via == securable))
            after = _held(connection, securable)
            if after != before:
                audit.record(connection, by.name if by else None, "grants.set", securable, before, after)
        return granted

    def revoke(self, principal: str, securable: str, *, by: str | None = None) -> int:
        """Take back a direct grant and what came with it; gives the number of grants removed."""
        principal, securable = check_principal(principal), check_securable(securable)
        direct = (grants.c.securable == securable) & (grants.c.via == "")
        with self.changes.write("grants") as (connection, _):
            before = _held(connection, securable)
            removed = connection.execute(
                delete(grants).where(grants.c.principal == principal, direct | (grants.c.via == securable))
            ).rowcount
            if removed:
                audit.record(connection, by, "grants.remove", securable, before, _held(connection, securable))
            return removed

    def forget(self, securable: str, *, by: str | None = None) -> int:
        """Remove every grant on a securable that is gone, so that a later one of the same name starts with none."""
        with self.changes.write("grants") as (connection, _):
            before = _held(connection, securable)
            removed = connection.execute(
                delete(grants).where((grants.c.securable == securable) | (grants.c.via == securable))
            ).rowcount
            if removed:
                audit.record(connection, by, "grants.forget", securable, before, {})
            return removed

    # --- within ---

    def _rank(self, caller: Caller, securable: str) -> int:
        self._refresh()
        held = self._held.get(securable)
        if not held:
            return -1
        rank = held.get(f"{caller.kind}:{caller.name}", -1)
        for group in caller.groups:
            rank = max(rank, held.get(f"group:{group}", -1))
        return rank

    def _refresh(self) -> None:
        version = self.changes.versions().get("grants", 0)
        if version == self._seen:
            return
        with self._lock:
            held: dict[str, dict[str, int]] = {}
            for securable, principal, level in self.changes.fetch("SELECT securable, principal, level FROM grants"):
                ranks = held.setdefault(securable, {})
                ranks[principal] = max(ranks.get(principal, -1), _RANK.get(level, -1))
            self._held, self._seen = held, version


def check_principal(principal: str) -> str:
    """The principal, trimmed. Raises `ValueError` that says what is accepted."""
    kind, _, name = principal.partition(":")
    name = name.strip()
    if kind not in _PRINCIPALS or not name or len(name) > 256 or not name.isprintable():
        raise ValueError(f"{principal!r} is no principal: write user:NAME, group:NAME or service_principal:NAME")
    return f"{kind}:{name}"


def check_securable(securable: str) -> str:
    """The securable, trimmed. Raises `ValueError` that says what is accepted."""
    kind, _, name = securable.partition(":")
    name = name.strip()
    if kind not in _SECURABLES or not name or len(name) > 400 or not name.isprintable():
        raise ValueError(
            f"{securable!r} is nothing to grant on: write endpoint:NAME, connection:NAME, "
            "or index:, model: or volume:CATALOG.SCHEMA.NAME"
        )
    return f"{kind}:{name}"


def check_level(level: str) -> str:
    level = {**PRIVILEGES, **PRIVILEGES_OF["connection"]}.get(level, level)
    if level not in _RANK:
        raise ValueError(f"{level!r} is no level: use {', '.join(LEVELS)}")
    return level


def _held(connection: Connection, securable: str) -> dict[str, str]:
    """Level of each principal that has a grant of its own."""
    direct = (grants.c.securable == securable) & (grants.c.via == "")
    rows = connection.execute(select(grants.c.principal, grants.c.level).where(direct).order_by(grants.c.principal))
    return {row.principal: row.level for row in rows}


def _store(connection: Connection, grant: Grant, by: Caller | None) -> Grant:
    where = (grants.c.securable == grant.securable) & (grants.c.principal == grant.principal) & (grants.c.via == grant.via)
    values = {"level": grant.level, "granted_by": by.name if by else None, "created": time.time()}
    if connection.execute(update(grants).where(where).values(**values)).rowcount == 0:
        connection.execute(grants.insert().values(securable=grant.securable, principal=grant.principal, via=grant.via, **values))
    return grant


def _grant(row: Any) -> Grant:
    return Grant(row["principal"], row["securable"], row["level"], row["via"])
