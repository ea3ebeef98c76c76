"""Registered models as they are served: which version a name and a version or alias mean, where it lies, what it is.

Read from the tracking database itself, so that it costs neither an import of MLflow nor a running tracking server. Tables:
https://github.com/mlflow/mlflow/tree/master/mlflow/store/model_registry/dbmodels
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import yaml
from sqlalchemy import Connection, TextClause, create_engine, inspect, text

from governance.call import CallError, bad_request, not_found
from serving.signature import Signature

SCHEME = "mlflow-artifacts:/"
REGISTERED = "registered"
"""Folder of the artifact store with the files of registered model versions, each in one of its own."""
_KEPT = "current_stage != 'Deleted_Internal'"
_VERSIONS = text(
    f"SELECT version, source, storage_location, status FROM model_versions WHERE name = :name AND version = :version AND {_KEPT}"
)
_ALIASES = text("SELECT version FROM registered_model_aliases WHERE name = :name AND alias = :alias")
_MODEL = text("SELECT name FROM registered_models WHERE name = :name")
_NAMES = text("SELECT name FROM registered_models ORDER BY name")
_HOLDER = text(f"SELECT name FROM model_versions WHERE storage_location = :location AND {_KEPT}")
_KNOWN = text(f"SELECT version FROM model_versions WHERE name = :name AND {_KEPT} ORDER BY version")


@contextmanager
def reading(database: Path, table: str) -> Iterator[Connection | None]:
    """A connection to the tracking database; None as long as it has no such table. Blocking."""
    if not database.exists():
        yield None
        return
    engine = create_engine(f"sqlite:///{database}")
    try:
        if not inspect(engine).has_table(table):
            yield None
            return
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of a registered model.

    Parameters
    ----------
    path: folder that holds its `MLmodel`.
    task: its task (`llm/v1/chat` …), by its metadata or, for chat, its signature; None for a model of rows.
    loader: the MLflow flavor's loader, as `mlflow.sklearn`.
    signature: its signature, for its description.
    """

    name: str
    version: str
    path: Path
    task: str | None
    loader: str
    signature: Signature = field(default_factory=Signature)

    @property
    def inputs(self) -> Sequence[Mapping[str, Any]]:
        return self.signature.inputs


class Models(Protocol):
    """Registered models, wherever they are kept. All methods block."""

    def find(self, name: str, version: str) -> ModelVersion:
        """The model version; `version` is a number or an alias.

        Raises `CallError`: 404 where there is none, 400 where it cannot be served, 503 where the registry does not answer.
        """
        ...

    def holder(self, location: str) -> str | None:
        """Name of the model whose version's files lie at this location (`mlflow-artifacts:/…`)."""
        ...

    def known(self, name: str) -> bool:
        """Whether there is such a registered model."""
        ...

    def names(self) -> list[str]:
        """All registered models, in order."""
        ...


