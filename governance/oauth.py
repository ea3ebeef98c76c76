"""OAuth for programs: a service principal's secret is exchanged for a token that lives for an hour.

The token is an ordinary key of that principal, so that grants, limits and the journal know one kind of caller. Grants of
https://www.rfc-editor.org/rfc/rfc6749#section-4.4 (client credentials) and https://www.rfc-editor.org/rfc/rfc7523 (a token for
another token), as https://docs.databricks.com/aws/en/dev-tools/auth/oauth-m2m has them.
"""

from __future__ import annotations

import hmac
import secrets
import time

from sqlalchemy import Engine, delete, select

from governance import audit
from governance.call import CallError, unauthenticated
from governance.identity import Identity
from governance.tables import create
from governance.tables import oauth_secrets as table

PREFIX = "smo_"
LIFETIME = 3600
"""Seconds a token is valid."""
LABEL = "oauth"


class OAuth:
    """Secrets of service principals and the tokens they give. Thread-safe; blocking.

    Parameters
    ----------
    engine: the state database.
    identity: makes the tokens.
    """

    def __init__(self, engine: Engine, identity: Identity) -> None:
        create(engine)
        self._engine, self._identity = engine, identity

    def create_secret(self, client_id: str, secret: str | None = None, *, by: str | None = None) -> str:
        """A secret of a service principal, which is its client id; a random one where none is given. Giving one again is fine.

        `by`: who makes it, for the audit log.
        """
        client_id = client_id.strip()
        if not client_id or len(client_id) > 256 or not client_id.isprintable() or ":" in client_id:
            raise ValueError("a client id is the name of a service principal: 1 to 256 printable characters, no colon")
        secret = secret or PREFIX + secrets.token_urlsafe(32)
        digest = self._identity.digest("oauth", client_id, secret)
        with self._engine.begin() as connection:
            known = connection.execute(select(table.c.id).where(table.c.client_id == client_id, table.c.digest == digest)).first()
            if known is None:
                row = {"id": secrets.token_hex(8), "client_id": client_id, "digest": digest, "created": time.time()}
                connection.execute(table.insert().values(**row))
                audit.record(connection, by, "oauth.create", _subject(client_id), after={"id": row["id"]})
        return secret

    def revoke(self, client_id: str, *, by: str | None = None) -> int:
        """End all secrets of a service principal, and the tokens they gave; gives how many secrets that were."""
        with self._engine.begin() as connection:
            ended = list(connection.execute(select(table.c.id).where(table.c.client_id == client_id)).scalars())
            connection.execute(delete(table).where(table.c.client_id == client_id))
            audit.record(connection, by, "oauth.revoke", _subject(client_id), before={"ids": ended})
        for key in self._identity.list_keys(client_id):
            if key.kind == "service_principal" and key.label == LABEL and key.live:
                self._identity.revoke(key.id, by=by, session=True)
        return len(ended)

    def token(self, client_id: str, secret: str) -> tuple[str, int]:
        """A token for a client and the seconds it lives. Raises `CallError` 401 for a wrong client or secret alike."""
        given = self._identity.digest("oauth", client_id, secret)
        with self._engine.connect() as connection:
            stored = connection.execute(select(table.c.digest).where(table.c.client_id == client_id)).scalars().all()
        if not any(hmac.compare_digest(given, digest) for digest in stored):
            raise unauthenticated("the client id or its secret is wrong: an admin makes a new one with `smalti keys oauth NAME`")
        return self._identity.create_key(client_id, kind="service_principal", ttl=LIFETIME, label=LABEL, session=True)[
            1
        ], LIFETIME

    def exchange(self, token: str) -> tuple[str, int]:
        """Another token for the holder of a valid one, which ends with it. Raises `CallError` 401."""
        caller = self._identity.authenticate(token)
        try:
            key, made = self._identity.create_key(
                caller.name, kind=caller.kind, admin=caller.admin, ttl=LIFETIME, label=LABEL, parent=caller.key_id, session=True
            )
        except ValueError as error:
            raise CallError(str(error), status=401, code="UNAUTHENTICATED") from None
        return made, LIFETIME if key.expires is None else max(round(key.expires - time.time()), 1)


def _subject(client_id: str) -> str:
    return f"service_principal:{client_id}"
