"""Packed answers: for who reads them, and only where it is worth it."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serving.compress import OFF_LOOP, Compressed

pytestmark = pytest.mark.anyio


async def answer(request: Request) -> Response:
    kind, size = request.path_params["kind"], int(request.query_params.get("size", 5000))
    if kind == "json":
        return JSONResponse({"text": "a" * size})
    if kind == "image":
        return Response(b"a" * size, media_type="image/png")
    if kind == "packed":
        return Response(gzip.compress(b'"x"'), media_type="application/json", headers={"content-encoding": "gzip"})

    async def lines() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"data: " + b"a" * size + b"\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


@pytest.fixture
def app() -> Any:
    return Compressed(Starlette(routes=[Route("/{kind}", answer)]))


async def get(app: Any, path: str, accepted: str = "gzip, deflate") -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://smalti") as client:
        return await client.get(path, headers={"accept-encoding": accepted})


@pytest.mark.parametrize("size", [5000, 2 * OFF_LOOP])
async def test_a_large_answer_is_packed(app: Any, size: int) -> None:
    found = await get(app, f"/json?size={size}")
    assert found.headers["content-encoding"] == "gzip"
    assert found.headers["vary"] == "accept-encoding"
    assert int(found.headers["content-length"]) < size / 10
    assert found.json() == {"text": "a" * size}


@pytest.mark.parametrize(
    ("path", "accepted"),
    [("/json?size=10", "gzip"), ("/json", "identity"), ("/json", "br, gzip;q=0"), ("/image", "gzip"), ("/stream", "gzip")],
)
async def test_what_is_small_or_streamed_or_unasked_is_sent_as_it_is(app: Any, path: str, accepted: str) -> None:
    found = await get(app, path, accepted)
    assert "content-encoding" not in found.headers
    assert found.status_code == 200
    assert b"aaaa" in found.content


async def test_what_is_packed_already_is_not_packed_again(app: Any) -> None:
    assert (await get(app, "/packed")).json() == "x"
