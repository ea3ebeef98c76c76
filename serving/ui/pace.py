"""Turns at drawing: however many answers grow at once, the event loop stays free for all else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

SLICE = 0.002
"""Seconds of CPU that are drawn in one go."""
FLUSH = 0.03
"""Seconds between two drawings of a growing answer."""
REST = 1.0
"""Pause after a go, as a part of what it took: drawing takes at most half of the loop."""


class Pace:
    """Draws what is handed in, in turn, a slice at a time. Of one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._going = False

    def soon(self, draw: Callable[[], None]) -> None:
        """Call `draw` when it is its turn: before anything else happens where nobody else waits."""
        self._waiting.append(draw)
        if not self._going:
            self._going = True
            asyncio.get_running_loop().call_soon(self._go)

    def _go(self) -> None:
        began = time.thread_time()
        while self._waiting and time.thread_time() - began < SLICE:
            try:
                self._waiting.popleft()()
            except Exception:
                logger.exception("an answer could not be drawn")
        spent = time.thread_time() - began
        self._going = spent >= SLICE or bool(self._waiting)
        if self._going:
            asyncio.get_running_loop().call_later(spent * REST, self._go)


class Growing:
    """Drawings of one answer that grows: the first at once, then at most one in `FLUSH` seconds, each when it is its turn."""

    def __init__(self, pace: Pace, draw: Callable[[], None]) -> None:
        self._pace, self._draw = pace, draw
        self._last, self._asked = 0.0, False

    def changed(self) -> None:
        """Draw soon: at its next turn if nothing was drawn for a while, else when the pause is over."""
        if not self._asked:
            self._asked = True
            pause = self._last + FLUSH - time.monotonic()
            if pause <= 0:
                self._pace.soon(self._turn)
            else:
                asyncio.get_running_loop().call_later(pause, self._pace.soon, self._turn)

    def drawn(self) -> None:
        """It was drawn just now; a turn that was asked for before is not needed any more."""
        self._asked, self._last = False, time.monotonic()

    def _turn(self) -> None:
        if self._asked:
            self.drawn()
            self._draw()
