"""Ingestion in a process of its own, for a journal so busy that a thread would take the interpreter from the calls.

It is one more process that ingests a folder, which any may. Its standard input closes with the server, however that ends, and
so does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import URL

ROOT = Path(__file__).resolve().parent.parent
_PATIENCE = 30.0  # seconds that its last round may take


class Ingester:
    """The process, seen from the server.

    Parameters
    ----------
    url: of the state database; its password crosses in a pipe and stands in no command line.
    folder, interval, fsync: as the journal's.

    Raises
    ------
    OSError: it cannot be started.
    """

    def __init__(self, url: URL, folder: Path, *, interval: float, fsync: bool) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "governance.ingester_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # a terminal's Ctrl-C is for the server, which ends it
        )
        assert self._process.stdin is not None
        file = url.database if url.get_backend_name() == "sqlite" else None
        where = {"url": url.render_as_string(hide_password=False), "file": file}
        told = {**where, "folder": str(folder.resolve()), "interval": interval, "fsync": fsync}
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
