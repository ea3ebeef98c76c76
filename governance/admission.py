"""How many calls are in the works at a time: so many run, so many more wait a while in line, and the next is told at once."""

from __future__ import annotations

import asyncio
from collections import deque

from governance.call import unavailable


class Admission:
    """Turns, first come first served. For one event loop.

    Parameters
    ----------
    limit: calls that run at a time; None for no bound.
    queue: calls that may wait for their turn.
    seconds: how long one may wait.
    """

    def __init__(self, limit: int | None = None, *, queue: int = 0, seconds: float = 5.0) -> None:
        self.limit, self.queue, self.seconds = limit, queue, seconds
        self.running = 0
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Calls in line now."""
        return len(self._line)

    async def enter(self) -> None:
        """Take a turn, which `leave` gives back. Raises `CallError` 503, at once where the line is full, else after waiting."""
        if self.limit is None or (self.running < self.limit and not self._line):
            self.running += 1
            return
        if len(self._line) >= self.queue:
            raise unavailable("the server answers as many calls as it can; try again in a moment", retry_after=1.0)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            async with asyncio.timeout(self.seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.leave()  # the turn came together with the end of waiting
            elif turn in self._line:
                self._line.remove(turn)
            if isinstance(error, TimeoutError):
                message = f"the server was busy for {self.seconds:g} s; try again in a moment"
                raise unavailable(message, retry_after=self.seconds) from None
            raise

    def leave(self) -> None:
        """The call is over: whoever waits longest goes on in its place."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
