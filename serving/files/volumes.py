"""Volumes: folders of people's own files, under the Files API, `w.volumes` and DBFS; grants say who reads and who writes.

A volume is `/Volumes/CATALOG/SCHEMA/NAME`; what else DBFS holds is one more, `dbfs`. Of `volume:CATALOG.SCHEMA.NAME`,
`volume:dbfs` or, for all, `volume:*`: CAN_QUERY (READ VOLUME) reads, CAN_MANAGE (WRITE VOLUME) writes and deletes. Making a
volume needs CAN_MANAGE on `volume:*`, and gives CAN_MANAGE on it.

Source: https://docs.databricks.com/api/workspace/volumes
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from governance.call import Caller, CallError, bad_request, not_found
from governance.grants import Grants
from serving.files.artifacts import parts_of, within
from serving.protocols.request import parse, take
from serving.routes import read_body

EVERY = "volume:*"
_NAME = re.compile(r"[^./\\\x00-\x1f ]{1,255}")
_LEFT = 86_400.0  # seconds after which nothing more comes of an upload
_LONGEST = 220
"""Bytes of a name: a file beside the volume has a longer one."""
_AT = "/api/2.1/unity-catalog/volumes"


class Volumes:
    """The volumes of a state folder. All methods block and raise `CallError`.

    Parameters
    ----------
    home: the state folder, or one that several servers mount; volumes lie in its `volumes/`, DBFS in its `dbfs/`.
    grants: who may.
    """

    def __init__(self, home: Path, grants: Grants) -> None:
        self.root, self._dbfs, self._grants = home.resolve() / "volumes", home.resolve() / "dbfs", grants
        self.incoming = home.resolve() / ".incoming"
        """Files until they are whole; in the same file system as where they go."""

    def tidy(self) -> None:
        """Remove what uploads left that a killed server was receiving a day ago or earlier; for the start."""
        for each in self.incoming.glob("*"):
            with contextlib.suppress(OSError):  # another server was sooner
                if each.stat().st_mtime < time.time() - _LEFT:
                    each.unlink()

    def place(self, who: Caller, path: str, *, write: bool = False) -> Path:
        """The file or folder at `/Volumes/…`, once the caller may be there."""
        parts = parts_of(path)
        if len(parts) < 4:
            raise not_found(f"{path[:200]!r} is in no volume: write /Volumes/CATALOG/SCHEMA/VOLUME/…")
        self.check(who, ".".join(parts[1:4]), write=write)
        return within(self._folder(*parts[1:4]), "/".join(parts[4:]))

    def dbfs(self, who: Caller, path: str, *, write: bool = False) -> Path:
        """The file or folder at a path of DBFS, once the caller may be there."""
        inner = path.removeprefix("dbfs:")
        if not inner.startswith("/"):
            raise bad_request(f"A path of DBFS begins with '/', not as {path[:200]!r}.", "path")
        if inner.startswith("/Volumes/"):
            return self.place(who, inner, write=write)
        self.check(who, "dbfs", write=write)
        self._dbfs.mkdir(parents=True, exist_ok=True, mode=0o700)
        return within(self._dbfs, inner)

    def check(self, who: Caller, name: str, *, write: bool = False) -> None:
        level = "CAN_MANAGE" if write else "CAN_QUERY"
        if not self._grants.allowed(who, EVERY, level):
            self._grants.check(who, f"volume:{name}", level)

    def _folder(self, *names: str) -> Path:
        folder = self.root.joinpath(*names)
        if not folder.is_dir():
            raise not_found(f"There is no volume {'.'.join(names)[:200]!r}. Make it with w.volumes.create.")
        return folder

    def known(self, name: str) -> bool:
        parts = name.split(".")
        return len(parts) == 3 and all(_NAME.fullmatch(part) for part in parts) and self.root.joinpath(*parts).is_dir()

    def create(self, who: Caller, catalog: str, schema: str, name: str, comment: str | None = None) -> dict[str, Any]:
        self._grants.check(who, EVERY, "CAN_MANAGE")
        for each in (catalog, schema, name):
            _check_name(each, "name")
        folder = self.root / catalog / schema / name
        try:
            folder.mkdir(parents=True, mode=0o700)
        except FileExistsError:
            message = f"There is a volume '{catalog}.{schema}.{name}' already."
            raise CallError(message, status=409, code="RESOURCE_ALREADY_EXISTS") from None
        if comment:
            _comment(folder).write_text(comment)
        self._note(folder, who, made=True)
        self._grants.grant(f"{who.kind}:{who.name}", f"volume:{catalog}.{schema}.{name}", "CAN_MANAGE", by=who)
        return self._told(folder)

    def get(self, who: Caller, name: str) -> dict[str, Any]:
        self.check(who, name)
        return self._told(self._folder(*_three(name)))

    def list(self, who: Caller, catalog: str, schema: str) -> list[dict[str, Any]]:
        folder = within(self.root, f"{catalog}/{schema}")
        found = [self._told(each) for each in sorted(folder.glob("*")) if each.is_dir()]
        return [each for each in found if self._visible(who, each["full_name"])]

    def update(self, who: Caller, name: str, *, comment: str | None = None, new: str | None = None) -> dict[str, Any]:
        """Give a volume another comment, another name within its schema, or both; grants on it follow its name."""
        self.check(who, name, write=True)
        catalog, schema, short = _three(name)
        folder = self._folder(catalog, schema, short)
        if comment is not None:
            _comment(folder).write_text(comment)
        self._note(folder, who)
        if new is None or new == short:
            return self._told(folder)
        _check_name(new, "new_name")
        moved = folder.with_name(new)
        if moved.exists():
            raise CallError(f"There is a volume '{catalog}.{schema}.{new}' already.", status=409, code="RESOURCE_ALREADY_EXISTS")
        folder.rename(moved)
        for beside in (_comment, _about):
            if beside(folder).exists():
                beside(folder).rename(beside(moved))
        held = [(grant.principal, grant.level) for grant in self._grants.list(f"volume:{name}")]
        self._grants.apply(f"volume:{catalog}.{schema}.{new}", held, replace=True)
        self._grants.forget(f"volume:{name}")
        return self._told(moved)

    def names(self, who: Caller) -> list[str]:
        """Full names of the volumes that a caller may see."""
        found = [".".join(each.relative_to(self.root).parts) for each in sorted(self.root.glob("*/*/*")) if each.is_dir()]
        return [name for name in found if self._visible(who, name)]

    def delete(self, who: Caller, name: str) -> None:
        """Remove a volume and all that it holds."""
        self.check(who, name, write=True)
        folder = self._folder(*_three(name))
        shutil.rmtree(folder)
        _comment(folder).unlink(missing_ok=True)
        _about(folder).unlink(missing_ok=True)
        self._grants.forget(f"volume:{name}")

    def _visible(self, who: Caller, name: str) -> bool:
        return self._grants.allowed(who, EVERY) or self._grants.allowed(who, f"volume:{name}")

    def _note(self, folder: Path, who: Caller, *, made: bool = False) -> None:
        """Who made the volume or changed it last, and when; kept beside it."""
        now = time.time_ns() // 1_000_000
        known = {"created_by": who.name, "created_at": now} if made else _read(_about(folder))
        partial = _about(folder).with_suffix(f".{secrets.token_hex(8)}")
        partial.write_text(json.dumps({**known, "updated_by": who.name, "updated_at": now}), "utf-8")
        partial.replace(_about(folder))

    def _told(self, folder: Path) -> dict[str, Any]:
        catalog, schema, name = folder.relative_to(self.root).parts
        changed, known = int(folder.stat().st_mtime * 1000), _read(_about(folder))
        return {
            "catalog_name": catalog, "schema_name": schema, "name": name, "full_name": f"{catalog}.{schema}.{name}",
            "volume_type": "MANAGED", "volume_id": hashlib.sha256(f"{catalog}.{schema}.{name}".encode()).hexdigest()[:32],
            **({"comment": _comment(folder).read_text()} if _comment(folder).exists() else {}),
            "storage_location": f"dbfs:/Volumes/{catalog}/{schema}/{name}", "created_at": changed, "updated_at": changed,
            **known, **({"owner": known["created_by"]} if "created_by" in known else {}),
        }  # fmt: skip


def _check_name(name: str, field: str) -> None:
    if not _NAME.fullmatch(name) or len(name.encode("utf-8", "replace")) > _LONGEST:
        raise bad_request(f"{name[:80]!r} is no name: write up to {_LONGEST} bytes without '.', '/' and spaces.", field)


def _comment(folder: Path) -> Path:
    """Where a volume's comment is kept: beside it, under what can be no volume's name."""
    return folder.with_name(f".{folder.name}.comment")


def _about(folder: Path) -> Path:
    """Where who made a volume and changed it last is kept."""
    return folder.with_name(f".{folder.name}.about")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # a volume of an older Smalti
        return {}


def _three(name: str) -> tuple[str, str, str]:
    parts = name.split(".")
    if len(parts) != 3 or not all(_NAME.fullmatch(part) for part in parts):
        raise bad_request(f"A volume's name is CATALOG.SCHEMA.NAME, not {name[:200]!r}.", "name")
    return parts[0], parts[1], parts[2]


def router(volumes: Volumes, authorize: Callable[[Request], Awaitable[Caller]]) -> APIRouter:
    """`w.volumes`. `authorize` tells who asks, and raises `CallError`."""
    routes = APIRouter()

    @routes.post(_AT, include_in_schema=False)
    async def create(http: Request) -> Any:
        who, body = await authorize(http), parse(await read_body(http, 1 << 16))
        catalog, schema, name = (take(body, key, str, required=True) for key in ("catalog_name", "schema_name", "name"))
        if take(body, "volume_type", str) not in (None, "MANAGED"):
            raise bad_request("Volumes are MANAGED here: their files are kept in the state folder.", "volume_type")
        return await asyncio.to_thread(volumes.create, who, catalog, schema, name, take(body, "comment", str))

    @routes.get(_AT, include_in_schema=False)
    async def listed(http: Request) -> Any:
        who, query = await authorize(http), http.query_params
        found = await asyncio.to_thread(volumes.list, who, query.get("catalog_name", ""), query.get("schema_name", ""))
        return {"volumes": found}

    @routes.get(_AT + "/{name}", include_in_schema=False)
    async def get(http: Request, name: str) -> Any:
        return await asyncio.to_thread(volumes.get, await authorize(http), name)

    @routes.patch(_AT + "/{name}", include_in_schema=False)
    async def update(http: Request, name: str) -> Any:
        who, body = await authorize(http), parse(await read_body(http, 1 << 16))
        given = {"comment": take(body, "comment", str), "new": take(body, "new_name", str)}
        return await asyncio.to_thread(lambda: volumes.update(who, name, **given))

    @routes.delete(_AT + "/{name}", include_in_schema=False)
    async def delete(http: Request, name: str) -> Any:
        await asyncio.to_thread(volumes.delete, await authorize(http), name)
        return {}

    return routes
