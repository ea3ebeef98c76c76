"""`python -m governance.ingester_process`: what `governance.ingester` starts.

On SQLite it needs the driver alone: with SQLAlchemy it would be three times as large.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sqlite3
import sys
from pathlib import Path
from typing import Any

from governance.ingestion import Ingestion
from governance.intake import SqliteStore, Store

_PAUSE = 16  # frames or rows, after which a call that waits for this core has it
_PRAGMAS = ("busy_timeout=30000", "synchronous=NORMAL", "wal_autocheckpoint=8000")  # as of the server's own connections


def main() -> None:
    """Ingest until standard input ends."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    line = sys.stdin.readline()
    if not line:  # the server was killed before it said anything
        return
    told = json.loads(line)
    os.nice(5)  # calls that wait come first
    ingestion = Ingestion(_store(told), Path(told["folder"]), pause=_PAUSE, fsync=told["fsync"])
    while not select.select([sys.stdin], [], [], told["interval"])[0]:
        ingestion.run_quietly()
    os._exit(0)  # the server takes in what is left, or the next one does


def _store(told: dict[str, Any]) -> Store:
    if told["file"] is None:
        from sqlalchemy import create_engine

        from governance.intake_sql import SqlStore

        return SqlStore(create_engine(told["url"]))
    connection = sqlite3.connect(told["file"])
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    return SqliteStore(lambda: contextlib.nullcontext(connection), _PAUSE)


if __name__ == "__main__":
    main()
