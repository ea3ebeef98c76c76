"""Connections: HTTP services that an owner declares, and that whoever is granted may ask below the declared address.

A connection is `connection:NAME`: CAN_QUERY (USE CONNECTION) uses it, CAN_MANAGE changes it; making one needs CAN_MANAGE on
`connection:*`. Its credential, a bearer token or the secret with which it signs in, is kept encrypted, or is a reference
`{{secrets/SCOPE/KEY}}`, and is never read back.

Source: https://docs.databricks.com/api/workspace/connections
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from sqlalchemy import Engine as Database
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from governance import audit
from governance.call import Call, Caller, CallError, Event, bad_request, forbidden, misconfigured, not_found
from governance.grants import Grants
from serving.connections.options import OPTIONS, TOKEN, check_address, secret_of
from serving.declarations import ConnectionDeclaration
from serving.engines import addresses, service
from serving.engines.oauth import EXCHANGES, Client, Tokens
from serving.engines.transport import Timeouts, Transport
from serving.engines.upstream import Reach, Upstream
from serving.secrets.scopes import Scopes, cipher, is_reference
from serving.tables import connections as table

EVERY = "connection:*"
NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection; times are Unix milliseconds. `options` hold no secret but by reference; `secret` is encrypted."""

    name: str
    options: Mapping[str, str]
    reach: Reach
    secret: str | None = None
    comment: str = ""
    properties: Mapping[str, str] | None = None
    creator: str = "smalti"
    updater: str = "smalti"
    created: int = 0
    updated: int = 0
    secret_env: str | None = None
    """The variable of the environment that holds the credential."""

    @property
    def url(self) -> str:
        """The address that every path is below."""
        given = self.options["host"]
        parts = urlsplit(given if "://" in given else f"https://{given}")
        port = self.options.get("port")
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        at = f"{host}:{port}" if port else parts.netloc
        return f"{parts.scheme}://{at}/{self.options.get('base_path', '').strip('/')}".rstrip("/")

    @property
    def authenticated(self) -> bool:
        return self.secret is not None or self.secret_env is not None or self.secret_option in self.options

    @property
    def secret_option(self) -> str:
        """The option that its credential is."""
        return secret_of(self.options)

    @property
    def places(self) -> tuple[Any, ...]:
        """Where its credential goes, and what is got for it."""
        return (*urlsplit(self.url)[:2], self.options.get("token_endpoint"))

    def to_api(self) -> dict[str, Any]:
        """As Unity Catalog's API tells it."""
        made = {
            "name": self.name, "full_name": self.name, "connection_type": "HTTP", "securable_type": "CONNECTION",
            "connection_id": hashlib.sha256(self.name.encode()).hexdigest()[:32], "options": dict(self.options),
            "comment": self.comment, "properties": dict(self.properties or {}), "owner": self.creator, "read_only": False,
            "url": self.url, "created_at": self.created, "created_by": self.creator, "updated_at": self.updated,
            "updated_by": self.updater, "provisioning_info": {"state": "ACTIVE"},
        }  # fmt: skip
        kind = "OAUTH_M2M" if self.secret_option == "client_secret" else "BEARER_TOKEN"
        return made | ({"credential_type": kind} if self.authenticated else {})


