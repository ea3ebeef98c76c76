"""A language model's own server in a process, reached over its OpenAI API: started, watched, started again, asked.

Such a server may answer health checks while its engine is dead, so it is watched by its counters: no progress while answers
are awaited means that it hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from governance.call import Call, CallError, Event, limit_exceeded, unavailable
from serving.engines.external import ExternalChat, Timeouts, Upstream
from serving.engines.http1 import Disconnected
from serving.engines.ports import free_port
from serving.engines.supervised import LoadFailed, Supervised, opened_log, tail

if TYPE_CHECKING:
    import httpx

_MAX_METRICS = 4 << 20
_KEPT = ("PATH", "HOME", "LANG", "LC_", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_", "HF_", "CUDA_", "NCCL_", "OMP_")
# What starts the server asks the kernel to end it when Smalti's dies, and ends at once where that has happened already.
_LAUNCH = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 15)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


class HttpProcess(Supervised):
    """A model behind a server of its own; `engine` answers chats, completions and Responses.

    Parameters
    ----------
    path: the model.
    log: file that gets what the server prints.
    environment: variables it is given besides a few of this process's.
    max_open: requests that may be open; one more is refused at once with 429.
    stall_timeout: seconds without any progress, while answers are awaited, after which it is started anew.
    load_timeout: seconds it may take to start.
    shutdown_timeout: seconds it may take to end its answers when it is stopped.
    """

    version: str | None = None
    program: ClassVar[str]
    """What runs, for messages."""
    passed: ClassVar[Mapping[str, str]]
    """Its metrics that are passed on, and their kinds."""
    progress: ClassVar[Collection[str]]
    """Counters of which one moves while it works."""

    def __init__(
        self,
        path: str,
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        max_open: int = 256,
        stall_timeout: float = 8,
        load_timeout: float = 1800,
        shutdown_timeout: float = 20,
    ) -> None:
        super().__init__(f"{self.program} {path}", log)
        self.path = path
        self.metrics: Mapping[str, float] = {}
        """The latest values of `passed`."""
        self._given = dict(environment or {})
        self._max_open, self._stall = max_open, stall_timeout
        self._load_timeout, self._shutdown_timeout = load_timeout, shutdown_timeout
        self._key = secrets.token_urlsafe(24)
        self._base = ""
        self._chats: dict[tuple[str, str], ExternalChat] = {}
        self._open = 0
        self._awaited = 0
        self._progress = 0.0

    @abstractmethod
    def _command(self, port: int) -> list[str]:
        """What serves the model on this port of 127.0.0.1 under the name `base`. Blocking; raises `LoadFailed`."""

    @abstractmethod
    def _environment(self) -> dict[str, str]:
        """Variables that it needs, its key among them."""

    async def _prepare(self) -> None:
        """What is asked of it before it answers. Raises `LoadFailed`."""

    # --- an entity ---

    @property
    def memory(self) -> int:
        return 0

    @property
    def open_calls(self) -> int:
        return self._open

    @property
    def adapters(self) -> list[str]:
        return []

    def engine(self, call: Call) -> AsyncIterator[Event]:
        return self.answer(call)

    async def answer(self, call: Call, adapter: str | None = None) -> AsyncIterator[Event]:
        """Answer a call with this adapter, or with none."""
        for last in (False, True):
            await self._up()
            if self._open >= self._max_open:
                raise limit_exceeded(f"The model has {self._max_open} requests open already. Wait a second.", 1)
            task = "llm/v1/completions" if call.payload.get("raw") else "llm/v1/chat"
            self._open += 1
            begun = False
            try:
                async with aclosing(self._chat(adapter or "base", task).run(call)) as events:  # type: ignore[type-var]
                    async for event in self._awaiting(events):
                        begun = True
                        yield event
                return
            except CallError as error:
                if last or begun or not isinstance(error.__cause__, Disconnected):
                    raise
                starts = self.starts  # nobody was there to answer it: its process has just ended, which is noticed in a moment
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2):
                        while self._ready.is_set() and self.starts == starts:  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
            finally:
                self._open -= 1

    async def _awaiting(self, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
        """The events; the watchdog knows when one is awaited, which a client that reads slowly does not do."""
        while True:
            if not self._awaited:
                self._progress = time.monotonic()
            self._awaited += 1
            try:
                event = await anext(events, None)
            finally:
                self._awaited -= 1
                self._progress = time.monotonic()
            if event is None:
                return
            yield event

    def _chat(self, model: str, task: str) -> ExternalChat:
        chat = self._chats.get((model, task))
        if chat is None:
            upstream = Upstream(self._base, model, self._key, "vllm", "the endpoint", task=task)
            timeouts = Timeouts(first_byte=600, between=120)
            chat = self._chats[model, task] = ExternalChat(upstream, timeouts=timeouts, own=True)
        return chat

    async def _up(self) -> None:
        if self._ready.is_set():
            return
        if self._supervisor is None or self._state == "FAILED":
            raise unavailable(f"The model is not served: {self._message}")
        try:
            await asyncio.wait_for(self._ready.wait(), min(self._load_timeout, 120))
        except TimeoutError:
            raise unavailable(f"The model is not served yet: {self._message}", retry_after=5) from None

    def _client(self, timeout: float) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(timeout=timeout, trust_env=False, headers={"authorization": f"Bearer {self._key}"})

    # --- the process ---

    async def _run(self) -> None:
        """Start the server and stay with it until it ends, or hangs."""
        process = await self._spawn()
        ended = asyncio.create_task(process.wait())
        try:
            await self._until_healthy(ended)
            await self._prepare()
            self._come_up()
            hangs = await self._watch(ended)
            what = "made no progress" if hangs else f"ended with {process.returncode}"
            self._tell("RECOVERING", f"{self.program} {what}; it is being started again.")
            if hangs:
                _signal(process, signal.SIGKILL)
        finally:
            self._ready.clear()
            self.metrics = {}
            chats, self._chats = self._chats, {}
            _signal(process, signal.SIGTERM)
            await asyncio.wait([ended], timeout=self._shutdown_timeout + 5)
            _signal(process, signal.SIGKILL)  # its whole group: an engine may be a child of its server
            await ended
            for chat in chats.values():
                await chat.aclose()

    async def _spawn(self) -> asyncio.subprocess.Process:
        port = free_port()
        self._base = f"http://127.0.0.1:{port}/v1"
        command = await asyncio.to_thread(self._command, port)
        environment = {key: value for key, value in os.environ.items() if key.startswith(_KEPT)}
        environment |= {"DO_NOT_TRACK": "1", **self._environment(), **self._given}
        self.starts += 1
        self._note(f"start {self.starts}: {' '.join(command)}")
        async with opened_log(self.log) as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _LAUNCH, str(os.getpid()), *command,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.log.parent,
                start_new_session=True,
            )  # fmt: skip
        self.pid = process.pid
        return process

    async def _until_healthy(self, ended: asyncio.Task[int]) -> None:
        import httpx

        deadline = time.monotonic() + self._load_timeout
        health = self._base.removesuffix("/v1") + "/health"
        async with self._client(5) as client:
            while time.monotonic() < deadline:
                if ended.done():
                    last = " ".join(tail(self.log, 600).split())[-400:]
                    raise LoadFailed(f"{self.program} ended with {ended.result()} while it started. Its last words: {last}")
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(health)).status_code == 200:
                        return
                await asyncio.wait([ended], timeout=0.2)
        raise LoadFailed(f"{self.program} was not ready within {self._load_timeout:g} s. Look at its log.")

    async def _watch(self, ended: asyncio.Task[int]) -> bool:
        """Until the process ends (False), or answers are awaited and nothing moves for too long (True)."""
        counted = -1.0
        async with self._client(2) as client:
            while not ended.done():
                busy = self._awaited > 0
                await asyncio.wait([ended], timeout=min(1.0, self._stall / 4) if busy else 2.0)
                values = await self._measure(client)
                self.metrics = {name: values[name] for name in self.passed if name in values} or self.metrics
                total = sum(values.get(name, 0) for name in self.progress)
                if values and total != counted:
                    counted, self._progress = total, time.monotonic()
                if self._awaited and time.monotonic() - self._progress > self._stall:
                    return True
        return False

    async def _measure(self, client: httpx.AsyncClient) -> dict[str, float]:
        """The server's counts, summed over its engines; empty where it tells none."""
        import httpx

        values: dict[str, float] = {}
        try:
            response = await client.get(self._base.removesuffix("/v1") + "/metrics")
            text = response.text if response.status_code == 200 and len(response.content) < _MAX_METRICS else ""
        except httpx.HTTPError:
            return values
        for line in text.splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            if name in self.passed or name in self.progress:
                with contextlib.suppress(ValueError):
                    values[name] = values.get(name, 0) + float(line.rpartition(" ")[2])
        return values


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
