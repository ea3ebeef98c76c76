"""What the rest of Smalti knows of an MLflow tracking server, whether it is this server's own child or one elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import httpx

from governance.call import CallError, unavailable


class TrackingServer:
    """An MLflow tracking server that is asked over HTTP.

    Parameters
    ----------
    base_url: what each path begins with.
    """

    name = "the MLflow tracking server"
    kept: frozenset[tuple[str, str]] = frozenset()
    """Calls of the registry API, as `("model-versions", "create")`, that `ask` makes more of than passing them on."""

    def __init__(self, base_url: str = "http://localhost") -> None:
        self.base_url = base_url
        self.ready = asyncio.Event()
        self._up = threading.Event()
        self._client: httpx.AsyncClient | None = None

    def _options(self) -> dict[str, Any]:
        """What both clients are made with, beside the way to the server."""
        return {"base_url": self.base_url, "trust_env": False}

    def _transport(self, limits: httpx.Limits) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(limits=limits)

    @property
    def client(self) -> httpx.AsyncClient:
        """Pooled client to the server; for the event loop that called `start`."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=self._transport(httpx.Limits(max_connections=64, max_keepalive_connections=16)),
                timeout=httpx.Timeout(300, connect=5, pool=30),
                **self._options(),
            )
        return self._client

    def sync_client(self, timeout: float = 30) -> httpx.Client:
        """A client to the server for another thread; the caller closes it."""
        return httpx.Client(timeout=timeout, **self._options())

    def wait_ready(self, timeout: float) -> bool:
        """Block another thread until the server answers; False after `timeout` seconds."""
        return self._up.wait(timeout)

    def away(self) -> CallError:
        """Why nothing can be asked while it is not `ready`."""
        return unavailable("The MLflow tracking server is starting; ask again in a few seconds.", retry_after=2)

    def silent(self, error: Exception) -> CallError:
        """That a question got no answer."""
        return unavailable(f"The MLflow tracking server gave no answer ({type(error).__name__}); ask again.", retry_after=2)

    async def ask(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One call of the tracking server's API: its JSON answer; `fields` are the query of a GET, the body of others.

        Raises `CallError` with the server's own code and message; 503 while it is away.
        """
        if not self.ready.is_set():
            raise self.away()
        try:
            return self.read(await self.send(self.client.build_request(method, path, **given(method, fields))))
        except (httpx.HTTPError, ValueError) as error:
            raise self.silent(error) from error

    async def send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """Send a request that `client` built. Raises `httpx.HTTPError`."""
        return await self.client.send(request, stream=stream, follow_redirects=False)

    def read(self, answer: httpx.Response) -> dict[str, Any]:
        """The JSON of an answer. Raises `CallError` with the server's own code and message, `ValueError` where it is no JSON."""
        body = answer.json() if answer.content else {}
        if answer.is_error:
            told = body if isinstance(body, dict) else {}
            raise CallError(
                str(told.get("message") or "The tracking server refused this."),
                status=answer.status_code,
                code=str(told.get("error_code") or "INTERNAL_ERROR"),
            )
        return body

    def shown(self, body: bytes) -> bytes:
        """An answer of the registry API as callers are to see it."""
        return body

    def refused(self, status: int) -> CallError | None:
        """An answer of this status means that it is the server's own credentials that are wrong, not the caller's."""
        return None

    def deleted_runs(self, experiment: str, since_ms: int, most: int) -> list[str]:
        """Ids of the runs of an experiment that were deleted from a time on, which MLflow's own API does not tell. Blocking."""
        message = f"The MLflow server at {self.base_url} does not tell when runs were deleted: restore them one by one."
        raise CallError(message, status=400, code="FEATURE_DISABLED")

    async def start(self) -> None:
        """Begin to be there, and return at once; `ready` is set when it answers."""

    async def stop(self, timeout: float = 5) -> None:
        """End."""

    async def _close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _down(self) -> None:
        self.ready.clear()
        self._up.clear()

    def _came(self) -> None:
        self.ready.set()
        self._up.set()


def given(method: str, fields: Mapping[str, Any] | None) -> dict[str, Any]:
    """A call's fields where its method has them."""
    return {"params": dict(fields) if fields else None} if method == "GET" else {"json": dict(fields or {})}


def registry_action(path: str) -> tuple[str, str] | None:
    """Resource and action of a call of the registry API, as `("registered-models", "create")`."""
    words = path.strip("/").split("/")
    if len(words) < 5 or words[2] != "mlflow" or words[3] not in ("registered-models", "model-versions"):
        return None
    return words[3], words[4]
