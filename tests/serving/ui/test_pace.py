"""Many growing answers take turns, and what goes wrong in one stops no other."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from serving.ui.pace import Pace

pytestmark = pytest.mark.anyio


async def test_all_are_drawn_and_the_loop_is_free_in_between():
    pace, drawn, ticks = Pace(), [], []

    def draw(number: int) -> None:
        until = time.thread_time() + 0.001
        while time.thread_time() < until:
            pass
        drawn.append(number)

    for number in range(20):
        pace.soon(lambda number=number: draw(number))
    while len(drawn) < 20:
        ticks.append(len(drawn))
        await asyncio.sleep(0)
    assert drawn == list(range(20))
    assert max(after - before for before, after in pairwise(ticks)) < 6  # never all in one go


async def test_one_that_fails_stops_no_other(caplog):
    pace, drawn = Pace(), asyncio.Event()

    def fails() -> None:
        raise ValueError("no")

    pace.soon(fails)
    pace.soon(drawn.set)
    await asyncio.wait_for(drawn.wait(), 10)
    assert "could not be drawn" in caplog.text
