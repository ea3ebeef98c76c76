"""Chroma servers that cannot be used: each is named in words, searches go on, and nothing hangs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from retrieval import Encoder, Indexes, shared_vectors
from retrieval import search as searching
from retrieval.chroma_server import ChromaError, ChromaServer
from serving.engines.ports import free_port
from serving.settings import Settings, SettingsError
from tests.live import wait_until

TOKEN = "a-token-that-nobody-may-read"


@contextmanager
def answering(status: int, body: Any, silent: bool = False) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers everything alike, or takes requests and says nothing; and the headers that it was sent."""
    seen: list[dict[str, str]] = []
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            if silent:
                ended.wait(30)
                return
            found = body(self.path, seen[-1]) if callable(body) else body
            data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"error": "AuthError", "message": f"{TOKEN} is wrong"}, "refuses the token in chroma_token"),
        (403, "<html>no</html>", "refuses the token"),
        (200, "<html>another service</html>", "is no Chroma server"),
        (200, {"version": "2"}, "is no Chroma server"),
        (404, "not found", "is no Chroma server"),
        (302, "", "is no Chroma server"),
        (502, "bad gateway", "answers 502"),
        (200, '"0.5.23"', "is version 0.5.23: 1.0 or newer is needed"),
    ],
)
def test_what_is_wrong_with_a_server_is_said(status: int, body: Any, said: str) -> None:
    with answering(status, body) as (url, seen):
        with pytest.raises(ChromaError, match=said) as told:
            ChromaServer(url, TOKEN).check()
        assert TOKEN not in str(told.value)
        assert (seen[0]["authorization"], seen[0]["x-chroma-token"]) == (f"Bearer {TOKEN}", TOKEN)
        assert TOKEN not in ChromaServer(url, TOKEN).told(Exception(f"echo {TOKEN}"))


def test_a_server_that_is_not_there_or_says_nothing() -> None:
    with pytest.raises(ChromaError, match=r"127\.0\.0\.1:\d+ \(chroma_url\) does not answer"):
        ChromaServer(f"http://127.0.0.1:{free_port()}").check()
    with answering(200, "", silent=True) as (url, _), pytest.raises(ChromaError, match="does not answer"):
        ChromaServer(url).check(seconds=0.2)


@pytest.mark.parametrize(
    "url",
    ["chroma:8000", "ftp://chroma", "http://", "http://chroma:99999", "http://chroma?what=x", "http://ann:secret@chroma", "x"],
)
def test_an_address_that_is_none_is_refused_at_the_start(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_CHROMA_URL", url)
    with pytest.raises(SettingsError, match="chroma_url") as told:
        Settings.load()
    assert "secret" not in str(told.value)


def test_the_address_is_the_owners_and_the_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_CHROMA_URL", "https://[::1]:8443/behind/?tenant=t&database=d")
    monkeypatch.setenv("SMALTI_CHROMA_TOKEN", TOKEN)
    settings = Settings.load()
    assert ChromaServer(settings.chroma_url or "").url == "https://[::1]:8443/behind"
    assert TOKEN not in repr(settings)


@pytest.mark.parametrize("how", ["silent", "refusing", "down"])
def test_searches_go_on_without_it(
    engine: sa.Engine,
    tmp_path: Path,
    encoder: Encoder,
    folder: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(searching, "STORED", 0)
    monkeypatch.setattr(shared_vectors, "TELLING", 0.3)
    monkeypatch.setattr(ChromaServer.check, "__defaults__", (0.3,))
    with answering(401, {"error": "AuthError", "message": TOKEN}, silent=how == "silent") as (url, _):
        server = ChromaServer(url if how != "down" else f"http://127.0.0.1:{free_port()}", TOKEN)
        indexes = Indexes(engine, tmp_path / "chroma", encoder, chroma=server)
        try:
            indexes.start()
            indexes.add("docs", folder)
            assert indexes.sync("docs").added == 3
            assert indexes.search("docs", "who cuts tiles by hand?", mode="dense")[0].source == "glass.md"
            wait_until(lambda: indexes.get("docs").warning != "")
            assert ("refuses the token" if how == "refusing" else "does not answer") in indexes.get("docs").warning
            assert not (tmp_path / "chroma").exists(), "the folder's Chroma does not take its place"
        finally:
            indexes.close()
    assert TOKEN not in caplog.text
    assert "until then searches read vectors in memory" in caplog.text
