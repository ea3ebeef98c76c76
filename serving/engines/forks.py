"""Models' processes forked from one that has imported what they all need, seen from the server: a start takes no import.

What cannot be forked is started as a process of its own, as everywhere but on Linux.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from serving.engines.forkserver import ALONE, LARGEST
from serving.engines.launch import launch, surroundings
from serving.engines.supervised import opened_log

START_SECONDS = 120.0
"""Until a fork server that does not come up is given up."""
_EARLY = (
    "PYTHON", "VIRTUAL_ENV", "LANG", "LC_", "LD_", "GLIBC_", "MALLOC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_",
    "NPY_", "NUMPY_", "ARROW_", "JE_ARROW_", "SKLEARN_", "SCIPY_", "MLFLOW_", "PYDANTIC_",
)  # fmt: skip
"""Variables that are read when something is imported: a process that is given one imports for itself."""


class Unforked(Exception):
    """A process cannot be forked; the message says why."""


class Forked:
    """A forked process, with what is used of `asyncio.subprocess.Process`."""

    def __init__(self, server: ForkServer, pid: int, watch: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server, self._watch = server, watch
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(watch, self._ended)

    def _ended(self) -> None:
        self._loop.remove_reader(self._watch)
        os.close(self._watch)
        self._reaping = self._loop.create_task(self._reap())

    async def _reap(self) -> None:
        try:
            with contextlib.suppress(Unforked):  # the fork server is gone: the system takes care of it
                self.returncode = (await self._server.ask({"reap": self.pid})).get("status")
        finally:
            self._over.set()

    async def wait(self) -> None:
        """Until it has ended and its number is free."""
        await self._over.wait()


class ForkServer:
    """The process that forks. It is started when it is first needed, and again where it has ended. For one event loop.

    Parameters
    ----------
    log: file that gets what it prints.
    module: what its forks run (`serving.engines.forkserver`).
    """

    def __init__(self, log: Path, *, module: str = "serving.engines.worker") -> None:
        self.module = module
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._answers: deque[asyncio.Future[tuple[dict[str, Any], list[int]]]] = deque()
        self._starting: asyncio.Task[None] | None = None
        self._never = None if sys.platform == "linux" else "only Linux has what it takes"

    @property
    def pid(self) -> int | None:
        """Its process, where it runs."""
        return self._process.pid if self._socket is not None and self._process is not None else None

    async def fork(self, environment: Mapping[str, str], folder: Path, connection: socket.socket, log: Any) -> Forked:
        """A process that runs the module's `main` with `connection`, which is the caller's to close. Raises `Unforked`."""
        early = [name for name in environment if name.startswith(_EARLY) and name != "OMP_NUM_THREADS"]
        if early:
            raise Unforked(f"{early[0]} is read when packages are imported")
        await self._up()
        asked = {"fork": {"environment": dict(environment), "folder": str(folder)}}
        answer = self._ask(asked, [connection.fileno(), log.fileno()])
        try:
            given, descriptors = await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(self._unwanted)
            raise
        return Forked(self, given["pid"], descriptors[0])

    def _unwanted(self, answer: asyncio.Future[tuple[dict[str, Any], list[int]]]) -> None:
        """A process that nobody waits for any more; it ends by itself, as its socket has ended."""
        if not answer.cancelled() and answer.exception() is None:
            given, descriptors = answer.result()
            Forked(self, given["pid"], descriptors[0])  # which the loop keeps until it has ended

    async def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One answer. Raises `Unforked`."""
        return (await asyncio.shield(self._ask(message, [])))[0]

    def _ask(self, message: Mapping[str, Any], descriptors: list[int]) -> asyncio.Future[tuple[dict[str, Any], list[int]]]:
        answer: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        if self._socket is None:
            raise Unforked("the process that forks is gone")
        raw = orjson.dumps(message)
        if len(raw) > LARGEST:
            raise Unforked("its environment is too large")
        try:
            socket.send_fds(self._socket, [raw], descriptors)
        except OSError as error:
            raise Unforked(f"the process that forks cannot be reached: {error}") from None
        self._answers.append(answer)
        return answer

    async def _up(self) -> None:
        """The process, started where it does not run. Raises `Unforked`."""
        if self._never is not None:
            raise Unforked(self._never)
        if self._starting is None or (self._socket is None and self._starting.done()):
            self._starting = asyncio.create_task(self._start(), name="fork server")
            self._starting.add_done_callback(lambda done: done.cancelled() or done.exception())  # told to all who wait
        if not self._starting.done():
            await asyncio.shield(self._starting)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[tuple[dict[str, Any], list[int]]] = loop.create_future()
        try:
            environment = await asyncio.to_thread(surroundings, sys.executable, ALONE)
            async with opened_log(self._log) as log:
                self._process = await launch(
                    sys.executable, "serving.engines.forkserver", theirs.fileno(), self.module,
                    environment=environment, folder=self._log.parent, log=log,
                )  # fmt: skip
        except OSError as error:
            ours.close()
            raise Unforked(f"the process that forks cannot be started: {error}") from None
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket = ours
        self._answers.append(ready)
        loop.add_reader(ours, self._received, ours)
        try:
            async with asyncio.timeout(START_SECONDS):
                await ready
        except Unforked as error:
            self._never = str(error)  # it would not be otherwise the next time
            raise
        except TimeoutError:
            self._never = f"the process that forks did not come up in {START_SECONDS:g} s"
            await self._stop()
            raise Unforked(self._never) from None

    def _received(self, connection: socket.socket) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, LARGEST, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._gone()
            return
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        answer, given = self._answers.popleft(), orjson.loads(data)
        if answer.done():
            for descriptor in descriptors:
                os.close(descriptor)
        elif "refused" in given:
            answer.set_exception(Unforked(given["refused"]))
        else:
            answer.set_result((given, descriptors))

    def _gone(self) -> None:
        """It has ended, or is to: what it was asked is told so, and the next fork starts another."""
        connection, self._socket = self._socket, None
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection)
            connection.close()
        while self._answers:
            if not (answer := self._answers.popleft()).done():
                answer.set_exception(Unforked("the process that forks is gone"))
                answer.exception()  # whoever asked may be gone as well

    async def _stop(self) -> None:
        self._gone()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            await asyncio.wait_for(process.wait(), 2)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def close(self) -> None:
        """End it. What it forked lives on."""
        self._never = "the server is stopping"
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._stop()
