"""Connections that send nothing, or next to nothing, are not held for ever."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.requests import Request

from governance.call import CallError
from serving.routes import read_body
from serving.server import sweep

pytestmark = pytest.mark.anyio


async def slow(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def trickle(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        for piece in (b"GET / HTTP/1.1\r\n", b"host: x\r\n", *[b"x: y\r\n"] * 200):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)


async def test_a_connection_without_a_whole_request_is_closed_and_others_are_not() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(slow, log_config=None, lifespan="off", timeout_keep_alive=60))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    sweeping = asyncio.create_task(sweep(server, 0.15))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            assert (await client.get("/")).text == "ok"  # for longer than a silent connection may stand
            with pytest.raises(ConnectionError):
                await trickle(port)
            assert (await client.get("/")).text == "ok"  # on the connection of before, which waited for it
            assert len(server.server_state.connections) == 1
    finally:
        sweeping.cancel()
        server.should_exit = True
        await serving


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.body.BODY_SECONDS", 0.1)

    async def receive() -> Any:
        await asyncio.sleep(0.03)
        return {"type": "http.request", "body": b"{", "more_body": True}

    request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    with pytest.raises(CallError, match="did not come whole") as caught:
        await read_body(request)
    assert caught.value.status == 408
