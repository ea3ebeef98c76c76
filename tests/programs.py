"""Programs that use MLflow, each in a process of its own. It is forked from one that has imported MLflow, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_HOST = """
import json, os, sys
import mlflow, mlflow.pyfunc, pandas
from mlflow.utils import requirements_utils
requirements_utils._MODULES_TO_PACKAGES = {}  # else every file of every package is listed, for a warning
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for number, name in enumerate(("stdout", "stderr"), 1):
    os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT), number)
os.chdir(asked["folder"])
os.environ.clear()
os.environ.update(asked["environment"])
sys.argv = ["-c", *asked["arguments"]]
exec(compile(asked["code"], "<program>", "exec"), {"__name__": "__main__"})
"""


class Programs:
    """Runs programs one after the other; `close` ends the process that they are forked from."""

    def __init__(self) -> None:
        self._host: subprocess.Popen[str] | None = None

    def run(self, code: str, *arguments: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """As `python -c code arguments` in a folder with these variables alone; waits for its end."""
        with tempfile.TemporaryDirectory() as scratch:
            told = {name: os.path.join(scratch, name) for name in ("stdout", "stderr")}
            asked = {"code": code, "arguments": arguments, "folder": str(folder), "environment": dict(environment), **told}
            host = self._started()
            assert host.stdin is not None
            assert host.stdout is not None
            host.stdin.write(json.dumps(asked) + "\n")
            host.stdin.flush()
            status = host.stdout.readline()
            assert status, "the process that programs are forked from has ended"
            said = {name: Path(path).read_text() if os.path.exists(path) else "" for name, path in told.items()}
        return subprocess.CompletedProcess([code, *arguments], int(status), said["stdout"], said["stderr"])

    def _started(self) -> subprocess.Popen[str]:
        if self._host is None:
            foreign = ("MLFLOW_", "DATABRICKS_", "SMALTI_", "OPENAI_")
            clean = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
            clean |= {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-W", "ignore", "-c", _HOST]
            self._host = subprocess.Popen(command, env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self._host

    def close(self) -> None:
        if self._host is not None:
            assert self._host.stdin is not None
            assert self._host.stdout is not None
            self._host.stdin.close()
            self._host.wait(10)
            self._host.stdout.close()
