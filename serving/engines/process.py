"""A served model in a process of its own, seen from the server: started, asked, watched, started again, ended.

A crash or a leak of a model never takes the server: calls that were in it fail with one clear error, or are sent once more
where that is safe, and it comes back by itself with growing pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import orjson

from governance.call import MODEL_FAILED, CallError, limit_exceeded, unavailable
from serving.engines.ended import how
from serving.engines.forks import Forked, ForkServer, Unforked
from serving.engines.held import held
from serving.engines.launch import launch, surroundings
from serving.engines.supervised import LoadFailed, Supervised, opened_log, tail
from serving.engines.wire import Wire

MAX_WAITING = 2048
"""Requests one model may have open; more are refused with 429."""
MEMORY_PAUSE = 0.5
"""Seconds between two looks at how much memory a model holds."""
TURN = 20.0
"""Seconds after which a load that goes on no longer keeps the next one waiting: one that hangs must not hold up all others."""
CHILDREN_EVERY = 10
"""Looks of which one counts its children too: to find them, all processes of the machine are gone through."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MORE = "Give it more by 'memory_limit_mb' of its entity, or serve a smaller one."

Note = Callable[[str], None]
Process = asyncio.subprocess.Process | Forked
Interpreter = Callable[[Note], Awaitable[str]]
"""Finds the Python that a model runs in; raises `LoadFailed` where there is none."""


