"""Vector search endpoints: what indexes over rows are on. One is a name with settings; it takes no resources of its own."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from retrieval.errors import AlreadyExists, NotFound
from retrieval.tables import search_endpoints


@dataclass(frozen=True, slots=True)
class SearchEndpoint:
    """An endpoint; times are Unix milliseconds. `details`: `stopped`, `target_qps`, `budget_policy_id`, `custom_tags` …"""

    name: str
    id: str
    kind: str
    creator: str
    created_ms: int
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return "STOPPED" if self.details.get("stopped") else "ONLINE"


class SearchEndpoints:
    """The endpoints of a state folder. Thread-safe; blocking."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, name: str, kind: str, creator: str, details: Mapping[str, Any] | None = None) -> SearchEndpoint:
        """Raises AlreadyExists."""
        now = time.time_ns() // 1_000_000
        values = {"name": name, "id": str(uuid.uuid4()), "kind": kind, "creator": creator, "created_ms": now}
        try:
            with self._engine.begin() as db:
                db.execute(sa.insert(search_endpoints).values(**values, details=json.dumps(dict(details or {}))))
        except IntegrityError:
            raise AlreadyExists(f"vector search endpoint {name!r} exists already") from None
        return self.get(name)

    def get(self, name: str) -> SearchEndpoint:
        """Raises NotFound."""
        with self._engine.connect() as db:
            row = db.execute(sa.select(search_endpoints).where(search_endpoints.c.name == name)).first()
        if row is None:
            raise NotFound(f"vector search endpoint {name!r} does not exist: POST /api/2.0/vector-search/endpoints makes it")
        return _endpoint(row)

    def list(self) -> list[SearchEndpoint]:
        with self._engine.connect() as db:
            return [_endpoint(row) for row in db.execute(sa.select(search_endpoints).order_by(search_endpoints.c.name))]

    def change(self, name: str, **details: Any) -> SearchEndpoint:
        """Stores new settings; None takes one away. Raises NotFound."""
        found = self.get(name)
        kept = {key: value for key, value in {**found.details, **details}.items() if value is not None}
        with self._engine.begin() as db:
            db.execute(sa.update(search_endpoints).where(search_endpoints.c.name == name).values(details=json.dumps(kept)))
        return self.get(name)

    def remove(self, name: str) -> None:
        with self._engine.begin() as db:
            db.execute(sa.delete(search_endpoints).where(search_endpoints.c.name == name))


def _endpoint(row: Any) -> SearchEndpoint:
    return SearchEndpoint(row.name, row.id, row.kind, row.creator, row.created_ms, json.loads(row.details or "{}"))
