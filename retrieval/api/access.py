"""Who asks, what they may see and change, and what they sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from retrieval.errors import BadRequest, NotFound, RetrievalError
from retrieval.guard import Groups
from retrieval.index import Indexes, IndexInfo, full_name
from retrieval.rows.endpoints import SearchEndpoint
from retrieval.rows.store import RowIndex

MAX_BODY = 1 << 20
MAX_UPSERT = 64 << 20

Invoke = Callable[[Request, str, str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


@dataclass
class Access:
    """What the routes share; parameters as for `retrieval.routes.router`."""

    indexes: Indexes
    caller: Callable[..., Any]
    invoke: Invoke
    visible: Callable[[Any, str], bool] | None = None
    manage: Callable[[Any, str], None] | None = None
    manage_endpoint: Callable[[Any, str], None] | None = None
    noted: Callable[[Any, str, Any, Any], None] | None = None

    def may_see(self, asking: Any, name: str) -> bool:
        return self.visible(asking, name) if self.visible is not None else bool(asking.admin)

    def seen(self, asking: Any, name: str) -> IndexInfo | RowIndex:
        """An index that the caller may see. Raises NotFound: what one may not see does not exist, in the same words."""
        full = full_name(name)
        missing = NotFound(f"index {full} does not exist, or you may not see it")
        if not self.may_see(asking, full):
            raise missing
        found = self.indexes.over_rows.find(full)
        if found is not None:
            return found
        try:
            return self.indexes.get(full)
        except NotFound:
            raise missing from None

    def managed(self, asking: Any, name: str) -> IndexInfo | RowIndex:
        """An index that the caller may change. Raises NotFound or what `manage` raises."""
        found = self.seen(asking, name)
        if self.manage is not None:
            self.manage(asking, found.name)
        elif not asking.admin:
            raise NotFound(f"index {found.name} does not exist, or you may not change it")
        return found

    def may_make(self, asking: Any, full: str) -> None:
        """Raises unless the caller may make an index of this name."""
        if self.manage is not None:
            self.manage(asking, full)
        else:
            administrator(asking, f"make index {full}")

    def may_change_endpoint(self, asking: Any, name: str) -> None:
        """Raises unless the caller may make, change or delete the vector search endpoint."""
        if self.manage_endpoint is not None:
            self.manage_endpoint(asking, name)
        else:
            administrator(asking, f"make or change vector search endpoint {name}")

    def endpoint(self, asking: Any, name: str) -> SearchEndpoint:
        """A vector search endpoint that the caller may change. Raises NotFound and what `manage_endpoint` raises."""
        found = self.indexes.over_rows.endpoints.get(name)
        self.may_change_endpoint(asking, name)
        return found

    def start_folder_sync(self, info: IndexInfo) -> None:
        if info.status != "SYNCING":
            name = f"smalti-sync-{info.name}"
            threading.Thread(target=self.indexes.sync_quietly, args=(info.name,), name=name, daemon=True).start()


def groups_of(asking: Any) -> Groups:
    """The groups whose rows the caller may see."""
    return None if asking.admin else asking.groups


def administrator(asking: Any, what: str) -> None:
    if not asking.admin:
        raise RetrievalError(f"only an administrator may {what}", 403, "PERMISSION_DENIED")


def direct(found: IndexInfo | RowIndex) -> RowIndex:
    """An index whose rows clients write."""
    if not isinstance(found, RowIndex):
        raise BadRequest(f"index {found.name} follows its folder {found.path}: change the files there")
    return found


async def body_of(request: Request, most: int = MAX_BODY) -> dict[str, Any]:
    """The request's JSON object, {} where it has no body; GET and DELETE may have one."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise BadRequest(f"the request is longer than {most:,} bytes: send less at once")
    raw = bytes(body)
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding == "gzip":
        raw = unpacked(raw, most)
    elif encoding != "identity":
        raise BadRequest(f"Content-Encoding {encoding[:40]!r} is not read: send gzip or none")
    try:
        value = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        raise BadRequest("the request's body is not valid JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("the request's body must be a JSON object with query_text and columns")
    return value


def unpacked(raw: bytes, most: int) -> bytes:
    import zlib

    unpacker = zlib.decompressobj(31)
    try:
        body = unpacker.decompress(raw, most + 1)
    except zlib.error:
        raise BadRequest("the request's body is not valid gzip") from None
    if len(body) > most:
        raise BadRequest(f"the request is longer than {most:,} bytes: send less at once")
    return body
