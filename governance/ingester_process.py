"""`python -m governance.ingester_process`: what `governance.ingester` starts."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from pathlib import Path

from sqlalchemy import create_engine, event

from governance.journal import Journal

_ALL = 1 << 30  # no calls are answered here


def main() -> None:
    """Ingest until standard input ends."""
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
