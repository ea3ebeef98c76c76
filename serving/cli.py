"""What every command needs: settings, state, output for people and for machines, and the server of this state folder."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI
    from sqlalchemy import Engine

    from governance.grants import Grants
    from governance.identity import Identity
    from governance.journal import Journal
    from retrieval.embed import Encoder
    from serving.settings import Settings
    from serving.state import Home


_TOLD_AT = {
    "endpoint": "/api/2.0/serving-endpoints/",
    "index": "/api/2.0/vector-search/indexes/",
    "connection": "/api/2.1/unity-catalog/connections/",
}


class CommandError(Exception):
    """A command cannot do what it was asked; the message says what and what to do. `code` is the exit status."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def check(response: httpx.Response) -> Any:
    """The JSON of a good answer.

    Raises
    ------
    CommandError: with the server's own line, when the answer is an error.
    """
    if response.is_success:
        return response.json()
    try:
        body = response.json()
        error = body.get("error")
        message = error["message"] if isinstance(error, dict) else body.get("message") or body.get("detail") or response.text
    except ValueError:
        message = response.text[:500]
    raise CommandError(f"{message} (HTTP {response.status_code}, request {response.headers.get('x-request-id', 'unknown')})")


class Workspace:
    """The settings and the state that a command works on; each part is opened when it is first asked for.

    Parameters
    ----------
    config: `smalti.yaml` to read instead of the one here.
    build: makes the application on an owned state folder; used by commands that need a server while none runs.
    """

    def __init__(self, config: Path | None, build: Callable[[Settings, Home], FastAPI]) -> None:
        self._config, self._build = config, build
        self.check = check
        self.given: dict[str, Any] = {}
        """Settings from the command line, over file and environment."""
        self.find_pii: Callable[[str], list[str]] | None = None
        """Kinds of personal data in a text, for commands of rooms that do not know governance."""
        self.disliked: Callable[[], set[str]] = set
        """Answers that somebody found bad, by request id, for commands of rooms that do not know serving."""
        self.redact: Callable[[str], str] = lambda text: text
        """A text without personal data, for the same."""

    @cached_property
    def settings(self) -> Settings:
        from serving.settings import Settings

        return Settings.load(self._config, **self.given)

    @cached_property
    def home(self) -> Home:
        from serving.state import Home

        return Home(self.settings.home)

    @cached_property
    def engine(self) -> Engine:
        from serving.state import open_state

        return open_state(self.home, self.settings.database_url)

    @cached_property
    def identity(self) -> Identity:
        from governance.identity import Identity

        return Identity(self.engine, self.home.pepper)

    @cached_property
    def grants(self) -> Grants:
        from governance.grants import Grants
        from serving.needs import needs

        return Grants(self.engine, needs(self.settings, self.engine))

    @cached_property
    def journal(self) -> Journal:
        from governance.journal import Journal

        return Journal(self.engine, self.home.journal, interval=None)

    @cached_property
    def encoder(self) -> Encoder:
        from retrieval.embed import Encoder

        return Encoder.load(self.home.models)

    def print_json(self, value: Any) -> None:
        """One JSON value on a line of standard output, for machines."""
        print(json.dumps(value, ensure_ascii=False, default=str))

    def print_rows(
        self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, as_json: bool, empty: str, below: str = ""
    ) -> None:
        """Rows as a table, or as a JSON list. `columns` maps a row's key to its heading; `empty` is said where there is none;
        what the key `below` holds, a text of any length, stands under its row."""
        if as_json:
            self.print_json(list(rows))
            return
        from rich.console import Console
        from rich.table import Table

        console = Console()
        if not rows:
            console.print(empty, highlight=False)
            return
        if below:
            _print_listed(console, rows, columns, below)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in columns.values():
            table.add_column(heading, overflow="fold")  # an id that is cut cannot be copied
        for row in rows:
            table.add_row(*(_cell(row.get(key)) for key in columns))
        console.print(table)

    @contextmanager
    def connect(self, as_user: str | None = None) -> Iterator[httpx.Client]:
        """A client of the server that owns this state; where none runs, one is started for the length of the block.

        It is signed in with the key `as_user`, or with an administrator's key that lives for an hour at most and ends with
        the block: who can write the state folder is its owner.
        """
        import httpx

        made = None if as_user else self.identity.create_key("local", admin=True, ttl=3600, label="command line", session=True)
        secret = made[1] if made else as_user
        options: dict[str, Any] = {"headers": {"Authorization": f"Bearer {secret}"}, "timeout": None, "trust_env": False}
        running = self.home.server()
        try:
            if running:
                with httpx.Client(base_url=running["url"], **options) as client:
                    yield client
            else:
                with self._own_server() as url, httpx.Client(base_url=url, **options) as client:
                    yield client
        finally:
            if made:
                self.identity.revoke(made[0].id, session=True)

    def missing(self, securable: str) -> str | None:
        """What a running server says of what it does not know of these; None where it knows it, or none runs."""
        kind, _, name = securable.partition(":")
        path = _TOLD_AT.get(kind)
        if path is None or "*" in name or not self.home.server():
            return None
        with self.connect() as client:
            answer = client.get(path + quote(name, safe=""))
        return str(answer.json().get("message")) if answer.status_code == 404 else None

    @contextmanager
    def _own_server(self) -> Iterator[str]:
        import uvicorn

        from serving.state import owned

        with owned(self.home), socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
            listener.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            local = self.settings.model_copy(update={"mlflow": False, "public_url": self.settings.public_url or url})
            server = uvicorn.Server(uvicorn.Config(self._build(local, self.home), log_config=None, timeout_graceful_shutdown=2))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            try:
                self._wait(url, thread)
                yield url
            finally:
                server.should_exit = True
                thread.join(timeout=10)

    def _wait(self, url: str, thread: threading.Thread) -> None:
        import httpx

        deadline = time.monotonic() + 60
        with httpx.Client(trust_env=False) as client:
            while time.monotonic() < deadline and thread.is_alive():
                try:
                    if client.get(f"{url}/ready").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
        raise CommandError("The server for this command did not become ready; `smalti doctor` looks for the reason.")


_PLAIN: dict[str, Any] = {"soft_wrap": True, "markup": False, "highlight": False}


def _print_listed(console: Any, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], below: str) -> None:
    """Rows each on a line; where that is too long for the terminal, the first column, an id, has a line of its own."""
    import textwrap

    from rich.text import Text

    table = [list(columns.values()), *(["" if row.get(key) is None else str(row[key]) for key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    long = sum(widths) + 2 * (len(widths) - 1) > console.width
    for number, cells in enumerate(table):
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        line = f"{cells[0]}\n  {'  '.join(padded[1:])}" if long else "  ".join(padded)
        lines = "\n".join(each.rstrip() for each in line.split("\n"))
        console.print(Text(lines, "" if number else "bold"), **_PLAIN)
        for said in str(rows[number - 1].get(below) or "").splitlines() if number else ():
            console.print(textwrap.fill(said, console.width, initial_indent=" " * 4, subsequent_indent=" " * 4), **_PLAIN)


def _cell(value: Any) -> Any:
    from rich.markup import escape
    from rich.text import Text

    if value is None:
        return ""
    if isinstance(value, Text):
        return value
    return escape(", ".join(map(str, value)) if isinstance(value, list | tuple | set | frozenset) else str(value))
