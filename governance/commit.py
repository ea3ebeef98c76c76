"""Group commit: many writers wait for one flush to the disk, instead of each for its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


class GroupCommit:
    """A thread that flushes whenever somebody waits for it. Whatever was written before `wait` is on the disk after it.

    Parameters
    ----------
    flush: blocking; what it raises, every one of those that wait for it gets.
    """

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._wanted = threading.Event()
        self._closed = self._ended = False
        self._thread = threading.Thread(target=self._run, name="smalti-commit", daemon=True)
        self._thread.start()

    async def wait(self) -> None:
        """Raises what flushing raised, and `OSError` once the thread has ended."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._ended:
                raise OSError("it is closed")
            self._waiting.append((loop, future))
        self._wanted.set()
        await future

    def close(self) -> None:
        """Flush once more for those who wait, and end the thread."""
        self._closed = True
        self._wanted.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            closed = self._closed
            with self._lock:
                batch, self._waiting, self._ended = self._waiting, [], closed
            error: Exception | None = None
            try:
                if batch:
                    self._flush()
            except Exception as trouble:
                error = trouble
            for loop, future in batch:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_settle, future, error)
            if closed:
                return


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():  # whoever waited is gone
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
