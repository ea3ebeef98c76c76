"""MLflow's tracking server as a child process: importing it takes seconds, and its faults must not be this server's.

It listens on a unix socket that only its owner may open; nothing reaches it but `serving.tracking.routes`, which asks for a
signed-in caller first.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import httpx

from governance.call import CallError, unavailable

logger = logging.getLogger(__name__)

_STARTED = b"ready\n"
_MAX_BACKOFF = 30.0
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHON", "LD_LIBRARY_PATH", "AWS_", "SSL_CERT_")
"""What the child may see of the environment: no key of a model provider, nothing that redirects MLflow or OpenTelemetry."""


class MlflowServer:
    """MLflow's tracking server as a supervised child process.

    It is started again, with growing pauses, whenever it ends by itself; it ends with this process, even if that is killed.

    Parameters
    ----------
    home: the state folder; holds `mlflow.db`, `mlartifacts/` and `mlflow.log`.
    backend_store_uri: SQLAlchemy URL of the tracking database; default SQLite in `home`.
    artifacts_destination: folder or URL (`s3://…`) the server keeps artifacts in; default a folder in `home`.
    """

    def __init__(self, home: Path, *, backend_store_uri: str | None = None, artifacts_destination: str | None = None) -> None:
        self.home = home.resolve()
        self.log = self.home / "mlflow.log"
        self._backend = backend_store_uri or f"sqlite:///{self.home / 'mlflow.db'}"
        self._artifacts = artifacts_destination or str(self.home / "mlartifacts")
        self.socket = _socket_path(self.home)
        self.ready = asyncio.Event()
        self.starts = 0
        """How often the child was started."""
        self.pid: int | None = None
        self._up = threading.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._client: httpx.AsyncClient | None = None

    @property
    def client(self) -> httpx.AsyncClient:
        """Pooled client to the child; for the event loop that called `start`."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(
                    uds=str(self.socket), limits=httpx.Limits(max_connections=64, max_keepalive_connections=16)
                ),
                base_url="http://localhost",
                timeout=httpx.Timeout(300, connect=5, pool=30),
                trust_env=False,
            )
        return self._client

    def sync_client(self, timeout: float = 30) -> httpx.Client:
        """A client to the child for another thread; the caller closes it."""
        transport = httpx.HTTPTransport(uds=str(self.socket))
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=timeout, trust_env=False)

    def wait_ready(self, timeout: float) -> bool:
        """Block another thread until the child answers; False after `timeout` seconds."""
        return self._up.wait(timeout)

    async def ask(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One call of the tracking server's API: its JSON answer; `fields` are the query of a GET, the body of others.

        Raises `CallError` with the server's own code and message; 503 while it starts.
        """
        if not self.ready.is_set():
            raise starting()
        given: dict[str, Any] = {"params": fields} if method == "GET" else {"json": fields or {}}
        try:
            answer = await self.client.request(method, path, **given)
            body = answer.json() if answer.content else {}
        except (httpx.HTTPError, ValueError) as error:
            raise silent(error) from error
        if answer.is_error:
            told = body if isinstance(body, dict) else {}
            raise CallError(
                str(told.get("message") or "The tracking server refused this."),
                status=answer.status_code,
                code=str(told.get("error_code") or "INTERNAL_ERROR"),
            )
        return body

    async def start(self) -> None:
        """Start the child and return at once; `ready` is set when it answers (some seconds later)."""
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise(), name="mlflow-server")

    async def stop(self, timeout: float = 5) -> None:
        """End the child; it is killed if it has not ended after `timeout` seconds."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait([supervisor])
        self._down()
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        if (process := self._process) is not None:
            await _end(process, timeout)
            self._process = None
        self.socket.unlink(missing_ok=True)

    def _down(self) -> None:
        self.ready.clear()
        self._up.clear()

    async def _supervise(self) -> None:
        pause = 1.0
        while True:
            began = time.monotonic()
            try:
                await self._run()
            except Exception as error:  # whatever it is, answers go on and the next attempt comes
                logger.warning("The MLflow tracking server could not be started: %s", error)
            else:
                logger.warning("The MLflow tracking server ended; its last words are in %s", self.log)
            finally:
                self._down()
            pause = 1.0 if time.monotonic() - began > 60 else min(pause * 2, _MAX_BACKOFF)
            await asyncio.sleep(pause)

    async def _run(self) -> None:
        """Run the child once, until it ends."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        root = str(Path(__file__).resolve().parents[2])
        environment = {key: value for key, value in os.environ.items() if key.startswith(_ENVIRONMENT)}
        environment |= {
            "PYTHONPATH": os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH")))),
            # What `mlflow server` hands to its workers (mlflow/server/constants.py).
            "_MLFLOW_SERVER_FILE_STORE": self._backend,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": self._artifacts,
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SGI_NAME": "uvicorn",
            "_MLFLOW_IN_JOB_EXECUTOR": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ENABLE_WORKSPACES": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
        with _new_log(self.log) as log:
            # Its own session: Ctrl+C in the terminal must reach it through `stop` alone.
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "serving.tracking.child", str(self.socket),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                env=environment, cwd=self.home, start_new_session=True,
            )  # fmt: skip
        self.starts, self.pid = self.starts + 1, process.pid
        assert process.stdout is not None
        try:
            if await asyncio.wait_for(process.stdout.readline(), 180) == _STARTED:
                self.ready.set()
                self._up.set()
                await process.wait()
        except TimeoutError:
            pass
        if process.returncode is None:
            await _end(process, 5)


def starting() -> CallError:
    return unavailable("The MLflow tracking server is starting; ask again in a few seconds.", retry_after=2)


def silent(error: Exception) -> CallError:
    return unavailable(f"The MLflow tracking server gave no answer ({type(error).__name__}); ask again.", retry_after=2)


def _new_log(path: Path) -> IO[bytes]:
    if path.exists():
        path.replace(path.with_name(f"{path.name}.1"))
    return open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600))


async def _end(process: asyncio.subprocess.Process, timeout: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), timeout)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _socket_path(home: Path) -> Path:
    """`home/mlflow.sock`, or, where that is longer than a unix socket's path may be, one in an own 0700 temporary folder."""
    path = home / "mlflow.sock"
    if len(os.fsencode(path)) < 100:
        return path
    folder = Path(tempfile.gettempdir()) / f"smalti-{os.getuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} is open to other users; remove it, or set SMALTI_HOME to a shorter path.")
    return folder / "mlflow.sock"
