"""Ingestion in a process of its own, for a journal so busy that a thread would take the interpreter from the calls.

It is one more process that ingests a folder, which any may. Its standard input closes with the server, however that ends, and
so does it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_ALL = 1 << 30  # no calls are answered here
_PATIENCE = 30.0  # seconds that its last round may take


class Ingester:
    """The process, seen from the server.

    Parameters
    ----------
    url: of the state database, password included; it crosses in a pipe and stands in no command line.
    folder, interval, fsync: as the journal's.

    Raises
    ------
    OSError: it cannot be started.
    """

    def __init__(self, url: str, folder: Path, *, interval: float, fsync: bool) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "governance.ingester"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # a terminal's Ctrl-C is for the server, which ends it
        )
        assert self._process.stdin is not None
        told = {"url": url, "folder": str(folder.resolve()), "interval": interval, "fsync": fsync}
        try:
            self._process.stdin.write(json.dumps(told).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it ended at once
            self.close()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End it after the round it is in."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Ingest until standard input ends."""
    from sqlalchemy import create_engine, event

    from governance.journal import Journal

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    line = sys.stdin.readline()
    if not line:  # the server was killed before it said anything
        return
    told = json.loads(line)
    engine = create_engine(told["url"])
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _(connection, _record) -> None:  # as the server's own connections are
            for pragma in ("busy_timeout=30000", "synchronous=NORMAL"):
                connection.execute(f"PRAGMA {pragma}")

    journal = Journal(engine, Path(told["folder"]), interval=None, pause=_ALL, fsync=told["fsync"])
    while not select.select([sys.stdin], [], [], told["interval"])[0]:
        journal.ingest_quietly()
    os._exit(0)  # the server takes in what is left, or the next one does


if __name__ == "__main__":
    main()
