"""The way out of calls: what every answer carries, in one layer, and a whole answer in one write.

An ASGI server writes the head of an answer and its body one after the other: two system calls, two packets, and each header
looked at several times. Most answers of calls are whole and short, so where uvicorn serves them its connection gets them at once.
"""

from __future__ import annotations

from typing import Any

from starlette.types import Message, Scope, Send

from serving.compress import LEAST, reads_gzip
from serving.errors import identified, request_id

try:
    from uvicorn.protocols.http import httptools_impl as uvicorn
except ImportError:  # without httptools, uvicorn's other protocol serves
    uvicorn = None

KEY = "smalti.outgoing"
"""Where a request's scope has its `Outgoing`."""


class Outgoing:
    """ASGI `send` of one call: adds the ids that every answer has, and `x-smalti-budget-warning` where there is one.

    Parameters
    ----------
    warnings: soft budgets that calls found used up, by request id.
    """

    __slots__ = ("_scope", "_send", "_warnings", "started")

    def __init__(self, scope: Scope, send: Send, warnings: dict[str, str]) -> None:
        self._scope, self._send, self._warnings = scope, send, warnings
        self.started = False
        scope[KEY] = self

    async def __call__(self, message: Message) -> None:
        if not self.started:
            self.started = True
            message["headers"] = [*message["headers"], *self._added()]
        await self._send(message)

    def whole(self, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write a whole answer of status 200 at once; False where it must go the usual way, and nothing was written."""
        cycle: Any = getattr(self._send, "__self__", None)
        if uvicorn is None or type(cycle) is not uvicorn.RequestResponseCycle or self.started:
            return False
        if cycle.response_started or cycle.disconnected or not cycle.keep_alive or cycle.flow.write_paused:
            return False
        if len(body) >= LEAST and reads_gzip(self._scope):
            return False
        self.started = True
        fields = [*cycle.default_headers, *headers, *self._added()]
        if uvicorn.HEADER_VALUE_RE.search(b" ".join([value for _, value in fields])):
            raise ValueError(f"a header's value has a line break or a control character in it: {fields!r}")
        parts = [uvicorn.STATUS_LINE[200]]
        for name, value in fields:
            parts += (name, b": ", value, b"\r\n")
        parts += (b"\r\n", body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join(parts))
        cycle.message_event.set()
        cycle.on_response()
        return True

    def _added(self) -> list[tuple[bytes, bytes]]:
        identifier = request_id(self._scope)
        added = [*identified(identifier)]
        if self._warnings and (warning := self._warnings.pop(identifier, None)):
            added.append((b"x-smalti-budget-warning", warning.encode("latin-1", "replace")))
        return added
