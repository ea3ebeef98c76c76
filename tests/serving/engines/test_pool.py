"""Connections to an upstream, against servers on 127.0.0.1 that answer byte by byte as each test says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import gzip
import ipaddress
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from serving.engines import pool as pools
from serving.engines.http1 import MAX_HEAD, Broken, Disconnected, Target
from serving.engines.pool import Answer, Pool, Unconnected
from serving.engines.transport import Transport
from serving.engines.upstream import Upstream

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Hands each request (its head) to `answer`, on connections that stay open."""

    def __init__(self, answer: Handler) -> None:
        self.answer, self.heads, self.writers = answer, [], []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"content-length: " in head:
                    await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
                self.heads.append(head)
                await self.answer(head, writer)
                await writer.drain()


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    opened: list[tuple[Any, Server]] = []

    async def start(answer: Handler | bytes, **options: Any) -> Server:
        async def given(head: bytes, writer: asyncio.StreamWriter) -> None:
            assert isinstance(answer, bytes)
            writer.write(answer)

        server = Server(given if isinstance(answer, bytes) else answer)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, **options)
        server.port = listening.sockets[0].getsockname()[1]
        opened.append((listening, server))
        return server

    yield start
    for listening, server in opened:
        listening.close()
        for writer in server.writers:
            writer.close()


@pytest.fixture
async def pool() -> AsyncIterator[Callable[..., Pool]]:
    opened: list[Pool] = []

    def make(**options: Any) -> Pool:
        opened.append(Pool(**{"limit": 8, "connect": 60.0, "tls": ssl.create_default_context, **options}))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


async def ask(pool: Pool, port: int, body: bytes = b"{}", *, seconds: float = 60.0, target: Target | None = None) -> Answer:
    until = asyncio.get_running_loop().time() + seconds
    return await pool.ask(target or Target(False, "127.0.0.1", port), b"POST", b"/v1/x", b"host: h\r\n", body, until)


async def whole(answer: Answer, *, release: bool = True) -> bytes:
    parts = []
    try:
        while part := await answer.read(asyncio.get_running_loop().time() + 60):
            parts.append(part)
    finally:
        if release:
            answer.release()
    return b"".join(parts)


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def chunked(*parts: bytes, trailer: bytes = b"") -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + framed + b"0\r\n" + trailer + b"\r\n"


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (OK, b"ok"),
        (chunked(b"o", b"k", trailer=b"x-sum: 1\r\n"), b"ok"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(gzip.compress(b"ok", mtime=0)),
            b"gzip",
        ),
    ],
)
async def test_answers_of_each_form_leave_the_connection_to_the_next(serve: Serve, pool: Any, sent: bytes, body: bytes) -> None:
    if body == b"gzip":
        sent, body = sent + gzip.compress(b"ok", mtime=0), b"ok"
    server, own = await serve(sent), pool()
    for _ in range(3):
        answer = await ask(own, server.port)
        assert b"link" not in answer.headers
        assert await whole(answer) == body
    assert len(server.writers) == 1
    assert server.heads[0] == b"POST /v1/x HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n"


async def test_a_body_that_ends_with_the_connection(serve: Serve, pool: Any) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        await writer.drain()
        writer.close()

    server, own = await serve(answer), pool()
    for _ in range(2):
        assert await whole(await ask(own, server.port)) == b"all of it"
    assert len(server.writers) == 2


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", Disconnected),
        (b"HTTP/1.1 200", Broken),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", Broken),
        (chunked(b"ok")[:-7], Broken),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", Broken),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", Broken),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * MAX_HEAD, Broken),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 2 * MAX_HEAD, Broken),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * MAX_HEAD, Broken),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\nok", Broken),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: deflate\r\ncontent-length: 4\r\n\r\n" + zlib.compress(b"ok")[:4], Broken),
    ],
)
async def test_what_is_no_whole_answer_is_told(serve: Serve, pool: Any, sent: bytes, error: type[Exception]) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server, own = await serve(answer), pool()
    with pytest.raises(error):
        await whole(await ask(own, server.port))
    server.answer = (await serve(OK)).answer
    assert await whole(await ask(own, server.port)) == b"ok"


