"""The MLflow server of `mlflow_url` as the rest of Smalti asks it, and what a process beside the server needs of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.feedback import Traces
from serving.registry import Models, Registry
from serving.tracking.base import registry_action
from serving.tracking.remote.connection import Connection
from serving.tracking.remote.models import RemoteRegistry
from serving.tracking.remote.place import Place
from serving.tracking.remote.traces import RemoteTraces

if TYPE_CHECKING:
    from serving.settings import Settings


class RemoteMlflow(Connection):
    """A `Connection` whose registered models have their own copies of their files.

    Parameters
    ----------
    place: where it is.
    home: the state folder, for copies of the models that are served from here.
    """

    kept = frozenset(
        {
            ("model-versions", "create"),
            ("model-versions", "delete"),
            ("model-versions", "get-download-uri"),
            ("registered-models", "delete"),
        }
    )

    def __init__(self, place: Place, home: Path) -> None:
        super().__init__(place)
        self.registry = RemoteRegistry(self, home)

    async def ask(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        if not self.ready.is_set():
            raise self.away()
        action = registry_action(path)
        if action in self.kept or path.startswith("/smalti/"):
            return await asyncio.to_thread(self.registry.answer, path.rsplit("/", 2)[-2:], dict(fields or {}))
        found = await super().ask(method, path, fields)
        return self.registry.told(found) if action else found

    def shown(self, body: bytes) -> bytes:
        return json.dumps(self.registry.told(json.loads(body))).encode()


def traces(settings: Settings, home: Path) -> Traces | RemoteTraces:
    """What is said of answers, for a process beside the server."""
    place = Place.of(settings)
    return RemoteTraces(Connection(place)) if place else Traces(home / "mlflow.db")


def models(settings: Settings, home: Path) -> Models:
    """The registered models, for a process beside the server."""
    place = Place.of(settings)
    return RemoteMlflow(place, home).registry if place else Registry(home)
