from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.protocols import sse

pytestmark = pytest.mark.anyio


async def parse(raw: bytes, cuts: list[int] | None = None, **options: int) -> list[str]:
    async def chunks() -> AsyncIterator[bytes]:
        start = 0
        ends: list[int] = sorted({*(cuts or []), len(raw)})
        for cut in ends:
            if start < cut <= len(raw):
                yield raw[start:cut]
                start = cut

    return [event async for event in sse.events(chunks(), **options)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_line_ends(end: bytes) -> None:
    raw = end.join([b": c", b"event: x", b"data: a", b"data:b", b"", b"data", b"id: 1", b"", b"data: c", b"", b""])
    assert await parse(raw) == ["a\nb", "c"]


async def test_what_ends_early_is_dropped_and_a_mark_is_skipped() -> None:
    assert await parse("﻿data: é\n\ndata: cut".encode()) == ["é"]


async def test_limits() -> None:
    with pytest.raises(sse.TooLong):
        await parse(b"data: " + b"x" * 100, max_line=50)
    with pytest.raises(sse.TooLong):
        await parse(b"data: xxxxxxxxxx\n" * 10, max_line=50)
    with pytest.raises(UnicodeDecodeError):
        await parse(b"data: \xff\n\n")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(st.characters(blacklist_characters="\r\n", codec="utf-8"), min_size=1, max_size=6), max_size=4), st.data()
)
async def test_cuts_anywhere_change_nothing(texts: list[str], data: st.DataObject) -> None:
    raw = b"".join(b"data: " + text.encode() + b"\r\n\r\n" for text in texts)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=20))
    assert await parse(raw, cuts) == texts


async def test_framing_is_parsed_back() -> None:
    raw = sse.data({"a": "é\n"}) + sse.named("x", {"b": 1}) + sse.DONE
    assert await parse(raw) == ['{"a":"é\\n"}', '{"b":1}', "[DONE]"]
