"""The DBFS API (`w.dbfs`): files in blocks of at most 1 MB, over the places of `Volumes`.

Source: https://docs.databricks.com/api/workspace/dbfs
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import APIRouter
from starlette.requests import Request

from governance.call import Caller, CallError, bad_request, not_found
from serving.files.routes import told
from serving.files.volumes import Volumes
from serving.protocols.request import parse, take
from serving.routes import read_body

BLOCK = 1 << 20
"""Bytes of a block."""
MAX_OPEN = 256
"""Files that may be open for writing; the one that was opened first gives way to another."""
_AT = "/api/2.0/dbfs"
_MAX_BODY = 2 * BLOCK


@dataclass(slots=True)
class _Open:
    owner: str
    path: str
    target: Path
    partial: Path
    file: BinaryIO
    overwrite: bool


class Dbfs:
    """DBFS as one caller after the other uses it. All methods block and raise `CallError`.

    Parameters
    ----------
    volumes: where the files are, and who may.
    """

    def __init__(self, volumes: Volumes) -> None:
        self._volumes, self._incoming = volumes, volumes.incoming
        self._open: dict[int, _Open] = {}

    def create(self, who: Caller, body: Mapping[str, Any]) -> dict[str, Any]:
        path, overwrite = _path(body), bool(take(body, "overwrite", bool))
        target = self._volumes.dbfs(who, path, write=True)
        _check_free(target, path, overwrite)
        while len(self._open) >= MAX_OPEN:
            self._drop(next(iter(self._open)))
        with told(path):
            self._incoming.mkdir(parents=True, exist_ok=True)
            partial = self._incoming / secrets.token_hex(16)
            handle = secrets.randbits(52)  # clients may read it as a double
            self._open[handle] = _Open(who.principal, path, target, partial, partial.open("wb"), overwrite)
        return {"handle": handle}

    def add_block(self, who: Caller, body: Mapping[str, Any]) -> dict[str, Any]:
        _, opened = self._find(who, body)
        with told(opened.path):
            opened.file.write(_decoded(body, "data"))
        return {}

    def close(self, who: Caller, body: Mapping[str, Any]) -> dict[str, Any]:
        handle, opened = self._find(who, body)
        try:
            with told(opened.path):
                opened.file.close()
                _check_free(opened.target, opened.path, opened.overwrite)
                opened.target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(opened.partial, opened.target)
        finally:
            self._drop(handle)
        return {}

    def put(self, who: Caller, body: Mapping[str, Any]) -> dict[str, Any]:
        contents = {"data": take(body, "contents", str) or ""}
        _decoded(contents, "data")  # before anything is made
        opened = self.create(who, body)
        self.add_block(who, opened | contents)
        return self.close(who, opened)

    def read(self, who: Caller, query: Mapping[str, Any]) -> dict[str, Any]:
        path = _path(query)
        offset, length = _number(query, "offset", 0), min(_number(query, "length", BLOCK // 2), BLOCK)
        place = self._existing(who, path)
        if place.is_dir():
            raise bad_request(f"{path[:200]!r} is a folder.", "path")
        with told(path), place.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        return {"bytes_read": len(data), "data": base64.b64encode(data).decode()}

    def get_status(self, who: Caller, query: Mapping[str, Any]) -> dict[str, Any]:
        return _status(self._existing(who, _path(query)), _path(query))

    def list(self, who: Caller, query: Mapping[str, Any]) -> dict[str, Any]:
        path = _path(query)
        place = self._existing(who, path)
        if not place.is_dir():
            return {"files": [_status(place, path)]}
        return {"files": [_status(each, f"{path.rstrip('/')}/{each.name}") for each in sorted(place.iterdir())]}

    def mkdirs(self, who: Caller, body: Mapping[str, Any]) -> dict[str, Any]:
        with told(_path(body)):
            self._volumes.dbfs(who, _path(body), write=True).mkdir(parents=True, exist_ok=True)
        return {}

    def delete(self, who: Caller, body: Mapping[str, Any]) -> dict[str, Any]:
        path = _path(body)
        place = self._volumes.dbfs(who, path, write=True)
        if _is_root(path):
            raise bad_request(f"{path[:200]!r} itself is not deleted; delete what it holds.", "path")
        with told(path):
            if place.is_dir() and take(body, "recursive", bool):
                shutil.rmtree(place)
            elif place.is_dir():
                place.rmdir()
            else:
                place.unlink(missing_ok=True)  # what is not there counts as deleted
        return {}

    def move(self, who: Caller, body: Mapping[str, Any]) -> dict[str, Any]:
        source, target = _path(body, "source_path"), _path(body, "destination_path")
        given, place = self._existing(who, source, write=True), self._volumes.dbfs(who, target, write=True)
        if _is_root(source):
            raise bad_request(f"{source[:200]!r} itself is not moved.", "source_path")
        if place.is_dir():
            place, target = place / given.name, f"{target.rstrip('/')}/{given.name}"
        _check_free(place, target, False)
        if place.is_relative_to(given):
            raise bad_request(f"{source[:200]!r} cannot be moved into itself.", "destination_path")
        with told(target):
            os.rename(given, place)
        return {}

    def _existing(self, who: Caller, path: str, *, write: bool = False) -> Path:
        place = self._volumes.dbfs(who, path, write=write)
        if not place.exists():
            raise not_found(f"No file or directory exists on path {path[:200]}.")
        return place

    def _find(self, who: Caller, body: Mapping[str, Any]) -> tuple[int, _Open]:
        handle = take(body, "handle", int, required=True)
        opened = self._open.get(handle)
        if opened is None or opened.owner != who.principal:
            raise not_found("There is no open file with this handle: create it again.")
        return handle, opened

    def _drop(self, handle: int) -> None:
        opened = self._open.pop(handle)
        opened.file.close()
        opened.partial.unlink(missing_ok=True)


def _path(given: Mapping[str, Any], key: str = "path") -> str:
    return take(given, key, str, required=True).removeprefix("dbfs:")


def _is_root(path: str) -> bool:
    parts = path.strip("/").split("/")
    return parts == [""] or (parts[0] == "Volumes" and len(parts) <= 4)


def _number(query: Mapping[str, Any], key: str, default: int) -> int:
    given = str(query.get(key, default))
    if not (given.isascii() and given.isdigit() and len(given) < 19):
        raise bad_request(f"Query parameter {key!r} must be a whole number that is not negative.", key)
    return int(given)


def _decoded(body: Mapping[str, Any], key: str) -> bytes:
    try:
        data = base64.b64decode(take(body, key, str) or "", validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(f"Field {key!r} must be base64.", key) from None
    if len(data) > BLOCK:
        raise CallError("A block has at most 1 MB. Send more of them.", status=400, code="MAX_BLOCK_SIZE_EXCEEDED")
    return data


def _check_free(target: Path, path: str, overwrite: bool) -> None:
    if target.is_dir() or (target.exists() and not overwrite):
        raise CallError(f"A file or directory already exists at {path[:200]}.", status=400, code="RESOURCE_ALREADY_EXISTS")


def _status(place: Path, path: str) -> dict[str, Any]:
    about = place.stat()
    size = 0 if place.is_dir() else about.st_size
    return {"path": path, "is_dir": place.is_dir(), "file_size": size, "modification_time": int(about.st_mtime * 1000)}


def router(dbfs: Dbfs, authorize: Callable[[Request], Awaitable[Caller]]) -> APIRouter:
    """Routes of DBFS. `authorize` tells who asks, and raises `CallError`."""
    routes = APIRouter()

    def add(method: str, name: str, call: Callable[[Caller, Mapping[str, Any]], dict[str, Any]]) -> None:
        async def handler(http: Request) -> Any:
            who = await authorize(http)
            given: Any = http.query_params if method == "GET" else parse(await read_body(http, _MAX_BODY))
            return await asyncio.to_thread(call, who, given)

        routes.add_api_route(f"{_AT}/{name}", handler, methods=[method], include_in_schema=False)

    for name, call in {"read": dbfs.read, "get-status": dbfs.get_status, "list": dbfs.list}.items():
        add("GET", name, call)
    for name, call in {"create": dbfs.create, "add-block": dbfs.add_block, "close": dbfs.close, "put": dbfs.put,
                       "mkdirs": dbfs.mkdirs, "delete": dbfs.delete, "move": dbfs.move}.items():  # fmt: skip
        add("POST", name, call)
    return routes
