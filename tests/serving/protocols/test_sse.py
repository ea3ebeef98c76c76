from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.protocols import sse


def parse(raw: bytes, cuts: list[int] | None = None, **options: int) -> list[str]:
    parser, start, found = sse.Parser(**options), 0, []
    for cut in sorted({*(cuts or []), len(raw)}):
        if start < cut <= len(raw):
            found += parser.feed(raw[start:cut])
            start = cut
    return [event.decode() for event in found]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends(end: bytes) -> None:
    raw = end.join([b": c", b"event: x", b"data: a", b"data:b", b"", b"data", b"id: 1", b"", b"data: c", b"", b""])
    assert parse(raw) == ["a\nb", "c"]


def test_what_ends_early_is_dropped_and_a_mark_is_skipped() -> None:
    assert parse("﻿data: é\n\ndata: cut".encode()) == ["é"]


def test_limits() -> None:
    with pytest.raises(sse.TooLong):
        parse(b"data: " + b"x" * 100, max_line=50)
    with pytest.raises(sse.TooLong):
        parse(b"data: xxxxxxxxxx\n" * 10, max_line=50)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(st.characters(blacklist_characters="\r\n", codec="utf-8"), min_size=1, max_size=6), max_size=4), st.data()
)
def test_cuts_anywhere_change_nothing(texts: list[str], data: st.DataObject) -> None:
    raw = b"".join(b"data: " + text.encode() + b"\r\n\r\n" for text in texts)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=20))
    assert parse(raw, cuts) == texts


def test_framing_is_parsed_back() -> None:
    raw = sse.data({"a": "é\n"}) + sse.named("x", {"b": 1}) + sse.DONE
    assert parse(raw) == ['{"a":"é\\n"}', '{"b":1}', "[DONE]"]
