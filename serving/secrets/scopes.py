"""Secret scopes: named secrets with access lists, encrypted where they lie, for models and endpoints to use by reference.

Semantics: https://docs.databricks.com/aws/en/security/secrets/. A reference is `{{secrets/SCOPE/KEY}}`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, insert, select

from governance import audit
from governance.call import Caller, CallError, bad_request, forbidden, not_found
from serving.tables import scope_secrets, secret_acls, secret_scopes

PERMISSIONS = ("READ", "WRITE", "MANAGE")
EVERYONE = "group:users"
"""Stands for all who are signed in."""
MAX_VALUE = 128 * 1024
"""Bytes of one secret."""
_NAME = re.compile(r"[A-Za-z0-9_.@ /-]{1,128}")
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_REFERENCE = re.compile(r"\{\{\s*secrets/([^{}]+)/([A-Za-z0-9_.-]{1,128})\s*\}\}")


def cipher(pepper: Path, purpose: bytes) -> Any:
    """Encrypts for one purpose, under a key made from the state folder's pepper."""
    from cryptography.fernet import Fernet

    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(purpose + b"\0" + pepper.read_bytes()).digest()))


def reference(value: Any) -> tuple[str, str] | None:
    """Scope and key of a reference; None for any other value. Raises `CallError` (400) for a malformed one."""
    if not isinstance(value, str) or "{{" not in value or "secrets/" not in value:
        return None
    found = _REFERENCE.fullmatch(value.strip())
    if found is None:
        raise bad_request(f"{value[:80]!r} is no reference to a secret: write {{{{secrets/SCOPE/KEY}}}} and nothing beside it.")
    return found[1], found[2]


def is_reference(value: Any) -> bool:
    return isinstance(value, str) and _REFERENCE.fullmatch(value.strip()) is not None