class ModelProcess(Supervised):
    """One model's process.

    Parameters
    ----------
    path: folder of the MLflow model.
    log: file that gets what the model prints.
    environment: variables the model is given besides a few of the server's.
    secrets: values among them that nobody is told: stars in what the model fails with and prints.
    load_timeout: seconds until a load that does not end is given up.
    call_timeout: seconds until a call that gives nothing is given up; the process is then started anew.
    idle_timeout: seconds without a call after which the process ends until the next call; None: never.
    loads: bounds how many models are loaded at the same time; one that takes longer than `TURN` no longer counts.
    memory_limit: bytes of memory the process and its children may hold; it is ended past that. None: no limit.
    forks: what forks the process, where it runs in the server's own Python and that can be.
    module: what the process runs; `serving.engines.worker` loads MLflow models.
    spec: what it is told of the model besides its path.
    max_waiting: requests that may be open; one more is refused at once.
    interpreter: finds the Python the model runs in, and may take its time to make it; told lines for the build log.
    """

    def __init__(
        self,
        path: Path,
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        secrets: Collection[str] = (),
        load_timeout: float = 600,
        call_timeout: float = 120,
        idle_timeout: float | None = None,
        loads: asyncio.Semaphore | None = None,
        memory_limit: int | None = None,
        interpreter: Interpreter | None = None,
        forks: ForkServer | None = None,
        module: str = "serving.engines.worker",
        spec: Mapping[str, Any] | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        super().__init__(f"model {path.name}", log)
        self.path, self.memory_limit = path, memory_limit
        self.spec = dict(spec or {})
        self._module, self._max_waiting = module, max_waiting
        self.info: Mapping[str, Any] = {}
        """What the loaded model tells of itself: `streams`, `rowwise`, `loader`."""
        self._given = dict(environment or {})
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)
        self._load_timeout, self._call_timeout, self._idle_timeout = load_timeout, call_timeout, idle_timeout
        self._loads = loads or asyncio.Semaphore(1)
        self._interpreter, self._forks = interpreter, forks
        self._queued = 0
        self._killed: str | None = None
        self._wire: Wire | None = None
        self._used = time.monotonic()

    @property
    def open_calls(self) -> int:
        """Calls that are being answered, and those that wait for the process to come up."""
        return self._queued + (len(self._wire.waiting) if self._wire else 0)

    # --- asking ---

    async def ask(self, kind: str, body: Any, *, again: bool = False) -> Any:
        """One answer; `again` sends the request once more where the process ends during it. Raises `CallError`."""
        for attempt in (1, 2):
            wire = self._wire
            if wire is None or len(wire.waiting) + self._queued >= self._max_waiting:
                wire = await self._up()
            self._used = time.monotonic()
            identifier, answer = wire.ask(kind, body)
            late = wire.loop.call_later(self._call_timeout, _expire, answer)
            left = False
            try:
                kind_of, given = await answer
            except asyncio.CancelledError:
                left = True
                raise
            except TimeoutError:
                self._kill("It gave no answer in time and was started anew.")
                raise unavailable(
                    f"The model gave no answer in {self._call_timeout:g} s. Send less at once.", status=504
                ) from None
            finally:
                late.cancel()
                wire.close(identifier)
                if left:
                    self._watch_left(wire, identifier, late.when())
            if kind_of != "gone":
                return self._checked(kind_of, given)
            if not again or attempt == 2:
                break
        why = self._killed or "The model's process ended while it answered."
        raise unavailable(f"{why} Send the request again.", retry_after=1)

    def _watch_left(self, wire: Wire, identifier: int, deadline: float) -> None:
        """A call whose caller has left tells whether the model hangs as well as any: callers may all be less patient."""
        if wire.gone.is_set():
            return

        def expire() -> None:
            wire.close(identifier)
            if wire is self._wire:
                self._kill("It gave no answer in time and was started anew.")

        late = wire.loop.call_at(deadline, expire)

        def answered(given: tuple[str, Any]) -> None:
            late.cancel()
            wire.close(identifier)

        wire.waiting[identifier] = answered

    async def stream(self, body: Any, *, kind: str = "stream") -> AsyncGenerator[Any, None]:
        """What a model gives one after the other; a chat model that does not stream gives its whole answer, and one of rows
        (`chunks`) refuses. Raises `CallError`."""
        wire = await self._up()
        identifier, mailbox = wire.open(kind, body)
        try:
            while True:
                try:
                    waits = mailbox.empty()
                    told, answer = await asyncio.wait_for(mailbox.get(), self._call_timeout) if waits else mailbox.get_nowait()
                except TimeoutError:
                    raise unavailable(f"The model gave nothing for {self._call_timeout:g} s.", status=504) from None
                if told == "end":
                    return
                if told == "gone":
                    raise unavailable(
                        "The model's process ended in the middle of its answer. Send the request again.", retry_after=1
                    )
                yield self._checked(told, answer)
                if told == "result":
                    return
        finally:
            wire.close(identifier, cancel=True)

    def _checked(self, kind: str, answer: Any) -> Any:
        if kind == "error":
            status = answer["status"]
            code = "BAD_REQUEST" if status == 400 else "INTERNAL_ERROR"
            said = self._starred(answer["message"])
            message = f"{MODEL_FAILED}: {said}" if answer.get("failed") else said
            raise CallError(message, status=status, code=code, param=answer.get("param"))
        return answer

    def _starred(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def logs(self) -> str:
        """The last of what the process printed, without its secrets."""
        return self._starred(super().logs())

    async def _up(self) -> Wire:
        """The connection to the process, waiting for one that is coming up."""
        self._used = time.monotonic()
        if self.open_calls >= self._max_waiting:
            raise limit_exceeded(f"The model has {self._max_waiting} requests open already. Wait a second.", 1)
        if self._wire is None:
            self._queued += 1
            try:
                async with asyncio.timeout(min(self._load_timeout, self._call_timeout)):
                    while self._wire is None:
                        if self._supervisor is None or self._state == "FAILED":
                            raise unavailable(f"The model is not served: {self._message}")
                        self._wanted.set()
                        await self._ready.wait()
            except TimeoutError:
                raise unavailable("The model is still being loaded. Send the request again.", retry_after=5) from None
            finally:
                self._queued -= 1
        return self._wire

    # --- the process ---

    async def _run(self) -> None:
        """Start the process and stay with it until it ends."""
        self._killed = None
        python = sys.executable if self._interpreter is None else await self._interpreter(self._note)
        async with self._turn():
            process, wire, ours = await self._spawn(python)
            watch = asyncio.create_task(self._watch_memory(wire))
            try:
                await self._load(wire, process)
            except BaseException:
                watch.cancel()
                await _end(process, ours)
                raise
        try:
            self._wire, self._used = wire, time.monotonic()
            wire.on_lost = self._lost
            self._come_up(f": {orjson.dumps(self.info).decode()}")
            if await self._until_ended(wire):
                ending, advice = how(await _status(process))
                why = self._killed or f"The model's process ended{f' ({ending})' if ending else ''}."
                self._tell("RECOVERING", f"{why} It is being started again.{f' {advice}' if advice and not self._killed else ''}")
            else:
                self._tell("READY", "Scaled to zero; the next call starts it.")
                self._wanted.clear()
        finally:
            watch.cancel()
            self._lost()
            await _end(process, ours)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        """One of the few loads at a time, for as long as a load takes that gets somewhere."""
        await self._loads.acquire()
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._loads.release()

        late = asyncio.get_running_loop().call_later(TURN, give_back)
        try:
            yield
        finally:
            late.cancel()
            give_back()

    def _lost(self) -> None:
        """Whoever asks from now on waits for the next process."""
        self._ready.clear()
        self._wire = None

    async def _watch_memory(self, wire: Wire) -> None:
        """End the process once it holds more memory than it may."""
        limit, look = self.memory_limit, 0
        while limit is not None and not wire.gone.is_set():
            size = await asyncio.to_thread(held, self.pid, children=look % CHILDREN_EVERY == 0)
            look += 1
            if size > limit:
                self._kill(
                    f"The model held {size >> 20} MB of memory, more than its limit of {limit >> 20} MB, and was ended. {_MORE}"
                )
                return
            await asyncio.sleep(MEMORY_PAUSE)

    async def _until_ended(self, wire: Wire) -> bool:
        """True when the process ended by itself, False when it has been idle for long enough."""
        if self._idle_timeout is None or wire.gone.is_set():
            await wire.gone.wait()
            return True
        while True:
            rest = self._used + self._idle_timeout - time.monotonic()
            if rest <= 0 and not self.open_calls:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wire.gone.wait(), max(rest, 0.05))
                return True

    async def _spawn(self, python: str) -> tuple[Process, Wire, asyncio.BaseTransport]:
        ours, theirs = socket.socketpair()
        self.starts += 1
        self._note(f"start {self.starts}: loading {self.path}")
        try:
            async with opened_log(self.log) as log:
                process = await self._forked(python, theirs, log)
                if process is None:
                    environment = await asyncio.to_thread(surroundings, python, self._given)
                    process = await launch(
                        python, self._module, theirs.fileno(), environment=environment, folder=self.log.parent, log=log
                    )
            self.pid = process.pid
            ours.setblocking(False)
            transport, wire = await asyncio.get_running_loop().create_connection(Wire, sock=ours)
        except BaseException:
            ours.close()  # which ends the process
            raise
        finally:
            theirs.close()
        return process, wire, transport

    async def _forked(self, python: str, connection: socket.socket, log: Any) -> Forked | None:
        if self._forks is None or python != sys.executable or self._module != self._forks.module:
            return None
        try:
            return await self._forks.fork(self._given, self.log.parent, connection, log)
        except Unforked as why:
            self._note(f"it imports its packages by itself: {why}")
            return None

    async def _load(self, wire: Wire, process: Process) -> None:
        wire.write({"path": str(self.path), **self.spec})
        try:
            kind, answer = await asyncio.wait_for(wire.control.get(), self._load_timeout)
        except TimeoutError:
            raise LoadFailed(f"The model was not loaded within {self._load_timeout:g} s.") from None
        if kind == "failed":
            raise LoadFailed(self._starred(f"The model cannot be loaded: {answer['message']}"))
        if kind == "gone":
            if self._killed:
                raise LoadFailed(self._killed)
            ending, advice = how(await _status(process))
            words = _COLOURS.sub("", self._starred(tail(self.log, 300))).strip()
            ended = f"The model's process ended while it loaded the model{f' ({ending})' if ending else ''}."
            raise LoadFailed(" ".join(filter(None, (ended, advice, f"Its last words: {words}" if words else ""))))
        self.info = answer

    def _kill(self, why: str) -> None:
        self._killed = why
        if self.pid is not None:
            _kill_group(self.pid)

    @property
    def memory(self) -> int:
        """Bytes of memory the process and its children hold; 0 where that cannot be told."""
        return held(self.pid) if self._wire else 0


def _expire(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


async def _status(process: Process) -> int | None:
    """The exit status of a process that has let go of its socket; None where it does not end."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 2)
    return process.returncode


async def _end(process: Process, transport: asyncio.BaseTransport) -> None:
    transport.close()  # the process ends when its server is gone
    try:
        await asyncio.wait_for(process.wait(), 2)
    except TimeoutError:
        _kill_group(process.pid)
        await process.wait()
    else:
        _kill_group(process.pid)  # what the model started and left behind


def _kill_group(pid: int) -> None:
    """End a process that leads its own group, and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
