"""What is known of a key; never its secret."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Kind = Literal["user", "service_principal"]


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; never its secret. Times are Unix seconds."""

    id: str
    name: str
    kind: Kind
    groups: tuple[str, ...]
    admin: bool
    label: str
    created: float
    expires: float | None = None
    revoked: float | None = None
    scopes: tuple[str, ...] | None = None
    """Securables the key is good for; None for all its owner's."""

    @property
    def live(self) -> bool:
        return self.revoked is None and (self.expires is None or self.expires > time.time())

    def as_dict(self) -> dict[str, Any]:
        """JSON shape, times as ISO 8601 in UTC."""
        return {
            "id": self.id,
            "name": self.name,
            "kind": self.kind,
            "groups": list(self.groups),
            "admin": self.admin,
            "scopes": None if self.scopes is None else list(self.scopes),
            "label": self.label,
            "created": iso(self.created),
            "expires": iso(self.expires),
            "revoked": iso(self.revoked),
        }


def iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def key_of(row: Any) -> Key:
    groups = tuple(json.loads(row["groups"] or "[]"))
    return Key(
        row["id"],
        row["name"],
        row["kind"],
        groups,
        bool(row["admin"]),
        row["label"],
        row["created"],
        row["expires"],
        row["revoked"],
        None if row["scopes"] is None else tuple(json.loads(row["scopes"])),
    )
