"""MLflow's tracking server and UI under Smalti's own host, behind its keys.

The server runs in a child process (importing it takes seconds) that listens on a unix socket only its owner may open, so
nothing reaches it but `router`, which asks for a signed-in caller first. Paths (https://mlflow.org/docs/latest/rest-api.html):
`/api/2.0/mlflow/…`, `/api/3.0/mlflow/…`, `/api/2.0/mlflow-artifacts/…` and `/v1/traces` are passed as they are;
`/mlflow/…` without its prefix: the page there addresses everything relatively.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlsplit

import httpx
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from governance.call import Caller, CallError, bad_request, forbidden, not_found, unavailable

logger = logging.getLogger(__name__)

Authorize = Callable[[Request], Awaitable[Caller] | Caller]

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
        root = str(Path(__file__).resolve().parent.parent)
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
                sys.executable, "-m", "serving.mlflow_child", str(self.socket),
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


# -- the way to it ----------------------------------------------------------------------------------------------------

_HOP_BY_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"} | {
    "transfer-encoding", "upgrade", "host", "expect",
}  # fmt: skip
_NOT_SENT = _HOP_BY_HOP | {"authorization", "cookie", "origin", "referer", "forwarded"}
_NOT_RETURNED = _HOP_BY_HOP | {"set-cookie", "server", "date"}
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_RESOURCES = {
    "artifacts", "datasets", "experiments", "get-online-trace-details", "get-trace-artifact", "label-schemas", "logged-models",
    "metrics", "model-versions", "registered-models", "review-queues", "runs", "scorers", "server-info", "traces",
    "ui-telemetry", "unified-traces", "upload-artifact",
}  # fmt: skip
"""The first word after `…/mlflow/`. MLflow's own gateway, assistant, jobs, webhooks and MCP registry run code, hold keys or call
out on behalf of whoever asks: they stay shut, as does whatever a later release adds."""
MAX_BODY = 128 * 2**20
"""Bytes a request may have, artifacts excepted: MLflow keeps others in memory."""


def router(server: MlflowServer, authorize: Authorize, *, sign_in: str | None = None) -> APIRouter:
    """Routes to the tracking server and its UI, for `app.include_router`.

    Parameters
    ----------
    server: what answers.
    authorize: gives the signed-in caller from a request's key or session cookie, or raises `CallError`.
    sign_in: path of the sign-in page; a browser without a session is sent there with `?next=…`.
    """

    async def api(request: Request) -> Response:
        return await _answer(server, authorize, request, _path(request))

    async def ui(request: Request) -> Response:
        try:
            return await _answer(server, authorize, request, _path(request).removeprefix("/mlflow"), ui=True)
        except CallError as error:
            if error.status == 401 and sign_in and request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return RedirectResponse(f"{sign_in}?next={quote(request.url.path)}", 303)
            raise

    def told(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except CallError as error:
                headers = {} if error.retry_after is None else {"retry-after": str(max(1, round(error.retry_after)))}
                body = {"error_code": error.code, "message": error.message}
                return JSONResponse(body, status_code=error.status, headers=headers)

        return answer

    async def to_ui(request: Request) -> Response:
        return RedirectResponse("/mlflow/", 307)

    routes = APIRouter()
    for path in ("/api/2.0/mlflow", "/api/3.0/mlflow", "/api/2.0/mlflow-artifacts"):
        routes.add_route(path + "/{path:path}", told(api), methods=_METHODS, include_in_schema=False)
    routes.add_route("/v1/traces", told(api), methods=["POST"], include_in_schema=False)
    routes.add_route("/mlflow", to_ui, methods=["GET"], include_in_schema=False)
    routes.add_route("/mlflow/{path:path}", told(ui), methods=_METHODS, include_in_schema=False)
    return routes


def _path(request: Request) -> str:
    """The request's path below the mount point, decoded."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


