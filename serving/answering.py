"""One call as an ASGI response: whole in one write, or a stream whose first event is awaited before headers go out, so that a
refusal has its own HTTP status. When the client goes, the call is cancelled and every generator of its chain closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from governance.call import Call, CallError
from serving import outgoing
from serving.conversation_turns import Turn
from serving.dispatch import Dispatcher
from serving.endpoint import Endpoint, answered_by
from serving.protocols import sse
from serving.protocols.request import Encoder

UNWATCHED = 0.05
"""Seconds of a call after which it is watched whether its client is still there: most are answered before."""


class Answering:
    """An ASGI response that runs one call and ends it when the client goes.

    Parameters
    ----------
    dispatcher, call, encoder: what to run and how to write its answer.
    endpoint: the endpoint that is called, where there is one; the entity of it that answers is named in `served-model-name`.
    explain: makes a better error of a refusal.
    """

    def __init__(
        self,
        dispatcher: Dispatcher | Turn,
        call: Call,
        encoder: Encoder,
        *,
        endpoint: Endpoint | None = None,
        explain: Callable[[CallError], CallError] = lambda error: error,
    ) -> None:
        self._dispatcher, self._call, self._encoder, self._explain = dispatcher, call, encoder, explain
        self._served = endpoint.served_name if endpoint else None
        self._answered: dict[str, str] = {}
        self._gone = False
        self._watching: asyncio.Task[None] | None = None

    def _headers(self) -> list[tuple[bytes, bytes]]:
        served = self._answered.get(self._call.request_id, self._served)
        return [(b"served-model-name", served.encode("latin-1", "replace"))] if served else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered_by.set(self._answered)
        loop = asyncio.get_running_loop()
        later = loop.call_later(UNWATCHED, self._watch, asyncio.current_task(loop), receive)
        try:
            await (self._stream(send) if self._call.stream else self._whole(scope, send))
        except asyncio.CancelledError:
            if not self._gone:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()  # nobody is left to answer
        except CallError as error:
            raise self._explain(error) from None
        finally:
            later.cancel()
            if self._watching is not None:
                self._watching.cancel()

    def _watch(self, task: asyncio.Task[Any] | None, receive: Receive) -> None:
        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._gone = True
            if task is not None:
                task.cancel()

        self._watching = asyncio.get_running_loop().create_task(watch())

    async def _whole(self, scope: Scope, send: Send) -> None:
        body = self._encoder.body(await self._dispatcher.invoke(self._call))
        length = (b"content-length", str(len(body)).encode())
        headers = [*self._headers(), (b"content-type", b"application/json"), length]
        if (out := scope.get(outgoing.KEY)) is not None and out.whole(headers, body):
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send) -> None:
        events: Any = self._dispatcher.stream(self._call)
        encode = self._encoder.event
        started = False
        try:
            async for event in events:
                if not started:
                    headers = [*self._headers(), *sse.HEADERS, *getattr(self._encoder, "headers", ())]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    started = True
                if framed := encode(event):
                    await send({"type": "http.response.body", "body": framed, "more_body": True})
        except CallError as error:
            if not started:
                raise
            await send({"type": "http.response.body", "body": self._encoder.failure(error), "more_body": True})
        finally:
            await events.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
