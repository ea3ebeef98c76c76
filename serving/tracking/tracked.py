"""What is tracked, by this server's own MLflow or one elsewhere: the server, its registered models, files and traces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.feedback import Traces
from serving.files.artifacts import Artifacts
from serving.registry import Models, Registry

if TYPE_CHECKING:
    from serving.settings import Settings
    from serving.tracking.base import TrackingServer
    from serving.tracking.remote.traces import RemoteTraces


@dataclass(frozen=True, slots=True)
class Tracked:
    """`server` is None where settings switch it off; registered models can be served also then."""

    server: TrackingServer | None
    registry: Models
    artifacts: Artifacts
    traces: Traces | RemoteTraces

    @classmethod
    def open(cls, settings: Settings, home: Path) -> Tracked:
        """As settings say, for the state folder `home`. What belongs to MLflow is imported where it is used."""
        if settings.mlflow_url:
            from serving.tracking.remote.files import RemoteArtifacts
            from serving.tracking.remote.place import Place
            from serving.tracking.remote.server import RemoteMlflow
            from serving.tracking.remote.traces import RemoteTraces

            place = Place.of(settings)
            assert place is not None
            server = RemoteMlflow(place, home)
            server.registry.tidy()
            return cls(server if settings.mlflow else None, server.registry, RemoteArtifacts(home, server), RemoteTraces(server))
        own: TrackingServer | None = None
        if settings.mlflow:
            from serving.tracking.server import MlflowServer

            own = MlflowServer(home)
        registry = Registry(home)
        return cls(own, registry, Artifacts(home, registry), Traces(home / "mlflow.db"))
