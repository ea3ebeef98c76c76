"""Files that a signed-in person hands to a page: held in memory for a while, for their owner alone, until the page takes them."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from governance.call import CallError
from serving.ui.session import same_origin, signed_in

if TYPE_CHECKING:
    from serving.ui.services import UiServices

LARGEST = 32 << 20
"""Bytes of one file."""
HELD = 256 << 20
"""Bytes of all that are held at once."""
KEPT = 1800.0
"""Seconds after which a file that nobody took is dropped."""
NAME_CHARS = 120
NAME_BYTES = 200
"""As much as a file system takes of a name, and a little less."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it was sent. `name` is what its sender called it: text, never a path that is used."""

    owner: str
    name: str
    content: bytes
    until: float = field(default_factory=lambda: time.monotonic() + KEPT)


class Uploads:
    """The files that are held."""

    def __init__(self) -> None:
        self._files: dict[str, Upload] = {}

    def add(self, owner: str, name: str, content: bytes) -> str:
        """Hold a file; gives its id. Raises `CallError` (413, 429)."""
        now = time.monotonic()
        self._files = {key: each for key, each in self._files.items() if each.until > now}
        if sum(len(each.content) for each in self._files.values()) + len(content) > HELD:
            raise CallError(
                "Too many files are being handed in. Try again in a while.", status=429, code="REQUEST_LIMIT_EXCEEDED"
            )
        identifier = secrets.token_urlsafe(16)
        self._files[identifier] = Upload(owner, name, content)
        return identifier

    def get(self, identifier: str, owner: str) -> Upload | None:
        """The owner's file, which stays held."""
        found = self._files.get(identifier)
        return found if found is not None and found.owner == owner and found.until > time.monotonic() else None

    def take(self, identifier: str, owner: str) -> Upload | None:
        """The owner's file, which is held no more."""
        found = self.get(identifier, owner)
        if found is not None:
            del self._files[identifier]
        return found


def plain_name(name: str) -> str:
    """A file's name as text of one line, without folders; "file" where nothing is left."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    plain = "".join(c for c in last if c.isprintable()).strip(" .")[-NAME_CHARS:]
    while len(plain.encode("utf-8", "ignore")) > NAME_BYTES:
        plain = plain[1:]
    return plain.encode("utf-8", "ignore").decode().strip(" .") or "file"


def routes(services: UiServices) -> list[Route]:
    """`POST /uploads?name=NAME`, the body is the file; gives `{"id", "name", "size"}`, or `{"message"}` of a refusal."""

    async def upload(request: Request) -> Response:
        if not same_origin(request):
            return JSONResponse({"message": "This file was sent from another site, so it was refused."}, 403)
        try:
            caller, _ = await signed_in(services.identity, request.scope)
            content = bytearray()
            async for part in request.stream():
                content += part
                if len(content) > LARGEST:
                    return JSONResponse({"message": f"The file is larger than {LARGEST >> 20} MB."}, 413)
            name = plain_name(request.query_params.get("name", ""))
            identifier = services.uploads.add(caller.principal, name, bytes(content))
        except CallError as error:
            return JSONResponse({"message": error.message}, error.status)
        except ClientDisconnect:
            return Response(status_code=400)
        return JSONResponse({"id": identifier, "name": name, "size": len(content)})

    return [Route("/uploads", upload, methods=["POST"])]