class Scopes:
    """The secret scopes of one database. Blocking.

    Parameters
    ----------
    database: the state database.
    pepper: file that the encryption's key is made from.
    """

    def __init__(self, database: Engine, pepper: Path) -> None:
        self._database, self._pepper = database, pepper

    # --- scopes ---

    def create(self, who: Caller, scope: str, *, for_everyone: bool = False) -> None:
        """A new scope, which its maker manages; `for_everyone`: all who are signed in do."""
        if not _NAME.fullmatch(scope):
            raise _invalid("The name of a scope is 1 to 128 letters, digits and '-_./@'.")
        with self._database.begin() as connection:
            if connection.execute(select(secret_scopes.c.name).where(secret_scopes.c.name == scope)).first():
                raise CallError(f"Scope {scope} already exists!", status=400, code="RESOURCE_ALREADY_EXISTS")
            connection.execute(insert(secret_scopes).values(name=scope, creator=who.name, created=_now()))
            holder = EVERYONE if for_everyone else f"{who.kind}:{who.name}"
            connection.execute(insert(secret_acls).values(scope=scope, principal=holder, permission="MANAGE"))
            audit.record(connection, who.name, "secrets.create_scope", f"secret-scope:{scope}", {}, {holder: "MANAGE"})

    def delete(self, who: Caller, scope: str) -> None:
        self.check(who, scope, "MANAGE")
        before = self._acls(scope)
        with self._database.begin() as connection:
            for table in (scope_secrets, secret_acls):
                connection.execute(delete(table).where(table.c.scope == scope))
            connection.execute(delete(secret_scopes).where(secret_scopes.c.name == scope))
            audit.record(connection, who.name, "secrets.delete_scope", f"secret-scope:{scope}", before, {})

    def scopes(self, who: Caller) -> list[str]:
        """Names of the scopes that the caller may read."""
        with self._database.connect() as connection:
            names = connection.execute(select(secret_scopes.c.name).order_by(secret_scopes.c.name)).scalars().all()
        return [name for name in names if self._level(who, name) >= 0]

    # --- secrets ---

    def put(self, who: Caller, scope: str, key: str, value: bytes) -> None:
        """Store a secret, in place of the one of that name."""
        self.check(who, scope, "WRITE")
        if not _KEY.fullmatch(key):
            raise _invalid("A secret's key is 1 to 128 letters, digits and '-_.'.")
        if len(value) > MAX_VALUE:
            raise _invalid(f"A secret has up to {MAX_VALUE >> 10} KB; this one has {len(value)} bytes.")
        row = {"scope": scope, "key": key, "value": self._cipher().encrypt(value).decode(), "updated": _now()}
        with self._database.begin() as connection:
            connection.execute(delete(scope_secrets).where(scope_secrets.c.scope == scope, scope_secrets.c.key == key))
            connection.execute(insert(scope_secrets).values(**row))
            audit.record(connection, who.name, "secrets.put", f"secret:{scope}/{key}", {}, {})

    def remove(self, who: Caller, scope: str, key: str) -> None:
        self.check(who, scope, "WRITE")
        with self._database.begin() as connection:
            gone = connection.execute(delete(scope_secrets).where(scope_secrets.c.scope == scope, scope_secrets.c.key == key))
            if not gone.rowcount:
                raise _no_secret(scope, key)
            audit.record(connection, who.name, "secrets.delete", f"secret:{scope}/{key}", {}, {})

    def keys(self, who: Caller, scope: str) -> list[tuple[str, int]]:
        """Key and time of change (Unix milliseconds) of each secret."""
        self.check(who, scope, "READ")
        wanted = select(scope_secrets.c.key, scope_secrets.c.updated).where(scope_secrets.c.scope == scope)
        with self._database.connect() as connection:
            return [(row.key, row.updated) for row in connection.execute(wanted.order_by(scope_secrets.c.key))]

    def get(self, who: Caller, scope: str, key: str) -> bytes:
        self.check(who, scope, "READ")
        return self.value(scope, key)

    def value(self, scope: str, key: str) -> bytes:
        """A secret for the server's own use. Raises `CallError` (404)."""
        wanted = select(scope_secrets.c.value).where(scope_secrets.c.scope == scope, scope_secrets.c.key == key)
        with self._database.connect() as connection:
            found = connection.execute(wanted).scalar()
        if found is None:
            raise _no_secret(scope, key)
        return self._cipher().decrypt(found.encode())

    def resolved(self, value: str) -> str:
        """What a reference stands for; any other value as it is. Raises `CallError`."""
        found = reference(value)
        if found is None:
            return value
        try:
            return self.value(*found).decode()
        except UnicodeDecodeError:
            raise bad_request(f"The secret {'/'.join(found)} is no text, so that it cannot be a setting.") from None

    def check_references(self, who: Caller, values: Iterable[Any]) -> None:
        """Of these values, those that are references need READ on their scope, and a secret that is there. Raises `CallError`."""
        for found in map(reference, values):
            if found is not None:
                self.get(who, *found)

    # --- access lists ---

    def check(self, who: Caller, scope: str, permission: str) -> None:
        """Raises `CallError`: 404 where there is no such scope, 403 where the caller lacks the permission on it."""
        with self._database.connect() as connection:
            there = connection.execute(select(secret_scopes.c.name).where(secret_scopes.c.name == scope)).first()
        if there is None:
            raise not_found(f"Scope {scope[:128]} does not exist!")
        if self._level(who, scope) < PERMISSIONS.index(permission):
            raise forbidden(f"{who.kind}:{who.name} does not have {permission} permission on scope {scope}.")

    def acls(self, who: Caller, scope: str) -> dict[str, str]:
        """Permission of each principal."""
        self.check(who, scope, "MANAGE")
        return self._acls(scope)

    def put_acl(self, who: Caller, scope: str, principal: str, permission: str) -> None:
        self.check(who, scope, "MANAGE")
        if permission not in PERMISSIONS:
            raise _invalid(f"{permission[:40]!r} is no permission: use {', '.join(PERMISSIONS)}.")
        before = self._acls(scope)
        with self._database.begin() as connection:
            connection.execute(delete(secret_acls).where(secret_acls.c.scope == scope, secret_acls.c.principal == principal))
            connection.execute(insert(secret_acls).values(scope=scope, principal=principal, permission=permission))
            after = {**before, principal: permission}
            audit.record(connection, who.name, "secrets.put_acl", f"secret-scope:{scope}", before, after)

    def delete_acl(self, who: Caller, scope: str, principal: str) -> None:
        self.check(who, scope, "MANAGE")
        before = self._acls(scope)
        with self._database.begin() as connection:
            wanted = delete(secret_acls).where(secret_acls.c.scope == scope, secret_acls.c.principal == principal)
            if not connection.execute(wanted).rowcount:
                raise not_found(f"There is no access of {principal} to scope {scope}.")
            audit.record(
                connection,
                who.name,
                "secrets.delete_acl",
                f"secret-scope:{scope}",
                before,
                {name: held for name, held in before.items() if name != principal},
            )

    # --- within ---

    def _acls(self, scope: str) -> dict[str, str]:
        wanted = select(secret_acls).where(secret_acls.c.scope == scope).order_by(secret_acls.c.principal)
        with self._database.connect() as connection:
            return {row.principal: row.permission for row in connection.execute(wanted)}

    def _level(self, who: Caller, scope: str) -> int:
        """Position in `PERMISSIONS` of the highest that the caller has; -1 for none."""
        if who.admin:
            return len(PERMISSIONS) - 1
        mine = {f"{who.kind}:{who.name}", EVERYONE, *(f"group:{group}" for group in who.groups)}
        held = [PERMISSIONS.index(each) for principal, each in self._acls(scope).items() if principal in mine]
        return max(held, default=-1)

    def _cipher(self) -> Any:
        return cipher(self._pepper, b"smalti secret scopes")


def references(config: Mapping[str, Any]) -> list[str]:
    """All plain text within a config, in which references may be."""
    found: list[str] = []
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            found.append(value)
    return found


def _invalid(message: str) -> CallError:
    return CallError(message, status=400, code="INVALID_PARAMETER_VALUE")


def _no_secret(scope: str, key: str) -> CallError:
    return not_found(f"Secret does not exist with scope: {scope[:128]} and key: {key[:128]}")


def _now() -> int:
    return time.time_ns() // 1_000_000
