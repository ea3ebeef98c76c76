"""An MLflow tracking server elsewhere (`mlflow_url`), in the place of the one that this server would start: several servers on
one database then have one model registry, one set of experiments and traces, and one artifact store.

Its credentials are those that MLflow's own clients use: `user:password@` in the address, or the environment variables
MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Callers never see them, and reach it through
`serving.tracking.routes` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx

from governance.call import CallError, unavailable
from serving.tracking.base import TrackingServer, given
from serving.tracking.remote.place import Place

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

OLDEST = (3, 17)
"""MLflow that is asked here at least: what its clients in this installation send, older ones do not all understand."""
EVERY, AGAIN = 5.0, 1.0
"""Seconds between two looks whether the server answers, while it does and while it does not."""
PATIENCE = 5.0
"""Seconds that such a look may take."""
QUIET = 2.0
"""Seconds after a question without an answer in which threads are refused at once, so that many do not wait one by one."""


class Connection(TrackingServer):
    """The tracking server at a `Place`; `ready` while it answers, which is looked at again and again.

    Parameters
    ----------
    place: where it is.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place.url)
        self.place = place
        self._problem: str | None = "it was not asked yet"
        self._watching: asyncio.Task[None] | None = None
        self._quiet_until, self._last = 0.0, ""
        self._lost = asyncio.Event()

    def _options(self) -> dict[str, Any]:
        place = self.place
        auth = (place.user, place.password or "") if place.user is not None else None
        headers = {"user-agent": "smalti"} | ({"authorization": f"Bearer {place.token}"} if place.token else {})
        return {**super()._options(), "auth": auth, "headers": headers, "follow_redirects": False}

    def away(self) -> CallError:
        return unavailable(f"The MLflow server at {self.base_url} cannot be used: {self._problem}.", retry_after=2)

    def silent(self, error: Exception) -> CallError:
        return unavailable(f"The MLflow server at {self.base_url} gave no answer ({type(error).__name__}).", retry_after=2)

    def refused(self, status: int) -> CallError | None:
        return unavailable(f"The MLflow server at {self.base_url} {_REFUSES}.", retry_after=30) if status == 401 else None

    def read(self, answer: httpx.Response) -> dict[str, Any]:
        if refused := self.refused(answer.status_code):
            raise refused
        if answer.status_code in (502, 503, 504) and "json" not in answer.headers.get("content-type", ""):  # a proxy before it
            raise unavailable(f"The MLflow server at {self.base_url} answers HTTP {answer.status_code}.", retry_after=2)
        return super().read(answer)

    async def send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """As everywhere; a request that waits for a server which is found not to answer any more ends then."""
        sending = asyncio.ensure_future(super().send(request, stream=stream))
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait({sending, lost}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                return sending.result()
            raise httpx.ReadTimeout("The server does not answer any more.", request=request)
        finally:
            lost.cancel()
            if not sending.done():
                sending.cancel()
                await asyncio.wait({sending})

    def ask_now(self, method: str, path: str, fields: Mapping[str, Any] | None = None, *, timeout: float = 10) -> dict[str, Any]:
        """As `ask`, for another thread, also before `start`. After a question without an answer it is not asked for a while."""
        if time.monotonic() < self._quiet_until:
            raise unavailable(self._last, retry_after=2)
        try:
            with self.sync_client(timeout) as client:
                return self.read(client.request(method, path, **given(method, fields)))
        except (httpx.HTTPError, ValueError) as error:
            told = self.silent(error)
            self._quiet_until, self._last = time.monotonic() + QUIET, told.message
            raise told from error

    # --- whether it answers ---

    async def start(self) -> None:
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="mlflow-server")

    async def stop(self, timeout: float = 5) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        self._down()
        self._lost.set()
        await self._close()

    async def _watch(self) -> None:
        while True:
            problem = await self.look()
            if problem is not None and self.ready.is_set() and "within" in problem:  # it may be busy: once more
                problem = await self.look()
            if problem != self._problem:
                if problem is None:
                    logger.info("The MLflow server at %s answers", self.base_url)
                else:
                    logger.warning("The MLflow server at %s cannot be used: %s", self.base_url, problem)
            self._problem = problem
            if problem is None:
                self._lost.clear()
                self._came()
            else:
                self._down()
                self._lost.set()
            await asyncio.sleep(EVERY if problem is None else AGAIN)

    async def look(self) -> str | None:
        """What keeps the server from being used; None where nothing does."""
        try:
            async with asyncio.timeout(PATIENCE):
                told = await self.client.get("/version")
                if problem := _unusable(told):
                    return problem
                answer = await self.client.get("/api/2.0/mlflow/experiments/get", params={"experiment_id": "0"})
        except TimeoutError:
            return f"it gave no answer within {PATIENCE:g} seconds"
        except httpx.HTTPError as error:
            return f"it gave no answer ({type(error).__name__})"
        if answer.status_code in (401, 403):
            return _REFUSES
        with contextlib.suppress(ValueError):
            if isinstance(answer.json(), dict) and answer.status_code in (200, 404):
                return None
        return f"it answers HTTP {answer.status_code} to a question for experiments"

    async def artifacts_at(self) -> str:
        """Where it keeps artifacts, as `mlflow-artifacts:/…` where it serves them itself."""
        found = await self.client.get("/api/2.0/mlflow/experiments/get", params={"experiment_id": "0"})
        return str(found.json().get("experiment", {}).get("artifact_location", ""))


_REFUSES = (
    "refuses the credentials it is shown: set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or put user:password@ into mlflow_url"
)


def _unusable(told: httpx.Response) -> str | None:
    """What is wrong with the answer to `GET /version`."""
    if told.status_code == 401:
        return _REFUSES
    if told.status_code == 403:
        return f"it refuses this server ({told.text[:100].strip()}); see `mlflow server --allowed-hosts`"
    numbers = told.text.strip().split(".")[:2] if told.status_code == 200 else []
    if len(numbers) < 2 or not all(each.isdigit() for each in numbers):
        return f"it is no MLflow server (HTTP {told.status_code} at /version)"
    if tuple(map(int, numbers)) < OLDEST:
        return f"it is MLflow {told.text.strip()[:20]}, and at least {'.'.join(map(str, OLDEST))} is needed"
    return None