class Registry:
    """The registered models of a state folder.

    Parameters
    ----------
    home: holds `mlflow.db` and `mlartifacts/`. Models are loaded from within that folder only.
    """

    def __init__(self, home: Path) -> None:
        self._home = home.resolve()
        self._database = self._home / "mlflow.db"

    def find(self, name: str, version: str) -> ModelVersion:
        """The model version; `version` is a number or an alias. Blocking.

        Raises `CallError`: 404 where there is none, 400 where it cannot be served.
        """
        row = self._row(name, version)
        path = self._folder(str(row.storage_location or row.source))
        return described(name, str(row.version), path)

    def folder(self, name: str, version: str, *, pending: bool = False) -> Path:
        """Where the files of a version lie; `pending`: of one that is still being registered. Blocking.

        Raises `CallError`: 404 where there is none, 409 for a finished one that was asked for as pending.
        """
        row = self._row(name, version, unfinished=True)
        if pending and row.status == "READY":
            raise CallError(
                f"Version {row.version} of {name} is registered: its files do not change. Register another version.",
                status=409,
                code="RESOURCE_CONFLICT",
            )
        return self._folder(str(row.storage_location or row.source))

    def holder(self, location: str) -> str | None:
        """Name of the model whose version's files lie at this location (`mlflow-artifacts:/…`). Blocking."""
        return self._name(_HOLDER, location=location)

    def known(self, name: str) -> bool:
        """Whether there is such a registered model. Blocking."""
        return self._name(_MODEL, name=name) is not None

    def names(self) -> list[str]:
        """All registered models, in order. Blocking."""
        with reading(self._database, "registered_models") as connection:
            return list(connection.execute(_NAMES).scalars()) if connection is not None else []

    def _name(self, statement: TextClause, **wanted: str) -> str | None:
        with reading(self._database, "model_versions") as connection:
            return connection.execute(statement, wanted).scalar() if connection is not None else None

    def _row(self, name: str, version: str, *, unfinished: bool = False) -> Any:
        missing = not_found(f"There is no registered model {name!r}. Register it with MLflow first.")
        with reading(self._database, "model_versions") as connection:
            if connection is None:
                raise missing
            number = version.removeprefix("v") if version.removeprefix("v").isdigit() else None
            if number is None:
                alias = version.removeprefix("@")
                number = connection.execute(_ALIASES, {"name": name, "alias": alias.lower()}).scalar()
                if number is None:
                    number = connection.execute(_ALIASES, {"name": name, "alias": alias}).scalar()
            found = None
            if number is not None:
                found = connection.execute(_VERSIONS, {"name": name, "version": int(number)}).first()
            if found is not None and (found.status == "READY" or unfinished):
                return found
            known = [str(each) for each in connection.execute(_KNOWN, {"name": name}).scalars()]
        if found is not None:
            raise bad_request(f"Version {version} of {name} is {found.status}: wait until it is READY, or register it again.")
        if not known:
            raise missing
        raise not_found(f"{name} has no version or alias {version!r}. It has {', '.join(known[-10:])}.")

    def _folder(self, location: str) -> Path:
        """The model's folder, which must lie within the state folder: a model is code that will be run."""
        parts = urlsplit(location)
        if parts.scheme == "mlflow-artifacts":
            path = self._home / "mlartifacts" / unquote(parts.path).lstrip("/")
        elif parts.scheme in ("", "file"):
            path = Path(unquote(parts.path) if parts.scheme else location)
        else:
            raise bad_request(f"The model lies at {location}; models are served from this server's own artifact store only.")
        path = path.resolve()
        if not path.is_relative_to(self._home):
            raise bad_request(f"The model lies at {path}; models are served from this server's own artifact store only.")
        return path


def described(name: str, version: str, path: Path) -> ModelVersion:
    """The version whose files lie in a folder. Raises `CallError` (400) where they are no model that can be served."""
    try:
        about = yaml.safe_load((path / "MLmodel").read_text("utf-8"))
        flavor = about["flavors"]["python_function"]
    except (OSError, yaml.YAMLError):
        raise bad_request(f"Version {version} of {name} has no readable MLmodel file; register it again.") from None
    except (KeyError, TypeError):
        raise bad_request(f"Version {version} of {name} has no python_function flavor; log it with one.") from None
    task = (about.get("metadata") or {}).get("task")
    signature = Signature.of(about.get("signature"))
    if task is None and any(_is_conversation(column) for column in signature.inputs):
        task = "agent/v1/chat"
    return ModelVersion(name, version, path, task, str(flavor.get("loader_module")), signature)


def _is_conversation(column: Any) -> bool:
    """Whether a column of a signature is the messages of a chat: LangChain's chat models are logged without a task."""
    items = column.get("items") if isinstance(column, dict) and column.get("name") == "messages" else None
    return isinstance(items, dict) and {"role", "content"} <= set(items.get("properties") or ())
