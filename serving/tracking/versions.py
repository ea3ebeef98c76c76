"""What the tracking server's process adds to MLflow's model registry: each version has its own copy of its files.

A version that is registered from a run is copied to `registered/ID` of the artifact store, so that what was registered, and may
be served, does not change when somebody writes to the run afterwards. A client of a `databricks-uc` registry uploads the files
itself between `begin` and `finish` (mlflow/store/_unity_catalog/registry/rest_store.py). Only
`serving.unity_catalog.registered` reaches these two, over the process's own socket.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

_SCHEME, _FOLDER = "mlflow-artifacts:/", "registered"
_PROMPT = "mlflow.prompt.is_prompt"


class Versions:
    """Takes the place of three methods of MLflow's registry store.

    Parameters
    ----------
    store: MLflow's SQLAlchemy store of the registry.
    root: the folder of the artifact store.
    """

    def __init__(self, store: Any, root: Path) -> None:
        self._store, self._root = store, root
        self._create, self._delete_version = store.create_model_version, store.delete_model_version
        self._delete_model = store.delete_registered_model
        store.create_model_version, store.delete_model_version = self.create, self.delete_version
        store.delete_registered_model = self.delete_model

    def create(self, name: str, source: str, *args: Any, **more: Any) -> Any:
        """A version with its own copy of the files that lie in the artifact store."""
        made = self._create(name, source, *args, **more)
        tags = more.get("tags") or ()
        origin = self._folder(self._store.get_model_version_download_uri(name, made.version))
        if origin is None or not origin.is_dir() or any(tag.key == _PROMPT for tag in tags):
            return made
        location = _location()
        target = self._folder(location)
        assert target is not None
        try:
            shutil.copytree(origin, target)
        except OSError:
            shutil.rmtree(target, ignore_errors=True)
            self._delete_version(name, made.version)
            raise
        return self._change(name, made.version, storage_location=location)

    def begin(self, name: str, source: str, **more: Any) -> Any:
        """A version that waits for its files."""
        location = _location()
        made = self._create(name, location, **more)
        return self._change(name, made.version, source=source, storage_location=location, status="PENDING_REGISTRATION")

    def finish(self, name: str, version: str) -> Any:
        """A version whose files are there; raises where they are not."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

        folder = self._folder(self._store.get_model_version_download_uri(name, version))
        if folder is None or not (folder / "MLmodel").is_file():
            raise MlflowException(
                f"Version {version} of {name} has no MLmodel file yet: upload its files to /Models/ first.",
                INVALID_PARAMETER_VALUE,
            )
        return self._change(name, version, status="READY")

    def delete_version(self, name: str, version: Any) -> None:
        folder = self._folder(self._store.get_model_version_download_uri(name, version))
        self._delete_version(name, version)
        self._remove(folder)

    def delete_model(self, name: str) -> None:
        found = self._store.search_model_versions(f"name = '{name}'", max_results=10_000) if "'" not in name else ()
        folders = [self._folder(self._store.get_model_version_download_uri(name, each.version)) for each in found]
        self._delete_model(name)
        for folder in folders:
            self._remove(folder)

    def _remove(self, folder: Path | None) -> None:
        if folder is not None and folder.parent == self._root / _FOLDER:
            shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, location: str) -> Path | None:
        if not location.startswith(_SCHEME):
            return None
        path = (self._root / location.removeprefix(_SCHEME).lstrip("/")).resolve()
        return path if path != self._root and path.is_relative_to(self._root) else None

    def _change(self, name: str, version: Any, **columns: str) -> Any:
        with self._store.ManagedSessionMaker(read_only=False) as session:
            row = self._store._get_sql_model_version(session, name, version)
            for column, value in columns.items():
                setattr(row, column, value)
        return self._store.get_model_version(name, version)


def _location() -> str:
    return f"{_SCHEME}{_FOLDER}/{uuid.uuid4().hex}"


def install(app: FastAPI, root: Path) -> None:
    """Put `Versions` over the registry store of the MLflow server `app`, and the way to it at `/smalti/model-versions/…`."""
    from fastapi import Request
    from mlflow.entities.model_registry import ModelVersionTag
    from mlflow.exceptions import MlflowException
    from mlflow.server.handlers import _get_model_registry_store, _get_tracking_store
    from mlflow.utils.proto_json_utils import message_to_json
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response
    from starlette.routing import Route

    versions = Versions(_get_model_registry_store(), root.resolve())

    def begun(given: dict[str, Any]) -> Any:
        made = versions.begin(
            given["name"],
            given["source"],
            run_id=given.get("run_id"),
            description=given.get("description"),
            tags=[ModelVersionTag(tag["key"], tag["value"]) for tag in given.get("tags") or ()],
        )
        if model := given.get("model_id"):
            _get_tracking_store().set_model_versions_tags(name=made.name, version=made.version, model_id=model)
        return made

    def finished(given: dict[str, Any]) -> Any:
        return versions.finish(given["name"], given["version"])

    def route(path: str, work: Any) -> Route:
        async def answer(request: Request) -> Response:
            try:
                made = await run_in_threadpool(work, await request.json())
            except MlflowException as error:
                return Response(error.serialize_as_json(), error.get_http_status_code(), media_type="application/json")
            return Response(f'{{"model_version": {message_to_json(made.to_proto())}}}', media_type="application/json")

        return Route(path, answer, methods=["POST"])

    app.router.routes[:0] = [route("/smalti/model-versions/begin", begun), route("/smalti/model-versions/finish", finished)]