class Connections:
    """The connections of one database, and those that the settings declare, which win. All methods but `run` and `close` block.

    Parameters
    ----------
    database, pepper: where they are kept, and what the encryption's key is made from.
    grants, secrets: who may, and what references stand for.
    declared: what `smalti.yaml` says.
    hosts: hosts in private networks that the settings allow.
    """

    def __init__(
        self,
        database: Database,
        pepper: Path,
        grants: Grants,
        secrets: Scopes,
        *,
        declared: Sequence[ConnectionDeclaration] = (),
        hosts: Collection[str] = (),
    ) -> None:
        self._database, self._pepper, self.grants, self._secrets, self._hosts = database, pepper, grants, secrets, hosts
        self._declared = {each.name: _declared(each) for each in declared}
        self._open: dict[str, tuple[Connection, str, Transport]] = {}
        self._tokens: dict[str, Tokens] = {}

    # --- what there is ---

    def find(self, name: str) -> Connection | None:
        if name in self._declared:
            return self._declared[name]
        with self._database.connect() as connection:
            row = connection.execute(select(table).where(table.c.name == name)).first()
        return _read(row._mapping) if row else None

    def list(self, who: Caller) -> list[Connection]:
        """Those that the caller may see, by name."""
        with self._database.connect() as connection:
            rows = [_read(row._mapping) for row in connection.execute(select(table))]
        found = {each.name: each for each in rows} | self._declared
        return [found[name] for name in sorted(found) if self._allowed(who, name, "CAN_VIEW")]

    def get(self, who: Caller, name: str) -> Connection:
        """Raises `CallError` (404), also for one that the caller may not see."""
        found = self.find(name)
        if found is None or not self._allowed(who, name, "CAN_VIEW"):
            raise not_found(f"There is no connection {name[:200]!r} that you may see.")
        return found

    # --- changing ---

    def create(
        self,
        who: Caller,
        name: str,
        options: Mapping[str, str],
        *,
        comment: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> Connection:
        self.grants.check(who, EVERY, "CAN_MANAGE")
        if not NAME.fullmatch(name):
            raise bad_request("A connection's name is up to 255 letters, digits, '-' and '_'.", "name")
        if self.find(name) is not None:
            raise CallError(f"Connection {name!r} already exists.", status=409, code="RESOURCE_ALREADY_EXISTS")
        now = time.time_ns() // 1_000_000
        made = Connection(name, {}, "public", None, comment or "", properties, who.name, who.name, now, now)
        made = self._checked(who, made, options)
        try:
            self._store(who, made, "connections.create")
        except IntegrityError:  # by two at once
            raise CallError(f"Connection {name!r} already exists.", status=409, code="RESOURCE_ALREADY_EXISTS") from None
        self.grants.grant(who.principal, f"connection:{name}", "CAN_MANAGE", by=who)
        return made

    def update(
        self, who: Caller, name: str, options: Mapping[str, str], *, new_name: str | None = None, owner: str | None = None
    ) -> Connection:
        """Options that are sent take the place of those of the same name. A credential goes to no other address than it did."""
        held = self._changeable(who, name)
        made = self._checked(who, replace(held, updater=who.name, updated=time.time_ns() // 1_000_000), options)
        if owner:
            made = replace(made, creator=owner)
        if new_name and new_name != name:
            if not NAME.fullmatch(new_name):
                raise bad_request("A connection's name is up to 255 letters, digits, '-' and '_'.", "new_name")
            if self.find(new_name) is not None:
                raise CallError(f"Connection {new_name!r} already exists.", status=409, code="RESOURCE_ALREADY_EXISTS")
            self.grants.check(who, EVERY, "CAN_MANAGE")
            made = replace(made, name=new_name)
        self._store(who, made, "connections.update", held)
        if made.name != name:
            kept = [(each.principal, each.level) for each in self.grants.list(f"connection:{name}") if not each.via]
            self.grants.apply(f"connection:{made.name}", kept, replace=True, by=who)
            self.grants.forget(f"connection:{name}", by=who.name)
        return made

    def delete(self, who: Caller, name: str) -> None:
        self._changeable(who, name)
        with self._database.begin() as connection:
            connection.execute(delete(table).where(table.c.name == name))
            audit.record(connection, who.name, "connections.delete", f"connection:{name}", {}, {})
        self.grants.forget(f"connection:{name}", by=who.name)

    # --- using ---

    async def run(self, call: Call) -> AsyncIterator[Event]:
        """The engine of every connection. Raises `CallError`."""
        found, credential = await asyncio.to_thread(self._found, call.endpoint.removeprefix("connection:"))
        tokens = self._signing_in(found, credential) if found.secret_option == "client_secret" else None
        token = await tokens.token() if tokens else credential
        try:
            result = await service.ask(self._transport(found, token), call.payload)
        except service.CredentialRefused:
            if tokens is None:
                raise
            token = await tokens.token(refused=token)  # it may have been called back before its time
            result = await service.ask(self._transport(found, token), call.payload)
        yield Event("result", {"result": result})

    async def close(self) -> None:
        for each in (*(transport for _, _, transport in self._open.values()), *self._tokens.values()):
            await each.aclose()
        self._open.clear()
        self._tokens.clear()

    # --- within ---

    def _allowed(self, who: Caller, name: str, level: str) -> bool:
        return self.grants.allowed(who, f"connection:{name}", level) or self.grants.allowed(who, EVERY, level)

    def _changeable(self, who: Caller, name: str) -> Connection:
        found = self.get(who, name)
        if name in self._declared:
            message = f"Connection {name!r} is declared in the server's settings, which win: change it there."
            raise CallError(message, status=409, code="RESOURCE_CONFLICT")
        if not self._allowed(who, name, "CAN_MANAGE"):
            self.grants.check(who, f"connection:{name}", "CAN_MANAGE")
        return found

    def _checked(self, who: Caller, held: Connection, given: Mapping[str, str]) -> Connection:
        """The connection with these options. Raises `CallError`."""
        if unknown := sorted(set(given) - set(OPTIONS)):
            raise bad_request(f"An HTTP connection has no option {unknown[0]!r}; it has {', '.join(OPTIONS)}.", "options")
        options = {**held.options, **{key: value for key, value in given.items() if value}}
        for key in (key for key, value in given.items() if not value):
            options.pop(key, None)
        check_address(options)
        name = secret_of(options)
        secret = None if name in given or name != held.secret_option else held.secret
        if is_reference(token := options.get(name)):
            self._secrets.check_references(who, [token])
        elif token is not None:
            if not TOKEN.fullmatch(token):
                raise bad_request(f"The option {name!r} is printable text without spaces.", "options")
            secret = self._cipher().encrypt(options.pop(name).encode()).decode()
        made = replace(held, options=options, secret=secret)
        if name == "client_secret" and not made.authenticated:
            raise bad_request("The option 'client_secret' is missing: a connection with a 'client_id' signs in.", "options")
        moved = bool(held.options) and made.places != held.places
        if moved and made.authenticated and name not in given:
            raise bad_request(f"The connection would lead elsewhere: send its {name!r} again, or an empty one.", "options")
        if not held.options or moved or options.get("private_network") != held.options.get("private_network"):
            private = options.get("private_network", "false").lower() == "true"
            if private and not who.admin:
                raise forbidden("The option 'private_network' is an administrator's to set.")
            made = replace(made, reach="private" if private else "own" if who.admin else "public")
        for url in filter(None, (made.url, options.get("token_endpoint"))):
            parts = urlsplit(url)
            try:
                if (reach := self._reach(made, url)) != "any":
                    addresses.lookup(parts.hostname or "", parts.port or 443, reach)
            except addresses.Unreachable as error:
                raise bad_request(str(error), "options") from None
        if made.reach == "public" and options.get("token_endpoint", "https").startswith("http:"):
            raise bad_request("The option 'token_endpoint' begins with https://, as a secret is sent there.", "options")
        return made

    def _reach(self, connection: Connection, url: str) -> Reach:
        return "any" if urlsplit(url).hostname in self._hosts else connection.reach

    def _store(self, who: Caller, made: Connection, action: str, held: Connection | None = None) -> None:
        details = {"comment": made.comment, "properties": dict(made.properties or {}), "reach": made.reach}
        row = {
            "name": made.name, "creator": made.creator, "created": made.created, "updater": made.updater,
            "updated": made.updated, "options": orjson.dumps(dict(made.options)).decode(),
            "details": orjson.dumps(details).decode(),
            "secret": made.secret,
        }  # fmt: skip
        before = dict(held.options) if held else {}
        with self._database.begin() as connection:
            if held is not None:
                connection.execute(delete(table).where(table.c.name == held.name))
            connection.execute(insert(table).values(**row))
            audit.record(connection, who.name, action, f"connection:{made.name}", before, dict(made.options))

    def _found(self, name: str) -> tuple[Connection, str]:
        """A connection and its credential. Blocking. Raises `CallError`."""
        found = self.find(name)
        if found is None:
            raise not_found(f"There is no connection {name[:200]!r}.")
        credential, option = self._credential(found).strip(), found.secret_option
        if credential and not TOKEN.fullmatch(credential):
            raise misconfigured(f"The {option} of connection {name} has spaces or line breaks in it. Set it again.")
        return found, credential

    def _signing_in(self, found: Connection, secret: str) -> Tokens:
        """What fetches a connection's tokens; made anew once its address or its secret changed."""
        options = found.options
        client = Client(
            f"connection {found.name}", options["token_endpoint"], options["client_id"], secret, options.get("oauth_scope", ""),
            options.get("oauth_credential_exchange_method", EXCHANGES[0]), self._reach(found, options["token_endpoint"]),
        )  # fmt: skip
        held = self._tokens.get(found.name)
        if held is None or held.client != client:
            held = self._tokens[found.name] = Tokens(client)
        return held

    def _transport(self, found: Connection, token: str) -> Transport:
        """What asks a connection's service; made anew once its address or its token changed."""
        held = self._open.get(found.name)
        if held is None or held[:2] != (found, token):
            credential = "client_id and client_secret" if found.secret_option == "client_secret" else "bearer_token"
            upstream = Upstream(
                found.url, None, token or None, key_from=f"the {credential} of connection {found.name}",
                reach=self._reach(found, found.url), what="service",
            )  # fmt: skip
            held = self._open[found.name] = (found, token, Transport(upstream, timeouts=Timeouts()))
        return held[2]

    def _credential(self, found: Connection) -> str:
        if variable := found.secret_env:
            if value := os.environ.get(variable):
                return value
            raise misconfigured(f"The credential of connection {found.name} is not set: set {variable} where the server starts.")
        if reference := found.options.get(found.secret_option):
            return self._secrets.resolved(reference)
        return self._cipher().decrypt(found.secret.encode()).decode() if found.secret else ""

    def _cipher(self) -> Any:
        return cipher(self._pepper, b"smalti connections")


def _declared(given: ConnectionDeclaration) -> Connection:
    variable = given.bearer_token_env or given.client_secret_env
    return Connection(given.name, {**given.options}, "any", comment=given.comment, secret_env=variable)


def _read(row: Any) -> Connection:
    details = orjson.loads(row["details"])
    return Connection(
        row["name"], orjson.loads(row["options"]), details["reach"], row["secret"], details["comment"],
        details["properties"], row["creator"], row["updater"], row["created"], row["updated"],
    )  # fmt: skip
