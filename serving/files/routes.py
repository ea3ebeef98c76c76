"""Databricks' Files API over the artifact store and volumes, and signed addresses for clients that ask for credentials instead.

Uploads are streamed to a file beside their place and take it when they are whole; downloads are streamed and answer ranges.
Sources: https://docs.databricks.com/api/workspace/files and mlflow/protos/databricks_artifacts.proto.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from governance.call import Caller, CallError, bad_request, forbidden, not_found
from serving.files.artifacts import Artifacts, model_of
from serving.files.volumes import Volumes
from serving.protocols.request import parse, take
from serving.registry import REGISTERED
from serving.routes import read_body
from serving.tracking.access import ModelAccess, check_unscoped

if TYPE_CHECKING:
    from serving.tracking.base import TrackingServer
    from serving.tracking.remote.files import RemotePlace

PAGE = 1000
SIGNED_FOR = 3600
"""Seconds that a signed address is good for."""
_BATCH = 1 << 20
_SHOWN = {  # what was uploaded must not run as a page of this host
    "content-security-policy": "sandbox; default-src 'none'",
    "x-content-type-options": "nosniff",
    "content-disposition": "attachment",
}

Handler = Callable[[Request], Awaitable[Response]]


def router(
    artifacts: Artifacts,
    server: TrackingServer,
    access: ModelAccess,
    volumes: Volumes,
    authorize: Callable[[Request], Awaitable[Caller]],
    *,
    pepper: Path | None = None,
) -> APIRouter:
    """Routes of the Files API and of MLflow's artifact credentials.

    Parameters
    ----------
    server: tells where a run, a logged model or a trace keeps its files.
    access: who may read and write the files of registered models; those of runs are everyone's who is signed in.
    volumes: what lies under `/Volumes/`, and who may read and write there.
    authorize: who asks; raises `CallError`.
    pepper: what servers share, so that an address which one signed is good at another.
    """
    signer = _Signer(pepper.read_bytes() if pepper else secrets.token_bytes(32))

    async def place(http: Request, *, write: bool = False) -> tuple[Path | RemotePlace, str]:
        """The place that the path names, once the caller may be there; and the path as the client gave it."""
        who = await authorize(http)
        given = "/" + http.path_params["path"].strip("/")
        if given.startswith("/Volumes/"):
            return await asyncio.to_thread(volumes.place, who, given, write=write), given
        if (model := model_of(given)) is not None:
            access.check(who, model, "CAN_MANAGE" if write else "CAN_QUERY")
        else:
            check_unscoped(who)
        return await asyncio.to_thread(artifacts.place, given, write=write), given

    async def signed_in(http: Request) -> Caller:
        return check_unscoped(await authorize(http))

    async def upload(http: Request) -> Response:
        path, given = await place(http, write=True)
        incoming = volumes.incoming if given.startswith("/Volumes/") else artifacts.incoming
        if http.query_params.get("overwrite", "true").lower() != "true" and await _there(path):
            raise CallError(f"There is a file {given!r} already; send overwrite=true.", status=409, code="ALREADY_EXISTS")
        await _receive(http, path, incoming)
        return Response(status_code=204)

    async def download(http: Request) -> Response:
        path, given = await place(http)
        return await _sent(path, given, head=http.method == "HEAD")

    async def large(http: Request) -> Response:
        """A client that would send a large file in parts is told to send it whole, which is streamed as well."""
        await place(http, write=True)
        if http.query_params.get("action") != "initiate-upload":
            raise bad_request("Send the file whole: PUT to the same path.")
        return _json({"multipart_upload": {"session_token": secrets.token_urlsafe(16)}})

    async def in_parts(http: Request) -> Response:
        await signed_in(http)
        raise CallError("Presigned URLs API is not enabled", status=403, code="PERMISSION_DENIED")

    def changing(change: Callable[[Path], None], elsewhere: Callable[[RemotePlace], Awaitable[None]]) -> Handler:
        async def changed(http: Request) -> Response:
            path, given = await place(http, write=True)
            if not isinstance(path, Path):
                await elsewhere(path)
                return Response(status_code=204)
            with told(given):
                await asyncio.to_thread(change, path)
            return Response(status_code=204)

        return changed

    async def about_folder(http: Request) -> Response:
        path, given = await place(http)
        if not await (asyncio.to_thread(path.is_dir) if isinstance(path, Path) else path.is_dir()):
            raise not_found(f"There is no folder {given[:200]!r}.")
        return Response(status_code=200)

    async def list_folder(http: Request) -> Response:
        path, given = await place(http)
        size = _number(http.query_params.get("page_size"), PAGE)
        after = http.query_params.get("page_token") or ""
        asked = given, size if 0 < size < PAGE else PAGE, after
        found = asyncio.to_thread(_listed, path, *asked) if isinstance(path, Path) else path.listed(*asked)
        return _json(await found)

    # -- credentials: addresses that need no key, for one file, one method and an hour

    def signed(http: Request, uri: str, inner: str, write: bool) -> dict[str, Any]:
        path = artifacts.named(uri, inner)
        if path.startswith(f"{REGISTERED}/"):
            raise forbidden("The files of registered models are read and written through the Files API under /Models/.")
        url = f"{str(http.base_url).rstrip('/')}/api/2.0/fs/signed?{signer.sign(path, 'PUT' if write else 'GET')}"
        return {"signed_uri": url, "type": "GCP_SIGNED_URL", "headers": []}

    async def for_run(http: Request, write: bool) -> Response:
        await signed_in(http)
        wanted = parse(await read_body(http, _BATCH) or b"{}")
        run = take(wanted, "run_id", str, required=True)
        about = await server.ask("GET", "/api/2.0/mlflow/runs/get", {"run_id": run})
        uri = about["run"]["info"]["artifact_uri"]
        found = [{"run_id": run, "path": path, **signed(http, uri, path, write)} for path in _paths(wanted, "path")]
        return _json({"credential_infos": found})

    async def for_model(http: Request, write: bool) -> Response:
        await signed_in(http)
        wanted = parse(await read_body(http, _BATCH) or b"{}")
        model = http.path_params["id"]
        about = await server.ask("GET", f"/api/2.0/mlflow/logged-models/{quote(model, safe='')}")
        uri = about["model"]["info"]["artifact_uri"]
        made = [{"model_id": model, "credential_info": signed(http, uri, path, write)} for path in _paths(wanted, "paths")]
        return _json({"credentials": made})

    async def for_trace(http: Request, write: bool) -> Response:
        await signed_in(http)
        about = await server.ask("GET", f"/api/3.0/mlflow/traces/{quote(http.path_params['id'], safe='')}")
        uri = about["trace"]["trace_info"].get("tags", {}).get("mlflow.artifactLocation", "")
        return _json({"credential_info": signed(http, uri, http.query_params.get("path") or "traces.json", write)})

    async def by_signature(http: Request) -> Response:
        given = signer.check(http.query_params, "PUT" if http.method == "PUT" else "GET")
        path = artifacts.at(given)
        if http.method == "PUT":
            await _receive(http, path, artifacts.incoming)
            return Response(status_code=200)
        return await _sent(path, given)

    def way(handler: Callable[[Request, bool], Awaitable[Response]], write: bool) -> Handler:
        async def answer(http: Request) -> Response:
            return await handler(http, write)

        return answer

    fs, mlflow = "/api/2.0/fs", "/api/2.0/mlflow"
    handlers: list[tuple[list[str], str, Handler]] = [
        (["PUT"], f"{fs}/files/{{path:path}}", upload),
        (["GET", "HEAD"], f"{fs}/files/{{path:path}}", download),
        (["DELETE"], f"{fs}/files/{{path:path}}", changing(Path.unlink, _remove)),
        (["POST"], f"{fs}/files/{{path:path}}", large),
        (["POST"], f"{fs}/create-upload-part-urls", in_parts),
        (["POST"], f"{fs}/create-abort-upload-url", in_parts),
        (["PUT"], f"{fs}/directories/{{path:path}}", changing(partial(Path.mkdir, parents=True, exist_ok=True), _nothing)),
        (["DELETE"], f"{fs}/directories/{{path:path}}", changing(Path.rmdir, _remove_folder)),
        (["HEAD"], f"{fs}/directories/{{path:path}}", about_folder),
        (["GET"], f"{fs}/directories/{{path:path}}", list_folder),
        (["GET", "PUT"], f"{fs}/signed", by_signature),
        (["POST"], f"{mlflow}/artifacts/credentials-for-read", way(for_run, False)),
        (["POST"], f"{mlflow}/artifacts/credentials-for-write", way(for_run, True)),
        (["POST"], f"{mlflow}/logged-models/{{id}}/artifacts/credentials-for-download", way(for_model, False)),
        (["POST"], f"{mlflow}/logged-models/{{id}}/artifacts/credentials-for-upload", way(for_model, True)),
        (["GET"], f"{mlflow}/traces/{{id}}/credentials-for-data-download", way(for_trace, False)),
        (["GET"], f"{mlflow}/traces/{{id}}/credentials-for-data-upload", way(for_trace, True)),
    ]
    routes = APIRouter()
    for methods, path, handler in handlers:
        routes.add_route(path, handler, methods=methods, include_in_schema=False)
    return routes


class _Signer:
    """Signs addresses with a key that is made of a secret."""

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.sha256(b"smalti signed addresses\0" + secret).digest()

    def _signature(self, path: str, method: str, expires: int) -> str:
        return hmac.new(self._key, f"{method}\0{expires}\0{path}".encode(), hashlib.sha256).hexdigest()

    def sign(self, path: str, method: str) -> str:
        """The query of a signed address."""
        expires = int(time.time()) + SIGNED_FOR
        return urlencode({"path": path, "expires": expires, "signature": self._signature(path, method, expires)})

    def check(self, query: Any, method: str) -> str:
        """The path that the query was signed for. Raises `CallError` (403)."""
        path, expires = query.get("path", ""), _number(query.get("expires"), 0)
        if expires < time.time() or not hmac.compare_digest(
            self._signature(path, method, expires), query.get("signature", "").encode("ascii", "replace").decode()
        ):
            raise forbidden("This address is no longer good; ask for credentials again.")
        return path


async def _there(path: Path | RemotePlace) -> bool:
    return await (asyncio.to_thread(path.exists) if isinstance(path, Path) else path.exists())


async def _remove(place: RemotePlace) -> None:
    await place.remove()


async def _remove_folder(place: RemotePlace) -> None:
    if await place.rows():
        raise bad_request(f"The folder {place.path[-200:]!r} is not empty: remove what it holds first.")
    await place.remove()


async def _nothing(place: RemotePlace) -> None:
    """A folder elsewhere is there as soon as a file is in it."""


async def _receive(http: Request, path: Path | RemotePlace, incoming: Path) -> None:
    """The request's body as the file `path`, which takes its place once it is whole."""
    if not isinstance(path, Path):
        return await path.receive(http)
    partial = incoming / secrets.token_hex(16)
    announced = _number(http.headers.get("content-length"), 0)

    def open_partial() -> Any:
        incoming.mkdir(parents=True, exist_ok=True)
        if announced > shutil.disk_usage(incoming).free:
            raise OSError(errno.ENOSPC, "no space left")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        return partial.open("wb")

    with told(path.name):
        file = await asyncio.to_thread(open_partial)
        try:
            async for batch in _batches(http.stream()):
                await asyncio.to_thread(file.write, batch)
            await asyncio.to_thread(file.close)
            await asyncio.to_thread(os.replace, partial, path)
        finally:
            file.close()
            partial.unlink(missing_ok=True)


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks in pieces that are worth a write."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        if len(held) >= _BATCH:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


