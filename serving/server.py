"""The `serve` command: owns the state, takes the port, says where everything is, and serves until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import shlex
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.commands import summary
from retrieval.progress import progress_bar
from serving.cli import CommandError, Workspace
from serving.state import owned

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from serving.settings import Settings
    from serving.state import Home

DAY = 86_400
SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter from the one that answers calls, which gives it up whenever it writes or reads."""
DRAIN_SECONDS = 20
"""How long running answers may take to end once the server was told to stop."""
HEAD_SECONDS = 30.0
"""How long a connection may stand open before the head of a request has come whole."""


def run(work: Workspace, build: Callable[[Settings, Home], FastAPI], *, as_json: bool) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises
    ------
    CommandError: the port is taken, or the documents cannot be indexed. StateError: the state is in use.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    settings = work.settings
    if settings.docs is None and Path("docs").is_dir():
        work.given["docs"] = Path("docs")
        del work.settings
        settings = work.settings
    if settings.docs is not None and not settings.docs.exists():
        raise CommandError(f"There is no folder {settings.docs}. Name the one with your documents: make run DOCS=~/handbook", 2)
    sys.setswitchinterval(SWITCH_SECONDS)
    with owned(work.home), _listen(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
        work.given["port"] = port
        del work.settings
        app = build(work.settings, work.home)
        with progress_bar(as_json) as bar:
            app.state.progress = lambda step: bar.show(asdict(step))
            app.state.announce = lambda: (bar.stop(), _keep(), _announce(work, app, as_json))
            with asyncio.Runner(loop_factory=_loop()) as runner:
                runner.run(_serve(app, listener))
    if app.state.failure:
        raise CommandError(str(app.state.failure), 2)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, so that asyncio turns Nagle off
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        hint = f"Use another: make run PORT={port + 1}"
        raise CommandError(f"Port {port} on {host} is taken ({error.strerror}). {hint}", 2) from None
    return listener


def _loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not made for Windows
        return None
    return uvloop.new_event_loop


async def _serve(app: FastAPI, listener: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        server_header=False,
        proxy_headers=False,  # the application has them read, but for calls
    )
    server = uvicorn.Server(config)
    app.state.stop = lambda: setattr(server, "should_exit", True)
    sweeping = asyncio.create_task(sweep(server))
    with contextlib.suppress(asyncio.CancelledError):
        await server.serve(sockets=[listener])
    sweeping.cancel()


async def sweep(server: uvicorn.Server, seconds: float = HEAD_SECONDS) -> None:
    """Close connections that send no whole head of a request, or send it ever so slowly, as nothing else does.

    Looks at all of them from time to time, so that it costs requests nothing; ends when it is cancelled.
    """
    seen: dict[Any, tuple[Any, int]] = {}
    while True:
        await asyncio.sleep(seconds / 3)
        silent: dict[Any, tuple[Any, int]] = {}
        connections: list[Any] = list(server.server_state.connections)
        for connection in connections:
            if not hasattr(connection, "timeout_keep_alive_task"):  # no longer one of HTTP
                continue
            last = connection.cycle  # the request before
            if connection.timeout_keep_alive_task is None and (last is None or last.response_complete):
                before, times = seen.get(connection, (last, 0))
                silent[connection] = (last, times + 1 if before is last else 1)
                if silent[connection][1] > 3:
                    connection.transport.close()
        seen = silent


def _keep() -> None:
    """What was loaded stays: the collector need not go through it again and again while calls are answered."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    with contextlib.suppress(AttributeError, OSError):  # glibc's: what starting took and left goes back to the system
        ctypes.CDLL(None).malloc_trim(0)


def _announce(work: Workspace, app: FastAPI, as_json: bool) -> None:
    from governance.call import Caller

    platform = app.state.platform
    url = platform.url
    secret = None if work.settings.admin_key else platform.identity.ensure_admin()  # here, for a start that fails shows none
    work.home.announce(f"http://{_reachable(work.settings.host)}:{work.settings.port}")
    sign_in = f"{url}/signin?code={platform.codes.issue(Caller('admin', admin=True))}"
    key = secret or platform.identity.create_key("admin", admin=True, ttl=DAY, label="curl line")[1]
    body = json.dumps({"model": work.settings.main_agent, "input": app.state.example})
    curl = f"curl {url}/v1/responses -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    if as_json:
        told = {"url": url, "chat": sign_in, "console": f"{url}/console", "mlflow": f"{url}/mlflow", "admin_key": secret}
        work.print_json({**told, "indexes": [asdict(report) for report in app.state.reports], "curl": curl})
        sys.stdout.flush()
        return
    for report in app.state.reports:
        print(summary(asdict(report)))
    print(f"\n  Smalti is ready.\n\n  chat     {sign_in}\n  console  {url}/console")
    if platform.mlflow:
        print(f"  MLflow   {url}/mlflow")
    if secret:
        print(f"\n  admin key (shown only now): {secret}")
    else:
        where = "the one in SMALTI_ADMIN_KEY" if work.settings.admin_key else "shown at the first start"
        print(f"\n  admin key: {where}; the line below has one that lives for a day")
    print(f"\n  {curl}\n", flush=True)


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
