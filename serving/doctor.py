"""Looks at the installation: what would keep the server from starting or answering, and what to do about it."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.registry import SCHEME

if TYPE_CHECKING:
    from serving.cli import Workspace

ROOMS = ("agents", "retrieval", "finetune", "serving", "governance", "evals")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `detail` says what was found, and what to do where it is not `ok`."""

    name: str
    ok: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(work: Workspace) -> list[Finding]:
    """Every check; one that raises is a finding too."""
    checks: dict[str, Callable[[Workspace], str]] = {
        "python": _python,
        "settings": _settings,
        "packages": _packages,
        "encoder": _encoder,
        "state": _state,
        "vectors": _vectors,
        "shared": _shared,
        "documents": _documents,
        "mlflow": _mlflow,
        "port": _port,
        "model": _model,
    }
    findings = []
    for name, look in checks.items():
        try:
            findings.append(Finding(name, True, look(work)))
        except Exception as error:
            findings.append(Finding(name, False, str(error) or error.__class__.__name__))
    return findings


def _python(_: Workspace) -> str:
    return sys.version.split()[0]


def _settings(work: Workspace) -> str:
    return f"state in {work.settings.home.resolve()}, {len(work.settings.endpoints)} endpoints declared"


def _packages(_: Workspace) -> str:
    house = Path(__file__).resolve().parent.parent
    for room in ROOMS:
        spec = find_spec(room)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != house:
            owner = ", ".join(packages_distributions().get(room, ["another distribution"]))
            raise RuntimeError(f"The package `{room}` comes from {owner}, at {origin}. Give Smalti an environment of its own.")
    return "no other distribution shadows a room"


def _encoder(work: Workspace) -> str:
    from retrieval.weights import find

    return f"weights in {find(work.home.models)}"


def _state(work: Workspace) -> str:
    work.engine.connect().close()  # opening it brings older tables up to date
    holder = work.home.server()
    served = f"served by process {holder['pid']} at {holder['url']}" if holder else "not served now"
    return f"{work.home.path}, {served}"


def _vectors(work: Workspace) -> str:
    settings = work.settings
    if settings.chroma_url is None:
        shared = (settings.database_url or "").startswith("postgres")
        return "no Chroma server: vectors are searched in memory" if shared else "Chroma in the state folder"
    from retrieval.chroma_server import ChromaServer

    server = ChromaServer(settings.chroma_url, settings.chroma_token)
    return f"Chroma {server.check()} at {server.url}"


def _shared(work: Workspace) -> str:
    """What other servers on the same database have of this one, and what not."""
    settings = work.settings
    if settings.volumes_path is not None:
        settings.volumes_path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.volumes_path):
            pass  # or it says why not
    if not (settings.database_url or "").startswith("postgres"):
        return "nothing: this state folder is one server's"
    settled = {
        "limits of a minute (redis_url)": settings.redis_url,
        "MLflow's runs and registered models (mlflow_url)": settings.mlflow_url or not settings.mlflow,
        "volumes and DBFS (volumes_path)": settings.volumes_path,
    }
    own = [name for name, there in settled.items() if not there]
    more = "documents of conversations, training runs, evaluations and logs"
    return f"the database; each server's own are {', '.join([*own, more])}"


def _documents(work: Workspace) -> str:
    folder = work.settings.docs or Path("docs")
    if not folder.exists():
        raise RuntimeError(f"There is no folder {folder}. Name one: smalti serve --docs PATH")
    return str(folder.resolve())


def _mlflow(work: Workspace) -> str:
    from serving.tracking.remote.connection import Connection
    from serving.tracking.remote.place import Place

    place = Place.of(work.settings)
    if place is None:
        return "of this server itself" if work.settings.mlflow else "switched off"
    server = Connection(place)

    async def look() -> tuple[str | None, str]:
        try:
            problem = await server.look()
            return problem, "" if problem else await server.artifacts_at()
        finally:
            await server.stop()

    problem, artifacts = asyncio.run(look())
    if problem:
        raise RuntimeError(f"The MLflow server at {place.url} cannot be used: {problem}.")
    if not artifacts.startswith(SCHEME):
        raise RuntimeError(
            f"The MLflow server at {place.url} keeps artifacts at {artifacts}, where models cannot be loaded from. "
            "Start it with --artifacts-destination, without --default-artifact-root and --no-serve-artifacts."
        )
    return f"{place.url}, with artifacts behind it"


def _port(work: Workspace) -> str:
    holder = work.home.server()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((work.settings.host, work.settings.port))
        except OSError as error:
            if holder and holder["url"].endswith(f":{work.settings.port}"):
                return f"{work.settings.port}, by this state's own server"
            raise RuntimeError(f"{work.settings.port} is taken ({error.strerror}). Use another: smalti serve --port N") from None
    return f"{work.settings.port} is free"


def _model(work: Workspace) -> str:
    settings = work.settings
    if not (settings.chat_model or settings.chat_base_url):
        return "none configured: answers are extractive"
    return f"{settings.chat_model or 'default'} at {settings.chat_base_url or 'its provider'}"
