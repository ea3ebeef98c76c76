from __future__ import annotations

import pytest

from governance.call import CallError
from serving.protocols.request import number, parse, stops, take, thread_name


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"3", b"\xff", b'{"a": NaN}', b"[" * 5000, b'{"a": "\\ud800"}'])
def test_bodies_that_are_no_json_object(raw: bytes) -> None:
    with pytest.raises(CallError) as caught:
        parse(raw)
    assert caught.value.status == 400
    assert "\n" not in caught.value.message


def test_types_are_strict_and_null_is_absent() -> None:
    assert take({"a": None}, "a", str) is None
    assert take({"a": 1}, "a", float) == 1
    for value, kind in ((True, int), (1, bool), (1.0, int), ("1", int), ([], dict)):
        with pytest.raises(CallError, match="Field 'a' must be"):
            take({"a": value}, "a", kind)
    with pytest.raises(CallError, match=r"Missing field 'x\.a'"):
        take({}, "a", str, path="x.", required=True)


def test_bounds_and_lists() -> None:
    assert number({"a": 0}, "a", 0, 2) == 0
    with pytest.raises(CallError, match="between 0 and 2"):
        number({"a": 2.1}, "a", 0, 2)
    assert stops({"stop": "x"}) == ["x"]
    assert stops({"stop": []}) is None
    with pytest.raises(CallError):
        stops({"stop": ["x"] * 17})


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 129])
def test_thread_names(name: str) -> None:
    with pytest.raises(CallError):
        thread_name(name)