async def _sent(path: Path | RemotePlace, given: str, *, head: bool = False) -> Response:
    if not isinstance(path, Path):
        return await path.sent(_SHOWN, head=head)
    if not await asyncio.to_thread(path.is_file):
        raise not_found(f"There is no file {given[:200]!r}.")
    return FileResponse(path, headers=_SHOWN, media_type="application/octet-stream")


def _listed(path: Path, given: str, size: int, after: str) -> dict[str, Any]:
    """One page of a folder, by name; the token is the last name of the page before."""
    if not path.is_dir():
        raise not_found(f"There is no folder {given[:200]!r}.")
    with os.scandir(path) as entries:
        found = sorted((entry for entry in entries if entry.name > after), key=lambda entry: entry.name)
    contents = []
    for entry in found[:size]:
        about = entry.stat()
        row = {"path": f"{given}/{entry.name}", "name": entry.name, "is_directory": entry.is_dir()}
        if not row["is_directory"]:
            row["file_size"] = about.st_size
        contents.append({**row, "last_modified": int(about.st_mtime * 1000)})
    return {"contents": contents, **({"next_page_token": found[size - 1].name} if len(found) > size else {})}


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """Faults of the file system as the API tells them, for the file or folder of this name."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise not_found(f"There is no {name[:200]!r}, or a part of its path is a file.") from None
    except (IsADirectoryError, FileExistsError):
        raise bad_request(f"{name[:200]!r} is a folder, or a part of its path is a file.") from None
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise bad_request(f"The folder {name[:200]!r} is not empty: remove what it holds first.") from None
        if error.errno == errno.ENAMETOOLONG:
            raise bad_request("The path is too long.") from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CallError("The server's disk is full.", status=507, code="RESOURCE_EXHAUSTED") from None
        raise


def _paths(wanted: Any, key: str) -> Iterable[str]:
    given = wanted.get(key)
    paths = [given] if isinstance(given, str) else given or []
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise bad_request(f"Field {key!r} must be a list of paths.", key)
    return paths


def _number(given: str | None, default: int) -> int:
    return int(given) if given and given.isascii() and given.isdigit() and len(given) < 19 else default


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
