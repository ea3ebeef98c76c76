"""Who asks: keys of users and service principals, and their groups.

A key is `smk_` and 256 random bits. It is shown once; what is stored is its HMAC-SHA256 under a pepper that lives in a
file beside the database, so that a copy of the database alone opens nothing. A key is looked up by its full digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sqlalchemy import ColumnElement, Connection, Engine, delete, select, update

from governance import audit
from governance.call import Caller, unauthenticated
from governance.changes import Changes
from governance.grants import check_securable
from governance.key import Key, Kind, iso, key_of
from governance.pepper import load_pepper
from governance.tables import keys, principals

PREFIX = "smk_"
NO_KEY = "no key was sent: send one as 'Authorization: Bearer smk_...' (an admin makes it with `smalti keys create`)"
GIVEN = "given"
"""Label of the admin key an operator chose."""
_KEPT_AFTER_EXPIRY = 86_400.0  # seconds an expired key is kept, so that its holder is told why it stopped working
_LONGEST_LIFE = 100 * 365 * 86_400.0
_LASTING = 7 * 86_400.0  # an admin key must live longer than this to be the one that lets people in
_LONGEST = 4_096  # characters of a presented key that are looked at


@dataclass(frozen=True, slots=True)
class _Entry:
    caller: Caller
    expires: float | None
    revoked: float | None


class Identity:
    """Keys and the callers they stand for. Thread-safe; a change is in force on the next request of every process.

    Parameters
    ----------
    engine: the state database.
    pepper_file: where the pepper is kept, mode 0600; made when missing. Losing it makes every key invalid.
    """

    def __init__(self, engine: Engine, pepper_file: Path) -> None:
        self.changes = Changes.of(engine)
        self._engine = engine
        self._pepper = load_pepper(Path(pepper_file))
        self._hmac = hmac.new(self._pepper, digestmod="sha256")
        self._pepper_id = hashlib.sha256(self._pepper).hexdigest()[:16]
        self._lock = threading.RLock()
        self._seen = 0
        self._entries: dict[str, _Entry] = {}
        self._groups: dict[tuple[str, str], frozenset[str]] = {}
        self._swept = 0.0

    def __repr__(self) -> str:
        return f"<Identity of {len(self._entries)} keys>"

    # --- asking ---

    def authenticate(self, secret: str | None) -> Caller:
        """The caller a key stands for. Raises `CallError` 401 for a missing, unknown, expired or revoked key."""
        if not secret:
            raise unauthenticated(NO_KEY)
        self._refresh()
        secret = secret[:_LONGEST].strip()
        entry = self._entries.get(self._digest(secret.encode("utf-8", "surrogatepass")))
        if entry is None and not secret.isascii():  # the bytes that an HTTP header's Latin-1 reading stands for
            with contextlib.suppress(UnicodeEncodeError):
                entry = self._entries.get(self._digest(secret.encode("latin-1")))
        if entry is None:
            raise unauthenticated("this key is not known here: check it, or ask an admin for a new one (`smalti keys create`)")
        if entry.revoked is not None:
            raise unauthenticated("this key was revoked: ask an admin for a new one (`smalti keys create`)")
        if entry.expires is not None and entry.expires <= time.time():
            raise unauthenticated("this key has expired: sign in again, or ask an admin for a new one (`smalti keys create`)")
        return entry.caller

    def list_keys(self, name: str | None = None) -> list[Key]:
        """All keys, oldest first; of one name where given. Never a secret."""
        statement = select(keys, principals.c.groups).select_from(
            keys.outerjoin(principals, (keys.c.kind == principals.c.kind) & (keys.c.name == principals.c.name))
        )
        if name is not None:
            statement = statement.where(keys.c.name == name)
        with self._engine.connect() as connection:
            return [key_of(row._mapping) for row in connection.execute(statement.order_by(keys.c.created, keys.c.id))]

    def groups_of(self, name: str, kind: Kind = "user") -> frozenset[str]:
        self._refresh()
        return self._groups.get((kind, name), frozenset())

    def members(self) -> Mapping[tuple[Kind, str], frozenset[str]]:
        """The groups of each user and service principal that was ever put into one, by kind and name."""
        self._refresh()
        return cast("Mapping[tuple[Kind, str], frozenset[str]]", self._groups)

    def principal(self, name: str) -> str:
        """`KIND:NAME` of a name that may lack its kind: a service principal or a group where there is one, else a user."""
        kind, _, rest = name.partition(":")
        if kind in ("user", "group", "service_principal") and rest:
            return name
        self._refresh()
        if any(key.kind == "service_principal" for key in self.list_keys(name)) or ("service_principal", name) in self._groups:
            return f"service_principal:{name}"
        return f"group:{name}" if any(name in groups for groups in self._groups.values()) else f"user:{name}"

    def digest(self, *parts: str) -> str:
        """What is stored of another secret than a key, under the same pepper; `parts` say what it is for, and the secret."""
        return self._digest("\0".join(("secret", *parts)).encode())

    # --- changing ---

    def create_key(
        self,
        name: str,
        *,
        kind: Kind = "user",
        groups: Iterable[str] = (),
        admin: bool = False,
        ttl: float | None = None,
        label: str = "",
        parent: str | None = None,
        by: str | None = None,
        scopes: Iterable[str] | None = None,
        session: bool = False,
    ) -> tuple[Key, str]:
        """Make a key; gives it and its secret, which cannot be had again.

        Parameters
        ----------
        name: the user or service principal; need not exist yet.
        groups: groups to add to those the name is in already.
        admin: the key may do everything.
        ttl: seconds until it expires; None for never.
        label: what it is for, shown in lists.
        parent: id of the key this one is made from (a session's): with that one this one ends too, at the latest.
        by: who makes it, for the audit log.
        scopes: securables (`endpoint:NAME`, `index:NAME`) it is good for; None for all that its owner may call. Never an admin's.
        session: it comes and goes by itself, with a command, a sign-in or a token; the audit log tells it apart.
        """
        if ttl is not None and not 0 < ttl <= _LONGEST_LIFE:
            raise ValueError("a key lives for more than 0 s and at most 100 years; leave ttl out for one that never expires")
        secret = PREFIX + secrets.token_urlsafe(32)
        with self.changes.write("identity") as (connection, version):
            now = time.time()
            expires = now + ttl if ttl is not None else None
            only = None if scopes is None else tuple(sorted({check_securable(each) for each in scopes}))
            key = self._insert(connection, version, secret, name, kind, groups, admin, label, now, expires, parent, only)
            action = audit.SESSION["create"] if session else "key.create"
            audit.record(connection, by, action, f"key:{key.id}", after=key.as_dict())
            return key, secret

    def ensure_admin(self, secret: str | None = None) -> str | None:
        """Make sure that an admin can sign in.

        Without a secret: makes a random admin key and returns it, once; later None, as long as one lasts.
        With a secret (at least 8 printable characters): it becomes the given admin key, the one given before stops working, and
        None is returned. Raises `ValueError` where it cannot be a key.
        """
        if secret is None:
            with self.changes.write("identity") as (connection, version):
                now = time.time()
                lasting = keys.c.revoked.is_(None) & (keys.c.expires.is_(None) | (keys.c.expires > now + _LASTING))
                own = keys.c.parent.is_(None) & (keys.c.label != "session")
                found = connection.execute(
                    select(keys.c.id).where(keys.c.admin, keys.c.pepper == self._pepper_id, own, lasting)
                ).first()
                if found is not None:
                    return None
                fresh = PREFIX + secrets.token_urlsafe(32)
                key = self._insert(connection, version, fresh, "admin", "user", (), True, "first start", now, None)
                audit.record(connection, "first start", "key.create", f"key:{key.id}", after=key.as_dict())
                return fresh
        secret = _given(secret)
        digest = self._digest(secret.encode())
        with self.changes.write("identity") as (connection, version):
            now = time.time()
            old = connection.execute(select(keys).where(keys.c.digest == digest)).mappings().first()
            if old is not None and not old["admin"]:
                raise ValueError(f"the given admin key is already the key of {old['kind']} {old['name']}: choose another")
            self._end(connection, version, (keys.c.label == GIVEN) & (keys.c.digest != digest))
            if old is None:
                key = self._insert(connection, version, secret, "admin", "user", (), True, GIVEN, now, None)
                audit.record(connection, "settings", "key.create", f"key:{key.id}", after=key.as_dict())
            else:
                connection.execute(
                    update(keys).where(keys.c.digest == digest).values(revoked=None, expires=None, changed=version)
                )
        return None

    def revoke(self, key_id: str, *, by: str | None = None, session: bool = False) -> Key:
        """End a key, in force on the next request. Raises `KeyError` where there is no such key; revoking twice is fine.

        `session`: it ends by itself, as a key that was made so does.
        """
        with self.changes.write("identity") as (connection, version):
            self._end(connection, version, keys.c.id == key_id)
            row = connection.execute(select(keys).where(keys.c.id == key_id)).mappings().first()
            if row is None:
                raise KeyError(f"there is no key with id {key_id!r}: `smalti keys list` shows them")
            action = audit.SESSION["revoke"] if session else "key.revoke"
            audit.record(connection, by, action, f"key:{key_id}", {"name": row["name"], "kind": row["kind"]})
            return key_of({**row, "groups": json.dumps(self._stored_groups(connection, row["kind"], row["name"]))})

    def relabel(self, key_id: str, label: str, *, by: str | None = None) -> None:
        """Say anew what a key is for. Raises `KeyError` where there is no such key, and `ValueError` for a label with a
        meaning."""
        with self.changes.write("identity") as (connection, version):
            old = connection.execute(select(keys.c.label).where(keys.c.id == key_id)).first()
            if old is None:
                raise KeyError(f"there is no key with id {key_id!r}: `smalti keys list` shows them")
            if {old.label, label} & {GIVEN, "session"}:
                raise ValueError(f"the labels {GIVEN!r} and 'session' tell of what a key comes from, and stay")
            connection.execute(update(keys).where(keys.c.id == key_id).values(label=label[:256], changed=version))
            audit.record(connection, by, "key.relabel", f"key:{key_id}", old.label, label)

    def rotate(self, key_id: str, *, overlap: float = 86_400.0, by: str | None = None) -> tuple[Key, str]:
        """A key in place of another, with its rights and its end; the other one works for `overlap` seconds more.

        Raises `KeyError` where there is no such key, and `ValueError` where it is not in force or was given by a setting.
        """
        secret = PREFIX + secrets.token_urlsafe(32)
        with self.changes.write("identity") as (connection, version):
            now = time.time()
            old = connection.execute(select(keys).where(keys.c.id == key_id)).mappings().first()
            if old is None:
                raise KeyError(f"there is no key with id {key_id!r}: `smalti keys list` shows them")
            if old["revoked"] is not None or (old["expires"] or now + 1) <= now or old["label"] == GIVEN or overlap < 0:
                raise ValueError("only a key that is in force, and was not given by a setting, can be rotated: make a new one")
            scopes = None if old["scopes"] is None else tuple(json.loads(old["scopes"]))
            name, kind, label, ends = old["name"], old["kind"], old["label"], old["expires"]
            key = self._insert(connection, version, secret, name, kind, (), old["admin"], label, now, ends, old["parent"], scopes)
            ends = min(now + overlap, ends or now + overlap)
            later = keys.c.expires.is_(None) | (keys.c.expires > ends)
            of = (keys.c.id == key_id) | ((keys.c.parent == key_id) & later)  # what was made from it ends with it
            connection.execute(update(keys).where(of).values(expires=ends, changed=version))
            audit.record(
                connection,
                by,
                "key.rotate",
                f"key:{key_id}",
                {"expires": iso(old["expires"])},
                {"key": key.id, "old_expires": iso(ends)},
            )
        return key, secret

    def set_groups(self, name: str, groups: Iterable[str], *, kind: Kind = "user", by: str | None = None) -> tuple[str, ...]:
        """Replace the groups of a user or service principal; all its keys follow on the next request."""
        wanted = tuple(sorted({_name(group, "group") for group in groups}))
        with self.changes.write("identity") as (connection, version):
            before = self._stored_groups(connection, kind, name)
            self._store_groups(connection, version, _kind(kind), _name(name, "name"), wanted)
            audit.record(connection, by, "groups.set", f"{kind}:{name}", before, wanted)
        return wanted

    # --- within ---

    def _insert(
        self,
        connection: Connection,
        version: int,
        secret: str,
        name: str,
        kind: Kind,
        groups: Iterable[str],
        admin: bool,
        label: str,
        now: float,
        expires: float | None,
        parent: str | None = None,
        scopes: tuple[str, ...] | None = None,
    ) -> Key:
        name, kind = _name(name, "name"), _kind(kind)
        held = set(self._stored_groups(connection, kind, name))
        wanted = tuple(sorted(held | {_name(group, "group") for group in groups}))
        if set(wanted) != held:
            self._store_groups(connection, version, kind, name, wanted)
        if parent is not None:
            wanted_of = select(keys.c.parent, keys.c.revoked, keys.c.scopes, keys.c.expires).where(keys.c.id == parent)
            of = connection.execute(wanted_of).first()
            if of is None or of.revoked is not None or (of.expires is not None and of.expires <= now):
                raise ValueError("the key this one is to be made from is not in force: sign in again")
            if of.expires is not None:  # else whoever holds a key that ends would make one that goes on, again and again
                expires = min(expires or of.expires, of.expires)
            parent = of.parent or parent
            scopes = tuple(json.loads(of.scopes)) if of.scopes is not None else scopes
        if admin and scopes is not None:
            raise ValueError("a key with scopes cannot be an admin's")
        key = Key(secrets.token_hex(8), name, kind, wanted, bool(admin), str(label)[:256], now, expires, scopes=scopes)
        connection.execute(delete(keys).where(keys.c.expires < now - _KEPT_AFTER_EXPIRY))
        connection.execute(
            keys.insert().values(
                id=key.id,
                digest=self._digest(secret.encode()),
                pepper=self._pepper_id,
                name=name,
                kind=kind,
                admin=key.admin,
                label=key.label,
                created=now,
                expires=expires,
                revoked=None,
                parent=parent,
                scopes=None if scopes is None else json.dumps(list(scopes)),
                changed=version,
            )
        )
        return key

    @staticmethod
    def _end(connection: Connection, version: int, which: ColumnElement[bool]) -> None:
        """Revoke keys, and those made from them."""
        alive = keys.c.revoked.is_(None)
        ids = list(connection.execute(select(keys.c.id).where(which)).scalars())
        gone = update(keys).where(alive, keys.c.id.in_(ids) | keys.c.parent.in_(ids))
        connection.execute(gone.values(revoked=time.time(), changed=version))

    @staticmethod
    def _stored_groups(connection: Connection, kind: str, name: str) -> list[str]:
        row = connection.execute(select(principals.c.groups).where(principals.c.kind == kind, principals.c.name == name)).first()
        return json.loads(row[0]) if row else []

    @staticmethod
    def _store_groups(connection: Connection, version: int, kind: str, name: str, groups: tuple[str, ...]) -> None:
        values = {"groups": json.dumps(list(groups)), "changed": version}
        where = (principals.c.kind == kind) & (principals.c.name == name)
        if connection.execute(update(principals).where(where).values(**values)).rowcount == 0:
            connection.execute(principals.insert().values(kind=kind, name=name, **values))

    def _digest(self, raw: bytes) -> str:
        made = self._hmac.copy()  # whose pepper is hashed already
        made.update(raw)
        return made.hexdigest()

    def _refresh(self) -> None:
        """Take over what changed since the last look; rows carry the counter's value, so only those are read."""
        version = self.changes.versions().get("identity", 0)
        if version == self._seen:
            return
        with self._lock:
            since = self._seen if version > self._seen else -1  # a counter that went back is another database: read it all
            members = self.changes.fetch("SELECT kind, name, groups FROM principals WHERE changed > :since", {"since": since})
            rows = self.changes.fetch(
                "SELECT id, digest, name, kind, admin, expires, revoked, scopes FROM api_keys WHERE changed > :since",
                {"since": since},
            )
            groups = dict(self._groups) if since >= 0 else {}
            groups.update({(kind, name): frozenset(json.loads(held)) for kind, name, held in members})
            entries = dict(self._entries) if since >= 0 else {}
            moved = {(kind, name) for kind, name, _ in members}
            if moved:
                for digest, entry in entries.items():
                    who = entry.caller
                    if (who.kind, who.name) in moved:
                        caller = Caller(who.name, who.kind, groups[who.kind, who.name], who.admin, who.key_id, who.scopes)
                        entries[digest] = _Entry(caller, entry.expires, entry.revoked)
            for key_id, digest, name, kind, admin, expires, revoked, scopes in rows:
                only = None if scopes is None else frozenset(json.loads(scopes))
                caller = Caller(name, kind, groups.get((kind, name), frozenset()), bool(admin), key_id, only)
                entries[digest] = _Entry(caller, expires, revoked)
            if time.time() - self._swept > 3_600:
                self._swept = time.time()
                limit = self._swept - _KEPT_AFTER_EXPIRY
                entries = {digest: entry for digest, entry in entries.items() if entry.expires is None or entry.expires > limit}
            self._groups, self._entries, self._seen = groups, entries, version


def _given(secret: str) -> str:
    secret = secret.strip()
    if len(secret) < 8:
        raise ValueError("the given admin key is too short: use at least 8 characters (SMALTI_ADMIN_KEY)")
    if len(secret) > _LONGEST or not secret.isprintable():
        raise ValueError(
            f"the given admin key must be printable text on one line, at most {_LONGEST} characters (SMALTI_ADMIN_KEY)"
        )
    return secret


def _name(value: str, what: str) -> str:
    value = str(value).strip()
    if not value or len(value) > 256 or not value.isprintable():
        raise ValueError(f"a {what} must be 1 to 256 printable characters")
    return value


def _kind(kind: str) -> Kind:
    if kind not in ("user", "service_principal"):
        raise ValueError(f"kind must be 'user' or 'service_principal', not {kind!r}")
    return cast(Kind, kind)