async def _answer(server: MlflowServer, authorize: Authorize, request: Request, path: str, *, ui: bool = False) -> Response:
    caller = authorize(request)
    if not isinstance(caller, Caller):
        caller = await caller
    if request.method not in ("GET", "HEAD", "OPTIONS") and "authorization" not in request.headers:
        _same_origin(request)
    artifact = _admit(request, path, ui)
    if not server.ready.is_set():
        raise unavailable("The MLflow tracking server is starting; ask again in a few seconds.", retry_after=2)
    headers = [(k, v) for k, v in request.headers.items() if k not in _NOT_SENT and not k.startswith("x-forwarded")]
    has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
    content: AsyncIterator[bytes] | bytes | None = _body(request, None if artifact else MAX_BODY) if has_body else None
    if content is not None and path.endswith("/mlflow/experiments/create"):
        content = _new_experiment(b"".join([chunk async for chunk in content]), caller)
        headers = [(k, v) for k, v in headers if k not in ("content-length", "content-encoding")]
    url = httpx.URL(scheme="http", host="localhost", path=path, query=request.scope.get("query_string", b""))
    try:
        onward = server.client.build_request(request.method, url, headers=headers, content=content)
        upstream = await server.client.send(onward, stream=True, follow_redirects=False)
    except ClientDisconnect:
        return Response(status_code=499)
    except httpx.HTTPError as error:
        raise unavailable(
            f"The MLflow tracking server gave no answer ({type(error).__name__}); ask again.", retry_after=2
        ) from error
    response = StreamingResponse(_relay(upstream), upstream.status_code)
    response.raw_headers = [(k.lower(), v) for k, v in upstream.headers.raw if k.lower().decode("latin-1") not in _NOT_RETURNED]
    if location := upstream.headers.get("location"):
        parts = urlsplit(location)
        response.headers["location"] = ("/mlflow" if ui else "") + parts.path + (f"?{parts.query}" if parts.query else "")
    if artifact:
        # What people upload is shown on this host: it must not run as a page of it.
        response.headers["content-security-policy"] = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return response


def _admit(request: Request, path: str, ui: bool) -> bool:
    """Refuse what is not the tracking server's business; True where an artifact is moved."""
    if path == "/v1/traces":
        return False
    words = path.strip("/").split("/")
    if ".." in words or "\\" in path:
        raise bad_request("The path must not contain '..'.")
    if words[0] in ("api", "ajax-api") and len(words) > 3:
        if words[2] == "mlflow-artifacts":
            return True
        if words[2] == "mlflow" and words[3] in _RESOURCES and words[-1] != "invoke":
            return "artifact" in path
    elif ui and (words[0] in ("", "static-files", "graphql", "version", "health") or path.endswith("/get-artifact")):
        return "artifact" in path
    raise not_found(f"{path} is not served here: of MLflow's server there are tracking, registry, traces and artifacts.")


def _new_experiment(body: bytes, caller: Caller) -> bytes:
    """A folder of the server's own as an experiment's artifact location would let its files be read as artifacts."""
    try:
        fields = json.loads(body)
        if isinstance(fields, str):  # old clients encode twice
            fields = json.loads(fields)
    except ValueError as error:
        raise bad_request("The body must be a JSON object with the experiment's name.") from error
    if not isinstance(fields, dict):
        raise bad_request("The body must be a JSON object with the experiment's name.")
    if not caller.admin and (fields.get("artifact_location") or fields.get("artifactLocation")):
        raise forbidden("Only an admin may choose an experiment's artifact_location; leave it out.")
    return json.dumps(fields).encode()


def _same_origin(request: Request) -> None:
    """A write that came with a session cookie must come from a page of this host."""
    headers = request.headers
    origin = headers.get("origin") or headers.get("referer")
    if not (urlsplit(origin).netloc == headers.get("host") if origin else headers.get("sec-fetch-site") == "same-origin"):
        raise forbidden("A write without an Authorization header must come from a page of this host. Send a key as bearer token.")


async def _body(request: Request, limit: int | None) -> AsyncIterator[bytes]:
    message = f"The request is larger than the {(limit or 0) >> 20} MB that are taken here; upload large data as an artifact."
    if limit is not None and int(request.headers.get("content-length") or 0) > limit:
        raise CallError(message, status=413, code="BAD_REQUEST")
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if limit is not None and size > limit:
            raise CallError(message, status=413, code="BAD_REQUEST")
        yield chunk


async def _relay(upstream: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in upstream.aiter_raw():
            yield chunk
    finally:
        await upstream.aclose()
