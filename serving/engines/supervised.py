"""A process that serves a model, watched: started, started again with growing pauses where it ends, drained and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

log = logging.getLogger("smalti")

KEPT_LOG = 4 << 20
"""Bytes of a model's log beyond which all but the last half of them is dropped."""
_LOG_PAUSE = 1.0
"""Seconds between two looks at how long the log has grown."""
_MAX_PAUSE = 30.0


class LoadFailed(Exception):
    """A model cannot be loaded; the message says why."""


class Supervised(ABC):
    """What runs a process and stays with it; how it is run, `_run` says.

    Parameters
    ----------
    name: of the task that watches.
    log: file that gets what the process prints.
    """

    def __init__(self, name: str, log: Path) -> None:
        self.log = log
        self.starts = 0
        self.pid: int | None = None
        self._name = name
        self._state, self._message = "CREATING", "The model is being loaded."
        self._build_log = ""
        self._ready = asyncio.Event()
        self._wanted = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None

    @property
    def state(self) -> tuple[str, str]:
        """`CREATING`, `READY`, `RECOVERING` or `FAILED`, and why."""
        return self._state, self._message

    @property
    def running(self) -> bool:
        """Whether it can take a call at once."""
        return self._ready.is_set()

    @property
    @abstractmethod
    def open_calls(self) -> int:
        """Calls that are being answered, and those that wait for the process to come up."""

    @abstractmethod
    async def _run(self) -> None:
        """Start the process, call `_come_up` when it is ready, and stay with it until it ends. Raises `LoadFailed`, `OSError`."""

    async def start(self) -> None:
        """Load the model. Raises `LoadFailed`."""
        self._first = asyncio.get_running_loop().create_future()
        self._wanted.set()
        self._supervisor = asyncio.create_task(self._supervise(self._first), name=self._name)
        try:
            await self._first
        except asyncio.CancelledError:
            await self.stop(0)
            raise

    async def stop(self, drain: float = 20) -> None:
        """End the process once its calls are answered, or after `drain` seconds."""
        deadline = time.monotonic() + drain
        while self.open_calls and time.monotonic() < deadline:  # noqa: ASYNC110 (rare, and short)
            await asyncio.sleep(0.02)
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait([supervisor])
        self._ready.clear()

    def logs(self) -> str:
        """The last of what the process printed."""
        return tail(self.log, 100_000)

    def build_logs(self) -> str:
        """What happened to the process."""
        return self._build_log

    async def _supervise(self, first: asyncio.Future[None]) -> None:
        short = asyncio.create_task(keep_short(self.log), name=f"{self._name}: log")
        try:
            await self._stay(first)
        finally:
            short.cancel()

    async def _stay(self, first: asyncio.Future[None]) -> None:
        pause = 0.2
        while True:
            await self._wanted.wait()
            began = time.monotonic()
            try:
                await self._run()
            except Exception as error:
                if not isinstance(error, LoadFailed | OSError):  # nobody else would hear of it
                    log.exception("%s cannot be started", self._name)
                failed = error if isinstance(error, LoadFailed) else LoadFailed(f"The process cannot be started: {error}")
                self._tell("FAILED", str(failed))
                if not first.done():
                    first.set_exception(failed)
                    return
                self._state = "RECOVERING"
            except asyncio.CancelledError:
                if not first.done():
                    first.cancel()
                raise
            if not self._wanted.is_set():
                continue
            pause = 0.2 if time.monotonic() - began > 60 else min(pause * 2, _MAX_PAUSE)
            await asyncio.sleep(pause)

    def _come_up(self, line: str = "") -> None:
        """The process takes calls from now on."""
        self._state, self._message = "READY", ""
        self._note(f"ready after start {self.starts}{line}")
        self._ready.set()
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def _tell(self, state: str, message: str) -> None:
        self._state, self._message = state, message
        self._note(message)

    def _note(self, line: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._build_log = f"{self._build_log[-20_000:]}{stamp} {line}\n"


class Runs(Protocol):
    """What runs a model: one process, or several."""

    @property
    def memory(self) -> int: ...

    @property
    def state(self) -> tuple[str, str]: ...

    async def start(self) -> None: ...

    async def stop(self, drain: float = 20) -> None: ...

    def logs(self) -> str: ...

    def build_logs(self) -> str: ...


P = TypeVar("P", bound=Runs)


class Entrusted(Generic[P]):
    """A model that leaves its life to the process that runs it."""

    def __init__(self, process: P) -> None:
        self.process = process

    @property
    def memory(self) -> int:
        return self.process.memory

    @property
    def state(self) -> tuple[str, str]:
        return self.process.state

    async def start(self) -> None:
        await self.process.start()

    async def stop(self, drain: float = 20) -> None:
        await self.process.stop(drain)

    def logs(self) -> str:
        return self.process.logs()

    def build_logs(self) -> str:
        return self.process.build_logs()


def open_log(path: Path) -> Any:
    """The log to append to, in a folder that is made; it is cut where it has grown. Blocking."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    cut(path)
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def cut(path: Path) -> None:
    """Drop the older part of a log that has grown; who has it open to append goes on at its new end. Blocking."""
    with (
        contextlib.suppress(FileNotFoundError),
        open(path, "a+b", opener=lambda name, flags: os.open(name, flags & ~os.O_CREAT)) as file,
    ):
        if (size := os.fstat(file.fileno()).st_size) > KEPT_LOG:
            file.seek(size - KEPT_LOG // 2)
            kept = file.read(KEPT_LOG // 2)
            file.truncate(0)
            file.write(kept)  # appended: what is printed meanwhile may stand before it, and is not lost


async def keep_short(path: Path) -> None:
    """Cut a log again and again: a model that prints without end must not fill the disk. Until cancelled."""
    while True:
        await asyncio.sleep(_LOG_PAUSE)
        try:
            if os.stat(path).st_size > KEPT_LOG:
                await asyncio.to_thread(cut, path)
        except FileNotFoundError:
            continue  # it has printed nothing yet
        except OSError as error:
            log.warning("%s cannot be cut: %s", path, error)
            return


@contextlib.asynccontextmanager
async def opened_log(path: Path) -> AsyncIterator[Any]:
    """`open_log`, closed at the end of the block."""
    opening = asyncio.ensure_future(asyncio.to_thread(open_log, path))
    try:
        file = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(lambda done: done.cancelled() or done.exception() or done.result().close())
        raise
    with file:
        yield file


def tail(path: Path, size: int) -> str:
    """The last bytes of a file as text; empty where there is none. Blocking."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
