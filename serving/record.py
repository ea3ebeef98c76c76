"""An endpoint of models as the life cycle holds it: what it serves, what is coming, and how the API shows both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from governance.call import Call, Event, bad_request, unavailable
from serving.config import readable
from serving.endpoint import EndpointTask
from serving.entities import DEPLOYMENT, Entity
from serving.traffic import Arms

_DEFAULTS = {"scale_to_zero_enabled": False, "workload_type": "CPU"}
"""What a served model has where its config does not say."""


@dataclass
class Record:
    """An endpoint and what runs for it."""

    name: str
    creator: str
    created: int
    updated: int
    task: EndpointTask = "predict"
    config_version: int = 0
    config: dict[str, Any] | None = None
    pending: dict[str, Any] | None = None
    failure: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    entities: dict[str, Entity] = field(default_factory=dict)
    coming: dict[str, Entity] = field(default_factory=dict)
    work: asyncio.Task[None] | None = None
    arms: Arms | None = None
    """What answers, made of `config` and `entities`."""
    declared: bool = False
    """Whether it is the settings', which nothing changes while the server runs."""

    @property
    def updating(self) -> bool:
        return self.pending is not None and self.failure is None

    def answer(self, call: Call) -> AsyncIterator[Event]:
        """The engine of the endpoint: one entity answers, and is named. Raises `CallError` where there is none: 503 while it is
        coming, 400 where it only comes by an update, since clients go on trying for minutes at 503."""
        if self.arms is None:
            reason = self.failure or "it is being created"
            if self.failure and not self.declared:
                raise bad_request(f"Endpoint {self.name!r} is not ready, and will not be until it is updated: {reason}")
            raise unavailable(f"Endpoint {self.name!r} is not ready: {reason}", retry_after=None if self.failure else 5)
        return self.arms.answer(call)

    @property
    def ready(self) -> bool:
        """Whether every entity that gets traffic can answer."""
        routes = self.config["traffic_config"]["routes"] if self.config else []
        states = [self.entities[route["served_entity_name"]].state[0] for route in routes if route["traffic_percentage"]]
        return bool(states) and all(state == "READY" for state in states)

    def live(self, url: str) -> dict[str, Any]:
        """What of the API's object changes with time."""
        update_state = "NOT_UPDATING" if self.pending is None else "UPDATE_FAILED" if self.failure else "IN_PROGRESS"
        body: dict[str, Any] = {
            **{key: value for key, value in self.details.items() if value is not None and key != "rate_limits"},
            "tags": self.details.get("tags") or [],
            "last_updated_timestamp": self.updated,
            "state": {"ready": "READY" if self.ready else "NOT_READY", "config_update": update_state},
            "config": self._shown(self.config, self.entities, self.config_version) if self.config else None,
        }
        if self.pending is not None:
            coming = self.coming or self.entities
            body["pending_config"] = self._shown(self.pending, coming, self.config_version + 1) | {"start_time": self.updated}
        if self.details.get("route_optimized"):
            address = f"{url}/serving-endpoints/{self.name}/invocations"
            about = [
                {
                    "type": "workspace_permission",
                    "object_type": "serving-endpoints",
                    "object_path": f"/serving-endpoints/{self.name}",
                }
            ]
            query = {"authorization_details": json.dumps(about), "endpoint_url": address}
            body |= {"endpoint_url": address, "data_plane_info": {"query_info": query}}
        return body

    def _shown(self, config: Mapping[str, Any], running: Mapping[str, Entity], version: int) -> dict[str, Any]:
        entities = []
        for spec in readable(config)["served_entities"]:
            entity = running.get(spec["name"])
            state, message = entity.state if entity else ("CREATING", "")
            if self.failure and (entity is None or running is not self.entities):
                state, message = ("FAILED", message or self.failure) if state != "READY" else ("FAILED", self.failure)
            entities.append(
                {
                    **(_DEFAULTS if "entity_name" in spec else {}),
                    **spec,
                    **({"entity_version": entity.version} if entity and entity.version else {}),
                    "creator": self.creator,
                    "creation_timestamp": self.updated,
                    "state": {"deployment": DEPLOYMENT[state], "deployment_state_message": message},
                }
            )
        models = [_as_model(entity) for entity in entities if "entity_name" in entity]
        return {**config, "served_entities": entities, "served_models": models, "config_version": version}


def _as_model(entity: Mapping[str, Any]) -> dict[str, Any]:
    """A served entity in the words of the older field `served_models`, which some clients still read."""
    renamed = {"entity_name": "model_name", "entity_version": "model_version"}
    return {renamed.get(key, key): value for key, value in entity.items()}