async def test_a_second_answer_that_nobody_asked_for_is_never_read_as_the_next(serve: Serve, pool: Any) -> None:
    poison = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"
    for late in (False, True):

        async def answer(head: bytes, writer: asyncio.StreamWriter, late: bool = late) -> None:
            writer.write(OK if late else OK + poison)
            if late:
                await writer.drain()
                await asyncio.sleep(0.02)
                writer.write(poison)

        server, own = await serve(answer), pool()
        for _ in range(3):
            with contextlib.suppress(Broken):
                assert await whole(await ask(own, server.port)) == b"ok"
            await until(lambda own=own: not own._resting or own._resting[-1][1].lost)
        assert len(server.writers) == 3


async def test_a_bomb_is_unpacked_in_parts(serve: Serve, pool: Any) -> None:
    packed = gzip.compress(b"0" * 50_000_000)
    server, own = (
        await serve(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b" % (len(packed), packed)),
        pool(),
    )
    answer = await ask(own, server.port)
    assert len(await answer.read(asyncio.get_running_loop().time() + 5)) <= 1 << 20
    answer.release()


async def test_silence_ends_at_its_time_and_closes_the_connection(serve: Serve, pool: Any) -> None:
    async def silent(head: bytes, writer: asyncio.StreamWriter) -> None:
        if len(server.heads) == 2:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")

    server, own = await serve(silent), pool()
    with pytest.raises(TimeoutError):
        await ask(own, server.port, seconds=0.1)
    answer = await ask(own, server.port)
    assert await answer.read(asyncio.get_running_loop().time() + 5) == b"half"
    with pytest.raises(TimeoutError):
        await answer.read(asyncio.get_running_loop().time() + 0.1)
    answer.release()
    assert len(server.writers) == 2


async def test_an_upstream_that_sends_faster_than_it_is_read_waits(serve: Serve, pool: Any) -> None:
    sent = 0

    async def flood(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 400000000\r\n\r\n")
        while sent < 400_000_000:
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    server, own = await serve(flood), pool()
    answer = await ask(own, server.port)
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.1)
    assert sent < 50_000_000  # what the two systems buffer
    for _ in range(50):
        await answer.read(asyncio.get_running_loop().time() + 5)
    assert sent > before
    answer.release()


async def test_who_is_cancelled_leaves_its_turn_and_no_connection(serve: Serve, pool: Any) -> None:
    async def never(head: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)

    server, own = await serve(never), pool(limit=1)
    asking = asyncio.create_task(ask(own, server.port))
    await until(lambda: server.heads)
    waiting = asyncio.create_task(ask(own, server.port))
    await asyncio.sleep(0.02)
    for task in (asking, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    server.answer = (await serve(OK)).answer
    assert await whole(await ask(own, server.port)) == b"ok"
    held = await ask(own, server.port)
    with pytest.raises(TimeoutError):
        await ask(own, server.port, seconds=0.1)
    await whole(held)
    assert len(server.heads) == 3


async def test_connections_that_rest_are_closed(serve: Serve, pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_RESTING", 0.2)
    server, own = await serve(OK), pool()
    await whole(await ask(own, server.port))
    await until(lambda: not own._resting)
    assert await whole(await ask(own, server.port)) == b"ok"
    assert len(server.writers) == 2


async def test_nobody_there(pool: Any) -> None:
    with pytest.raises(Unconnected):
        await ask(pool(), 9)
    with pytest.raises(Unconnected):
        await ask(pool(), 0, target=Target(False, "no-such-host.invalid", 80))


async def test_no_header_breaks_out_of_its_line() -> None:
    with pytest.raises(ValueError, match="line break"):
        Transport(Upstream("http://127.0.0.1:9/v1", "m", "key\r\nx-admin: yes"))


async def test_the_path_is_sent_encoded(serve: Serve) -> None:
    server = await serve(OK)
    transport = Transport(Upstream(f"http://127.0.0.1:{server.port}/Äpfel%20/v1", "m", query="api-version=1 \r\n2"))
    try:
        await whole(await transport.open("POST", "/chat/completions", {}))
    finally:
        await transport.aclose()
    assert server.heads[0].startswith(b"POST /%C3%84pfel%20/v1/chat/completions?api-version=1%20%0D%0A2 HTTP/1.1\r\n")


# --- TLS and proxies ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of `localhost`, signed by itself, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.2"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_certificates_are_checked_against_the_name_that_was_configured(
    serve: Serve, pool: Any, tls: ssl.SSLContext, certificate: Path
) -> None:
    server = await serve(OK, ssl=tls)
    trusting = pool(tls=lambda: ssl.create_default_context(cafile=str(certificate)))
    pinned = Target(True, "127.0.0.1", server.port, "localhost")  # the address was looked up and checked before
    for _ in range(2):
        assert await whole(await ask(trusting, 0, target=pinned)) == b"ok"
    assert len(server.writers) == 1
    with pytest.raises(Unconnected):
        await ask(trusting, 0, target=Target(True, "127.0.0.1", server.port))
    with pytest.raises(Unconnected):
        await ask(pool(), 0, target=pinned)


async def proxy(serve: Serve, target_port: int) -> Server:
    """A proxy that passes everything on to one port, whatever it was asked for."""

    async def passing(head: bytes, writer: asyncio.StreamWriter) -> None:
        if b"proxy-authorization: Basic " + base64.b64encode(b"ann:s cret") not in head:
            writer.write(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")
            return
        if not head.startswith(b"CONNECT"):
            writer.write(OK)
            return
        reader: Any = writer.transport.get_protocol()._stream_reader  # type: ignore[attr-defined]
        inner_reader, inner = await asyncio.open_connection("127.0.0.1", target_port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65_536):
                    to.write(data)
            to.close()

        await asyncio.gather(copy(reader, inner), copy(inner_reader, writer))

    return await serve(passing)


async def test_proxies_get_whole_urls_or_make_a_tunnel(serve: Serve, pool: Any, tls: ssl.SSLContext, certificate: Path) -> None:
    server = await serve(OK, ssl=tls)
    between = await proxy(serve, server.port)
    url = f"http://ann:s%20cret@127.0.0.1:{between.port}"
    own = pool(tls=lambda: ssl.create_default_context(cafile=str(certificate)), proxy=lambda secure, host: url)
    for _ in range(2):
        assert await whole(await ask(own, 0, target=Target(True, "localhost", 443))) == b"ok"
    assert [head.split(b"\r\n")[0] for head in between.heads] == [b"CONNECT localhost:443 HTTP/1.1"]
    assert b"proxy-authorization" not in b"".join(server.heads)
    assert len(server.heads) == 2
    assert await whole(await ask(own, 0, target=Target(False, "model.invalid", 80))) == b"ok"
    assert between.heads[-1].startswith(b"POST http://model.invalid:80/v1/x HTTP/1.1\r\nproxy-authorization: Basic ")

    for wrong in (f"http://127.0.0.1:{between.port}", "socks5://127.0.0.1:9"):
        refused = pool(proxy=lambda secure, host, wrong=wrong: wrong)
        with pytest.raises(Unconnected):
            await ask(refused, 0, target=Target(True, "localhost", 443))


async def test_the_environments_proxy_is_used_for_other_hosts_alone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    between = await proxy(serve, 0)
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://ann:s%20cret@127.0.0.1:{between.port}")
    monkeypatch.setenv("http_proxy", f"http://ann:s%20cret@127.0.0.1:{between.port}")
    own = await serve(OK)
    for base in ("http://model.invalid/v1", f"http://127.0.0.1:{own.port}/v1"):
        transport = Transport(Upstream(base, "m", "k"))
        try:
            assert await whole(await transport.open("POST", "/chat/completions", {})) == b"ok"
        finally:
            await transport.aclose()
    assert (len(between.heads), len(own.heads)) == (1, 1)
    assert b"\r\nhost: model.invalid\r\n" in between.heads[0]
