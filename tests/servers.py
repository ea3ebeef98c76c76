"""Real PostgreSQL, Redis and Chroma servers for tests, in folders of their own; the first two where they are installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.engines.ports import free_port


def _program(name: str, *places: str) -> str:
    found = shutil.which(name) or next((str(path) for place in places for path in sorted(Path("/").glob(place))[::-1]), None)
    if found is None:
        pytest.skip(f"{name} is not installed: these tests did not run (Debian: apt install postgresql redis-server)")
    return found


@contextmanager
def _running(command: list[str], port: int, log: Path, how: signal.Signals) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        else:
            raise RuntimeError(f"{command[0]} is not reached: {log.read_text()[-2000:]}")
        yield process
    finally:
        process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a new PostgreSQL server's database."""
    with tempfile.TemporaryDirectory(prefix="smalti-postgres-") as folder, _postgres(Path(folder)) as url:
        yield url


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    initdb = _program("initdb", "usr/lib/postgresql/*/bin/initdb")
    data, port = folder / "data", free_port()
    become: list[str] = []
    if os.geteuid() == 0:  # which PostgreSQL refuses
        setpriv = _program("setpriv")
        become = [setpriv, "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")
    subprocess.run(
        [*become, initdb, "-D", str(data), "-A", "trust", "-U", "smalti", "-E", "UTF8", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    program = str(Path(initdb).resolve().with_name("postgres"))
    options = ["-p", str(port), "-k", "", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    with _running([*become, program, "-D", str(data), *options], port, folder / "postgres.log", signal.SIGINT):
        import psycopg

        url = f"postgresql://smalti@127.0.0.1:{port}/postgres"
        for _ in range(300):
            try:
                psycopg.connect(url, autocommit=True).close()
                break
            except psycopg.OperationalError:  # it is starting up
                time.sleep(0.1)
        else:
            raise RuntimeError(f"PostgreSQL is not ready: {(folder / 'postgres.log').read_text()[-2000:]}")
        yield url


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The URL of a new Redis server."""
    program, port = _program("redis-server"), free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with _running([program, *options], port, folder / "redis.log", signal.SIGTERM):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def chroma(folder: Path, port: int = 0) -> Iterator[tuple[str, int]]:
    """The URL and the process of a Chroma server whose data are in a folder."""
    port = port or free_port()
    folder.mkdir(exist_ok=True)
    run = "import sys; from chromadb.cli.cli import app; sys.argv[0] = 'chroma'; app()"
    options = ["run", "--path", str(folder / "data"), "--host", "127.0.0.1", "--port", str(port)]
    with _running([sys.executable, "-W", "ignore", "-c", run, *options], port, folder / "chroma.log", signal.SIGKILL) as process:
        yield f"http://127.0.0.1:{port}", process.pid
