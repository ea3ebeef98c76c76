"""How a model's process is started: in an interpreter of its own, with little of the server's environment."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PASSED = (
    "PATH", "HOME", "LANG", "LC_", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHON", "LD_LIBRARY_PATH", "SSL_CERT_", "HF_HUB_",
    "OMP_", "MKL_NUM_", "OPENBLAS_NUM_",
)  # fmt: skip
"""What a model may see of the server's environment: no key of a model provider."""

_WORKER = ("worker.py", "arrays.py", "frames.py", "lacking.py", "replies.py", "rows.py", "skops.py")
"""The worker and what it imports of this project."""


def surroundings(python: str, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a model's process: a few of the server's variables and those it is given. Blocking."""
    # threads of a numeric library that wait for work give the core away: others run on this machine, the server among them
    made = {"OMP_WAIT_POLICY": "PASSIVE"}
    made |= {key: value for key, value in os.environ.items() if key.startswith(_PASSED)}
    made |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"}
    if python != sys.executable:  # what the server's Python is pointed at is not for another's
        made = {key: value for key, value in made.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    made |= given
    made["PYTHONPATH"] = os.pathsep.join(filter(None, (str(worker_root(python)), made.get("PYTHONPATH"))))
    return made


async def launch(
    python: str, module: str, descriptor: int, *more: str, environment: Mapping[str, str], folder: Path, log: Any
) -> asyncio.subprocess.Process:
    """Run a module of this project with a socket, as the leader of a process group. Raises `OSError`."""
    return await asyncio.create_subprocess_exec(
        python, "-m", module, str(descriptor), *more,
        stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
        env=environment, cwd=folder, pass_fds=[descriptor], start_new_session=True,
    )  # fmt: skip


def worker_root(python: str) -> Path:
    """What a worker imports itself from: this installation, or beside a model's own environment a copy of the worker alone, so
    that none of the server's packages are seen there. Blocking."""
    root = Path(__file__).resolve().parent.parent.parent
    if python == sys.executable:
        return root
    copy = Path(python).parent.parent / "smalti"
    for file in _WORKER:
        target = copy / "serving/engines" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((root / "serving/engines" / file).read_bytes())
    return copy
