"""`smalti dev` and the server it starts end together."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tests.live import ROOT, environment, wait_until


def test_the_server_ends_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    command = [sys.executable, "-c", "from app import main; main()", "dev", "--port", "0"]
    given = environment(tmp_path / "home", PYTHONPATH=str(ROOT))
    with (tmp_path / "log").open("wb") as log:
        dev = subprocess.Popen(command, cwd=tmp_path / "project", env=given, stdout=log, stderr=log)
    try:
        watched, found = psutil.Process(dev.pid), []

        def started() -> bool:
            with suppress(psutil.Error):  # one that ends while it is looked at
                found[:] = [child for child in watched.children() if "serve" in child.cmdline()]
            return found != []

        wait_until(started, 100)
        (server,) = found
        dev.send_signal(signal.SIGTERM)  # in its first moments, when it does not watch yet
        assert dev.wait(100) == 0
        assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    finally:
        if dev.poll() is None:
            dev.kill()
            dev.wait(10)
