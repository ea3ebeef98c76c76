"""Registered models of an MLflow server elsewhere, as `serving.registry` and `serving.tracking.versions` have this one's.

Each version that is registered through Smalti has its own copy of its files at `registered/ID` of that server's artifact store;
a tag of the version says where, so that what was registered does not change when somebody writes to the run afterwards. A
version that was registered at that server itself, or by a training job, is given its copy when it is first loaded. What is
served here is downloaded once, and serves on when that server is away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import httpx

from governance.call import CallError, bad_request, not_found
from serving.files.artifacts import parts_of
from serving.registry import REGISTERED, SCHEME, ModelVersion, described

if TYPE_CHECKING:
    from serving.tracking.remote.connection import Connection

_API, _FILES = "/api/2.0/mlflow", "/api/2.0/mlflow-artifacts/artifacts"
AT, PENDING, SOURCE = "smalti.files", "smalti.pending", "smalti.source"
"""Tags of a version: where its own copy lies; that it is not there yet; what the client named as its source."""
OWN = frozenset({AT, PENDING, SOURCE})
_IS_PROMPT = "mlflow.prompt.is_prompt"
_PIECE = 1 << 20
_MOVING = httpx.Timeout(300, connect=5)


class RemoteRegistry:
    """The registered models of the MLflow server. All methods block and raise `CallError`.

    Parameters
    ----------
    server: is asked.
    home: the state folder; its `models-remote/` holds what was downloaded.
    """

    def __init__(self, server: Connection, home: Path) -> None:
        self._server = server
        self._cache = home.resolve() / "models-remote"

    # --- as they are served ---

    def find(self, name: str, version: str) -> ModelVersion:
        known = self._cache / f"{_digest(name, version)}.json"
        try:
            row = self._row(name, version)
            path = self._downloaded(self._own_copy(row))
        except CallError as error:
            if error.status != 503 or not known.is_file():
                raise
            kept = json.loads(known.read_text("utf-8"))  # it serves on while the registry is away
            return described(name, kept["version"], self._cache / kept["folder"])
        found = described(name, str(row["version"]), path)
        partial = known.with_name(f".{uuid.uuid4().hex}")
        partial.write_text(json.dumps({"version": found.version, "folder": path.name}), "utf-8")
        partial.replace(known)
        return found

    def location(self, name: str, version: str, *, pending: bool = False) -> str:
        """Path in the artifact store of a version's files; `pending`: of one that is still being registered."""
        row = self._row(name, version, unfinished=True)
        if pending and not _pending(row):
            raise CallError(
                f"Version {row['version']} of {name} is registered: its files do not change. Register another version.",
                status=409,
                code="RESOURCE_CONFLICT",
            )
        return self._own_copy(row)

    def holder(self, location: str) -> str | None:
        wanted = {"filter": f"tags.`{AT}` = '{location}'", "max_results": 1} if "'" not in location else None
        found = self._get("model-versions/search", wanted).get("model_versions") if wanted else None
        return found[0]["name"] if found else None

    def known(self, name: str) -> bool:
        try:
            return bool(name) and bool(self._get("registered-models/get", {"name": name}))
        except CallError as error:
            if error.status in (400, 404):
                return False
            raise

    def names(self) -> list[str]:
        return sorted(row["name"] for row in self._all("registered-models", {}))

    # --- as they are registered ---

    def answer(self, action: list[str], fields: dict[str, Any]) -> dict[str, Any]:
        """A call of the registry API of which more is made than passing it on; `action` as `["model-versions", "create"]`."""
        work: dict[tuple[str, ...], Callable[[dict[str, Any]], dict[str, Any]]] = {
            ("model-versions", "create"): self._create,
            ("model-versions", "begin"): self._begin,
            ("model-versions", "finish"): self._finish,
            ("model-versions", "delete"): self._delete_version,
            ("model-versions", "get-download-uri"): self._download_uri,
            ("registered-models", "delete"): self._delete_model,
        }
        return self.told(work[tuple(action)](fields))

    def told(self, found: dict[str, Any]) -> dict[str, Any]:
        """An answer of the server without what this module keeps in tags."""
        for key, value in found.items():
            rows = value if isinstance(value, list) else [value]
            if key in ("model_version", "model_versions"):
                found[key] = [_plain(row) for row in rows] if isinstance(value, list) else _plain(value)
            elif key in ("registered_model", "registered_models"):
                for row in rows:
                    row["latest_versions"] = [_plain(each) for each in row.get("latest_versions") or ()]
        return found

    def _create(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A version with its own copy of the files that lie in the artifact store."""
        tags = _given(fields)
        if any(tag.get("key") == _IS_PROMPT for tag in tags):
            return self._ask("POST", "model-versions/create", fields)
        made = self._ask("POST", "model-versions/create", {**fields, "tags": [*tags, _tag(PENDING, "true")]})["model_version"]
        try:
            origin = self._origin(str(fields.get("source", ""))) or self._download_uri(made)["artifact_uri"]
            if origin.startswith(SCHEME):
                self._own_copy(made, origin)
        except BaseException:
            with contextlib.suppress(CallError):
                self._delete_version(made)
            raise
        self._ask("DELETE", "model-versions/delete-tag", {**_named(made), "key": PENDING})
        return self._get("model-versions/get", _named(made))

    def _origin(self, source: str) -> str | None:
        """Where the version that a source names has its own copy; None for other sources."""
        words = source.removeprefix("models:/").split("/") if source.startswith("models:/") else []
        if len(words) == 2:
            return SCHEME + self._own_copy(self._row(words[0], words[1]))
        if len(words) == 1 and "@" in words[0]:
            return SCHEME + self._own_copy(self._row(*words[0].split("@", 1)))
        return None

    def _begin(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A version that waits for its files."""
        location = _location()
        more = [_tag(AT, location), _tag(PENDING, "true"), _tag(SOURCE, str(fields["source"]))]
        # what the client names, which may lie on its own disk, a server elsewhere would not take
        return self._ask(
            "POST",
            "model-versions/create",
            {
                **{key: value for key, value in fields.items() if value is not None},
                "source": location.replace(SCHEME, "smalti:/", 1),
                "tags": [*_given(fields), *more],
            },
        )

    def _finish(self, fields: dict[str, Any]) -> dict[str, Any]:
        row = self._row(fields["name"], fields["version"], unfinished=True)
        if _pending(row):
            names = [each["path"] for each in self.listed(_path(_tags(row)[AT]))]
            if "MLmodel" not in names:
                raise bad_request(
                    f"Version {row['version']} of {row['name']} has no MLmodel file yet: upload its files to /Models/ first."
                )
            self._ask("DELETE", "model-versions/delete-tag", {**_named(row), "key": PENDING})
        return self._get("model-versions/get", _named(row))

    def _delete_version(self, fields: dict[str, Any]) -> dict[str, Any]:
        row = self._get("model-versions/get", _named(fields))["model_version"]
        done = self._ask("DELETE", "model-versions/delete", _named(fields))
        self._remove(row)
        return done

    def _delete_model(self, fields: dict[str, Any]) -> dict[str, Any]:
        name = str(fields["name"])
        rows = list(self._all("model-versions", {"filter": f"name = '{name}'"})) if "'" not in name else []
        done = self._ask("DELETE", "registered-models/delete", {"name": name})
        for row in rows:
            self._remove(row)
        return done

    def _download_uri(self, fields: dict[str, Any]) -> dict[str, Any]:
        row = self._get("model-versions/get", _named(fields))["model_version"]
        if held := _tags(row).get(AT):
            return {"artifact_uri": held}
        return self._get("model-versions/get-download-uri", _named(row))

    # --- one version ---

    def _row(self, name: str, version: str, *, unfinished: bool = False) -> dict[str, Any]:
        number = version.removeprefix("v") if version.removeprefix("v").isdigit() else None
        row: dict[str, Any] | None = None
        with _missing():
            if number is None:
                asked = {"name": name, "alias": version.removeprefix("@")}
                row = self._get("registered-models/alias", asked)["model_version"]
            else:
                row = self._get("model-versions/get", {"name": name, "version": number})["model_version"]
        if row is not None and (unfinished or (row.get("status", "READY") == "READY" and not _pending(row))):
            return row
        if row is not None:
            state = "PENDING_REGISTRATION" if _pending(row) else row["status"]
            raise bad_request(f"Version {version} of {name} is {state}: wait until it is READY, or register it again.")
        found = self._all("model-versions", {"filter": f"name = '{name}'"}) if "'" not in name else ()
        known = sorted(int(each["version"]) for each in found)
        if not known:
            raise not_found(f"There is no registered model {name!r}. Register it with MLflow first.")
        raise not_found(f"{name} has no version or alias {version!r}. It has {', '.join(map(str, known[-10:]))}.")

    def _own_copy(self, row: Mapping[str, Any], origin: str | None = None) -> str:
        """Path of the version's own copy in the artifact store, made where there is none yet of what lies at `origin`: by default
        where MLflow has it."""
        if held := _tags(row).get(AT):
            return _path(held)
        origin = origin or str(self._get("model-versions/get-download-uri", _named(row)).get("artifact_uri", ""))
        if not origin.startswith(SCHEME):
            raise bad_request(
                f"The model lies at {origin[:200]}; models are served from the artifact store of the MLflow server only. "
                "Start that with --serve-artifacts and --artifacts-destination."
            )
        location = _location()
        try:
            with self._server.sync_client() as client:
                for inner in self._below(_path(origin)):
                    self._copy(client, f"{_path(origin)}/{inner}", f"{_path(location)}/{inner}")
        except BaseException:
            self._discard(location)
            raise
        self._ask("POST", "model-versions/set-tag", {**_named(row), "key": AT, "value": location})
        return _path(location)

    def _remove(self, row: Mapping[str, Any]) -> None:
        if held := _tags(row).get(AT):
            self._discard(held)

    def _discard(self, location: str) -> None:
        with contextlib.suppress(CallError, httpx.HTTPError), self._server.sync_client() as client:
            client.delete(file_url(_path(location)))

    def _downloaded(self, path: str) -> Path:
        """The folder of the cache with the files at a path of the artifact store, which never change."""
        target = self._cache / _digest(path)
        if target.is_dir():
            return target
        partial = self._cache / f".{uuid.uuid4().hex}"
        partial.mkdir(parents=True, mode=0o700)
        try:
            with self._server.sync_client() as client:
                for inner in self._below(path):
                    self._fetch(client, f"{path}/{inner}", partial / inner)
            if not target.is_dir():  # another thread may have been sooner
                with contextlib.suppress(OSError):
                    partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

    def tidy(self) -> None:
        """Remove what downloads left that a killed server was receiving; for the start."""
        for partial in self._cache.glob(".*"):
            shutil.rmtree(partial, ignore_errors=True)
            partial.unlink(missing_ok=True)

    # --- files of the artifact store ---

    def listed(self, path: str) -> list[dict[str, Any]]:
        """What lies in a folder: `path` (a name), `is_dir`, `file_size`."""
        return self._server.ask_now("GET", _FILES, {"path": path}, timeout=30).get("files") or []

    def _below(self, path: str, inner: str = "") -> Iterator[str]:
        for each in self.listed(f"{path}/{inner}".rstrip("/")):
            name = f"{inner}/{parts_of(each['path'])[-1]}".lstrip("/")
            if each.get("is_dir"):
                yield from self._below(path, name)
            else:
                yield name

    def _fetch(self, client: httpx.Client, path: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._open(client, path) as answer, target.open("wb") as file:
            for piece in answer.iter_bytes(_PIECE):
                file.write(piece)

    def _copy(self, client: httpx.Client, origin: str, target: str) -> None:
        with self._open(client, origin) as answer:
            try:
                done = client.put(file_url(target), content=answer.iter_bytes(_PIECE), timeout=_MOVING)
            except httpx.HTTPError as error:
                raise self._server.silent(error) from error
            self._server.read(done)

    @contextlib.contextmanager
    def _open(self, client: httpx.Client, path: str) -> Iterator[httpx.Response]:
        try:
            with client.stream("GET", file_url(path), timeout=_MOVING) as answer:
                if answer.is_error:
                    answer.read()
                    self._server.read(answer)
                yield answer
        except (httpx.HTTPError, ValueError) as error:
            raise self._server.silent(error) from error

    # --- questions ---

    def _ask(self, method: str, action: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        return self._server.ask_now(method, f"{_API}/{action}", fields, timeout=30)

    def _get(self, action: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        return self._server.ask_now("GET", f"{_API}/{action}", fields)

    def _all(self, resource: str, fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        token: str | None = None
        while True:
            found = self._get(f"{resource}/search", {**fields, "max_results": 1000, **({"page_token": token} if token else {})})
            yield from found.get(resource.replace("-", "_")) or ()
            token = found.get("next_page_token")
            if not token:
                return


def file_url(path: str) -> str:
    """Where the server keeps the file at a path of its artifact store."""
    return f"{_FILES}/{quote(path, safe='/')}"


@contextlib.contextmanager
def _missing() -> Iterator[None]:
    """Passes over what MLflow says of a model, version or alias that is not there."""
    try:
        yield
    except CallError as error:
        if error.status not in (400, 404):
            raise


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _location() -> str:
    return f"{SCHEME}{REGISTERED}/{uuid.uuid4().hex}"


def _path(location: str) -> str:
    return "/".join(parts_of(unquote(location.removeprefix(SCHEME))))


def _named(row: Mapping[str, Any]) -> dict[str, str]:
    return {"name": str(row.get("name", "")), "version": str(row.get("version", ""))}


def _tag(key: str, value: str) -> dict[str, str]:
    return {"key": key, "value": value}


def _given(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tags that a client sends with a version."""
    tags = fields.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, dict) for tag in tags):
        raise bad_request("Field 'tags' must be a list of objects with 'key' and 'value'.", "tags")
    return [tag for tag in tags if tag.get("key") not in OWN]


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in row.get("tags") or ()}


def _pending(row: Mapping[str, Any]) -> bool:
    return PENDING in _tags(row)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A version as its client registered it."""
    held = _tags(row)
    if not OWN & set(held):
        return dict(row)
    changed = {"source": held[SOURCE]} if SOURCE in held else {}
    changed |= {"status": "PENDING_REGISTRATION"} if PENDING in held else {}
    return {**row, **changed, "tags": [tag for tag in row.get("tags") or () if tag["key"] not in OWN]}
