"""Endpoints: the named things that can be called, in the shape of Databricks Model Serving.

Source: https://docs.databricks.com/api/workspace/servingendpoints/get
"""

from __future__ import annotations

import difflib
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from governance.call import Call, CallError, Engine, Task, not_found

EndpointTask = Literal[
    "agent/v1/responses", "agent/v1/chat", "agent/v2/chat", "llm/v1/chat", "llm/v1/completions", "llm/v1/embeddings", "predict"
]

CALL_TASKS: Mapping[str, Task] = {
    "agent/v1/responses": "agent",
    "agent/v1/chat": "agent",
    "agent/v2/chat": "agent",
    "llm/v1/chat": "chat",
    "llm/v1/completions": "chat",
    "llm/v1/embeddings": "embeddings",
    "predict": "predict",
}
"""Which `Call.task` an endpoint of each task answers."""

answered_by: ContextVar[dict[str, str] | None] = ContextVar("smalti_answered_by", default=None)
"""Where an endpoint of several entities notes which one answers, by the call's request id; set by who wants to know."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint and the engine that answers its calls.

    Parameters
    ----------
    name: letters, digits, `-`, `_`, `.` and `:`; what clients send as `model`.
    task: what it does; decides which protocols reach it.
    engine: runs a call.
    entity: the served entity in Databricks' fields (`name`, `entity_name`, `entity_version`, `external_model` …).
    creator: who declared it.
    description: one line for people.
    created_ms: Unix milliseconds.
    ai_gateway: its gateway policy in Databricks' fields (`rate_limits` …).
    config_version: counts changes of the served entities.
    live: what of `to_api` changes while it is served (its state, config, tags …).
    health: of each served entity elsewhere whether it is asked, or left alone because it failed several times in a row.
    """

    name: str
    task: EndpointTask
    engine: Engine = field(repr=False)
    entity: Mapping[str, Any] = field(default_factory=dict)
    creator: str = "smalti"
    description: str = ""
    created_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    ai_gateway: Mapping[str, Any] | None = None
    config_version: int = 1
    live: Callable[[], Mapping[str, Any]] | None = field(default=None, repr=False, compare=False)
    health: Callable[[], Mapping[str, bool]] | None = field(default=None, repr=False, compare=False)

    @property
    def id(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()[:32]

    @property
    def call_task(self) -> Task:
        return CALL_TASKS[self.task]

    @property
    def served_name(self) -> str:
        """Name of the served entity, sent as `served-model-name`."""
        return str(self.entity.get("name") or f"{self.name}-{self.config_version}")

    def to_api(self, permission_level: str = "CAN_QUERY", *, ai_gateway: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The endpoint as the REST API gives it; `ai_gateway` replaces the declared policy by the one in force."""
        served = {
            "creator": self.creator,
            "creation_timestamp": self.created_ms,
            "state": {"deployment": "DEPLOYMENT_READY", "deployment_state_message": ""},
            **self.entity,
            "name": self.served_name,
        }
        failed = served["state"]["deployment"] == "DEPLOYMENT_FAILED"
        return {
            "name": self.name,
            "id": self.id,
            "creator": self.creator,
            "creation_timestamp": self.created_ms,
            "last_updated_timestamp": self.created_ms,
            "state": {"ready": "NOT_READY" if failed else "READY", "config_update": "NOT_UPDATING"},
            "task": self.task,
            "description": self.description,
            "config": {
                "served_entities": [served],
                "traffic_config": {
                    "routes": [
                        {
                            "served_model_name": self.served_name,
                            "served_entity_name": self.served_name,
                            "traffic_percentage": 100,
                        }
                    ]
                },
                "config_version": self.config_version,
            },
            "ai_gateway": dict(ai_gateway if ai_gateway is not None else self.ai_gateway or {}),
            "permission_level": permission_level,
            **(self.live() if self.live else {}),
        }


def not_served(call: Call, served: Iterable[str]) -> CallError:
    """The error for a call that asks for an entity which its endpoint does not serve; `served` are those that it does."""
    return not_found(f"Endpoint {call.endpoint!r} serves no entity {call.served_entity!r}; it serves {', '.join(served)}.")


class Endpoints:
    """The registry of endpoints. Thread-safe: readers see one snapshot, writers replace it."""

    def __init__(self, endpoints: Sequence[Endpoint] = ()) -> None:
        self._lock = threading.Lock()
        self._by_name: Mapping[str, Endpoint] = {}
        for endpoint in endpoints:
            self.register(endpoint)

    def register(self, endpoint: Endpoint) -> Endpoint:
        """Add or replace an endpoint; calls that run already keep the engine they began with."""
        with self._lock:
            self._by_name = {**self._by_name, endpoint.name: endpoint}
        return endpoint

    def remove(self, name: str) -> None:
        """Take an endpoint out; raises `CallError` (404) where there is none."""
        with self._lock:
            if name not in self._by_name:
                raise self.missing(name)
            self._by_name = {key: value for key, value in self._by_name.items() if key != name}

    def find(self, name: str) -> Endpoint | None:
        return self._by_name.get(name)

    def get(self, name: str) -> Endpoint:
        """The endpoint of that name; raises `CallError` (404) naming those that may be meant."""
        if endpoint := self._by_name.get(name):
            return endpoint
        raise self.missing(name)

    def list(self) -> Sequence[Endpoint]:
        return sorted(self._by_name.values(), key=lambda endpoint: endpoint.name)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self.list())

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def missing(self, name: str, among: Sequence[str] | None = None) -> CallError:
        """The error for an unknown name; `among` limits what it may mention (those the caller can see)."""
        names = sorted(self._by_name if among is None else among)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) if len(name) <= 256 else []
        if near:
            hint = f"Did you mean {' or '.join(map(repr, near))}?"
        else:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            hint = (
                f"There is {', '.join(map(repr, names[:3]))}{more}: GET /v1/models."
                if names
                else "List those you may call: GET /v1/models."
            )
        shown = name if len(name) <= 80 else name[:77] + "..."
        return not_found(f"There is no endpoint {shown!r}. {hint}")
