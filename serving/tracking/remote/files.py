"""Databricks' Files API over the artifact store of an MLflow server elsewhere; `serving.files.artifacts` is for this one's own.

Files are streamed through, up and down, by `/api/2.0/mlflow-artifacts/artifacts/…`
(mlflow/store/artifact/http_artifact_repo.py). Folders are there as soon as a file is in them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from governance.call import bad_request, not_found
from serving.files.artifacts import Artifacts, parts_of
from serving.registry import SCHEME
from serving.tracking.remote.models import file_url

if TYPE_CHECKING:
    from serving.tracking.remote.server import RemoteMlflow


class RemoteArtifacts(Artifacts):
    """The artifact store of `server`; uploads of what is kept here, such as volumes, come in at the state folder `home`."""

    def __init__(self, home: Path, server: RemoteMlflow) -> None:
        super().__init__(home, server.registry)
        self._server = server

    def place(self, path: str, *, write: bool = False) -> Any:
        found = self._place(path)
        if isinstance(found, str):
            return RemotePlace(self._server, found)
        name, version, inner = found
        base = self._server.registry.location(name, version, pending=write)
        return RemotePlace(self._server, "/".join([base, *parts_of(inner)]))

    def named(self, uri: str, inner: str) -> str:
        if not uri.startswith(SCHEME):
            raise bad_request(f"Its files are not kept by the MLflow server itself but at {uri[:200]}.")
        return "/".join([*parts_of(uri.removeprefix(SCHEME)), *parts_of(inner)])

    def at(self, path: str) -> Any:
        return RemotePlace(self._server, "/".join(parts_of(path)))


@dataclass(frozen=True, slots=True)
class RemotePlace:
    """A file or folder of the artifact store, by its path there. Raises `CallError`."""

    server: RemoteMlflow
    path: str

    async def rows(self) -> list[dict[str, Any]]:
        """What lies in it, a folder, by name."""
        found = await self.server.ask("GET", "/api/2.0/mlflow-artifacts/artifacts", {"path": self.path})
        return sorted(found.get("files") or [], key=lambda row: row["path"])

    async def about(self) -> dict[str, Any] | None:
        """Its row in the folder that it lies in; None where it is not there."""
        folder, _, name = self.path.rpartition("/")
        return next((row for row in await RemotePlace(self.server, folder).rows() if row["path"] == name), None)

    async def is_dir(self) -> bool:
        about = await self.about()
        return about is not None and bool(about.get("is_dir"))

    async def exists(self) -> bool:
        return await self.about() is not None

    async def receive(self, http: Request) -> None:
        """The request's body as this file."""
        length = http.headers.get("content-length")
        await self._send("PUT", http.stream(), {"content-length": length} if length else {})

    async def remove(self) -> None:
        if not await self.exists():
            raise not_found(f"There is no {self.path.rpartition('/')[2][:200]!r}.")
        await self._send("DELETE")

    async def _send(self, method: str, body: AsyncIterator[bytes] | None = None, headers: dict[str, str] | None = None) -> None:
        if not self.server.ready.is_set():
            raise self.server.away()
        client = self.server.client
        try:
            request = client.build_request(method, file_url(self.path), content=body, headers=headers)
            self.server.read(await self.server.send(request))
        except ClientDisconnect:
            raise bad_request("The upload was broken off; send the file again.") from None
        except (httpx.HTTPError, ValueError) as error:
            raise self.server.silent(error) from error

    async def sent(self, headers: dict[str, str], *, head: bool) -> Response:
        """The file as an answer."""
        about = await self.about()
        if about is None or about.get("is_dir"):
            raise not_found(f"There is no file {self.path.rpartition('/')[2][:200]!r}.")
        size = {"content-length": str(about["file_size"])} if about.get("file_size") is not None else {}
        if head:
            return Response(headers={**headers, **size}, media_type="application/octet-stream")
        client = self.server.client
        try:
            upstream = await self.server.send(client.build_request("GET", file_url(self.path)), stream=True)
            if upstream.is_error:
                await upstream.aread()
                self.server.read(upstream)
        except (httpx.HTTPError, ValueError) as error:
            raise self.server.silent(error) from error

        async def pieces() -> AsyncIterator[bytes]:
            try:
                async for piece in upstream.aiter_bytes():
                    yield piece
            finally:
                await upstream.aclose()

        return StreamingResponse(pieces(), headers={**headers, **size}, media_type="application/octet-stream")

    async def listed(self, given: str, size: int, after: str) -> dict[str, Any]:
        """One page of a folder as the Files API tells it; the token is the last name of the page before."""
        if not await self.is_dir():
            raise not_found(f"There is no folder {given[:200]!r}.")
        found = [row for row in await self.rows() if row["path"] > after]
        contents = [
            {
                "path": f"{given}/{row['path']}",
                "name": row["path"],
                "is_directory": bool(row.get("is_dir")),
                **({} if row.get("is_dir") else {"file_size": int(row.get("file_size") or 0)}),
            }
            for row in found[:size]
        ]
        return {"contents": contents, **({"next_page_token": found[size - 1]["path"]} if len(found) > size else {})}
