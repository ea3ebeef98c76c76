from __future__ import annotations

import asyncio
import struct
from typing import Any

import orjson
import pytest

from serving.engines.wire import FEW, QUICK, Wire

pytestmark = pytest.mark.anyio


class Sent:
    """A transport that keeps what was written, one list of requests' numbers a write."""

    def __init__(self) -> None:
        self.writes: list[list[int]] = []

    def write(self, data: bytes) -> None:
        numbers, position = [], 0
        while position < len(data):
            (size,) = struct.unpack_from(">I", data, position)
            numbers.append(orjson.loads(data[position + 4 : position + 4 + size])[0])
            position += 4 + size
        self.writes.append(numbers)


def frame(*parts: Any) -> bytes:
    raw = orjson.dumps(parts)
    return struct.pack(">I", len(raw)) + raw


@pytest.fixture
async def wire() -> tuple[Wire, Sent]:
    made, sent = Wire(), Sent()
    made.connection_made(sent)  # type: ignore[arg-type]
    return made, sent


async def test_a_slow_model_gets_all_of_a_turn_in_one_batch(wire: tuple[Wire, Sent]) -> None:
    asked, sent = wire
    asked.data_received(frame(0, "took", 0.02))
    numbers = [asked.ask("rows", {})[0] for _ in range(5)]
    assert sent.writes == []
    await asyncio.sleep(0)
    assert sent.writes == [numbers]


async def test_a_quick_model_begins_with_the_first_few_and_gets_the_rest_of_the_turn_together(wire: tuple[Wire, Sent]) -> None:
    asked, sent = wire
    asked.data_received(frame(0, "took", QUICK / 4))
    numbers = [asked.ask("rows", {})[0] for _ in range(6)]
    assert sent.writes == [numbers[:FEW]]
    await asyncio.sleep(0)
    assert sent.writes == [numbers[:FEW], numbers[FEW:]]


async def test_one_request_alone_waits_for_nobody(wire: tuple[Wire, Sent]) -> None:
    asked, sent = wire
    asked.data_received(frame(0, "took", QUICK / 4))
    number, answer = asked.ask("rows", {})
    await asyncio.sleep(0)
    assert sent.writes == [[number]]
    asked.data_received(frame(number, "result", {"predictions": [1.0]}))
    assert await answer == ("result", {"predictions": [1.0]})


async def test_what_a_model_says_of_its_time_is_read_as_a_time_only(wire: tuple[Wire, Sent]) -> None:
    asked, sent = wire
    asked.data_received(frame(0, "took", {"seconds": 0}))
    numbers = [asked.ask("rows", {})[0] for _ in range(3)]
    await asyncio.sleep(0)
    assert sent.writes == [numbers]
