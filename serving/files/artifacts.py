"""Where the files of runs, logged models, traces and registered models lie, and the names that clients have for these places.

MLflow's database holds `mlflow-artifacts:/EXPERIMENT/…`, which is what clients of an `http://` tracking URI follow. Those of a
`databricks` URI follow `dbfs:/databricks/mlflow-tracking/EXPERIMENT/…` only, and turn it into a path of the Files API
(mlflow/store/artifact/databricks_run_artifact_repo.py, …_logged_model_artifact_repo.py, …_sdk_models_artifact_repo.py).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from governance.call import CallError, bad_request, not_found
from serving.registry import SCHEME, Models, Registry

_FIELD = (
    rb'("(?:artifact_uri|artifact_location|root_uri|source|storage_location|mlflow\.artifactLocation)"\s*:\s*"'
    rb'|"key"\s*:\s*"mlflow\.artifactLocation"\s*,\s*"value"\s*:\s*")'
)
_OWN = re.compile(_FIELD + rb'mlflow-artifacts:/(\d+)(/models(?=/)|/traces(?=/(?:tr-|[0-9a-f]{32}/)))?(?=[/"])')
_DBFS = re.compile(_FIELD + rb'dbfs:/databricks/mlflow-tracking/(\d+)(?:(/logged_models)(?=/)|(?=/(tr-|[0-9a-f]{32}/)))?(?=[/"])')
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,128}")


def for_databricks(body: bytes) -> bytes:
    """A JSON answer of the tracking server with its artifact locations as clients of a `databricks` URI know them."""

    def renamed(found: re.Match[bytes]) -> bytes:
        folder = b"/logged_models" if found[3] == b"/models" else b""
        return found[1] + b"dbfs:/databricks/mlflow-tracking/" + found[2] + folder

    return _OWN.sub(renamed, body)


def from_databricks(body: bytes) -> bytes:
    """The reverse of `for_databricks`, for requests."""

    def renamed(found: re.Match[bytes]) -> bytes:
        # a trace of MLflow 2 is named as runs are, but only traces have this tag
        trace = found[4] == b"tr-" or (found[4] and b"artifactLocation" in found[1])
        folder = b"/models" if found[3] else b"/traces" if trace else b""
        return found[1] + b"mlflow-artifacts:/" + found[2] + folder

    return _DBFS.sub(renamed, body)


class Artifacts:
    """The artifact store of a state folder, by the paths of Databricks' Files API.

    Parameters
    ----------
    home: holds `mlartifacts/`.
    registry: knows where model versions lie.
    """

    def __init__(self, home: Path, registry: Models) -> None:
        self.root = home.resolve() / "mlartifacts"
        self.incoming = self.root / ".incoming"
        """Uploads until they are whole; in the same file system as where they go."""
        self._registry = registry

    def tidy(self) -> None:
        """Remove what uploads left that a killed server was receiving; for the start."""
        shutil.rmtree(self.incoming, ignore_errors=True)

    def place(self, path: str, *, write: bool = False) -> Path:
        """The file or folder of a Files API path. Blocking.

        Raises `CallError`: 400 for a path that leads out of its folder, 404 where there is no such place, 409 where a model
        version that is finished would be written.
        """
        found = self._place(path)
        if isinstance(found, str):
            return within(self.root, found)
        name, version, inner = found
        assert isinstance(self._registry, Registry)
        folder = self._registry.folder(name, version, pending=write)
        if self.root not in folder.parents:
            raise bad_request("This version's files are not kept in the artifact store; register it again.")
        return within(folder, inner)

    def _place(self, path: str) -> str | tuple[str, str, str]:
        """The path in the artifact store that a Files API path means; of a registered model's file its name, version and path."""
        match parts_of(path):
            case ["WorkspaceInternal", "Mlflow", "Artifacts", experiment, "Runs", run, *rest]:
                return "/".join([_digits(experiment), _safe(run), *rest])
            case ["WorkspaceInternal", "Mlflow", "Artifacts", experiment, "LoggedModels", model, *rest]:
                return "/".join([_digits(experiment), "models", _safe(model), *rest])
            case ["Models", catalog, schema, name, version, *rest]:
                return f"{catalog}.{schema}.{name}", version, "/".join(rest)
        raise not_found(
            f"There is no folder {path[:200]!r} here: the Files API holds /Volumes/CATALOG/SCHEMA/VOLUME/…, "
            "/Models/CATALOG/SCHEMA/MODEL/VERSION/… and "
            "/WorkspaceInternal/Mlflow/Artifacts/EXPERIMENT/{Runs,LoggedModels}/ID/…"
        )

    def of_uri(self, uri: str, inner: str) -> Path:
        """The file `inner` below an `mlflow-artifacts:/…` location that the database holds."""
        scheme, _, path = uri.partition(":/")
        if scheme != "mlflow-artifacts":
            raise bad_request(f"Its files are not kept by this server but at {uri[:200]}.")
        return within(within(self.root, "/".join(parts_of(path))), inner)

    def named(self, uri: str, inner: str) -> str:
        """Path in the artifact store of the file `inner` below a location. Raises `CallError` (400)."""
        return self.of_uri(uri, inner).relative_to(self.root).as_posix()

    def at(self, path: str) -> Path:
        """The file at a path of the artifact store that `named` gave."""
        return self.of_uri(SCHEME, path)


def model_of(path: str) -> str | None:
    """Full name of the registered model that a Files API path belongs to."""
    parts = path.strip("/").split("/")
    return ".".join(parts[1:4]) if parts[0] == "Models" and len(parts) >= 4 else None


def parts_of(path: str) -> list[str]:
    """The parts of a path. Raises `CallError` (400) for one that is not plain."""
    parts = path.strip("/").split("/") if path.strip("/") else []
    for part in parts:
        if part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > 255 or re.search(r"[\\\x00-\x1f]", part):
            raise bad_request(f"The path {path[:200]!r} must be plain: no '..', no empty part, none longer than 255 bytes.")
    return parts


def within(folder: Path, inner: str) -> Path:
    """`inner` below `folder`. Raises `CallError` (400) where it leads out."""
    path = folder.joinpath(*parts_of(inner))
    if not path.resolve().is_relative_to(folder.resolve()):
        raise bad_request(f"The path {inner[:200]!r} leads out of its folder.")
    return path


def _digits(experiment: str) -> str:
    if not re.fullmatch(r"\d{1,20}", experiment):
        raise CallError(f"There is no experiment {experiment[:40]!r}.", status=404, code="RESOURCE_DOES_NOT_EXIST")
    return experiment


def _safe(identifier: str) -> str:
    if not _SAFE.fullmatch(identifier):
        raise bad_request(f"{identifier[:40]!r} is no id.")
    return identifier
