from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.frames import MAGIC, dumps, encode, payload, scan

columns = st.dictionaries(st.text(max_size=8), st.text(max_size=60) | st.integers(-(2**40), 2**40), max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(columns, max_size=6), st.data())
def test_frames_are_recovered_whatever_the_file_was_cut_to(written: list[dict[str, Any]], data: st.DataObject) -> None:
    frames = [encode(each) for each in written]
    whole = b"".join(frames)
    cut = data.draw(st.integers(0, len(whole)))
    bodies, consumed, skipped = scan(whole[:cut], final=True)
    complete = [sum(map(len, frames[: n + 1])) <= cut for n in range(len(frames))].count(True)
    assert [orjson.loads(body) for body in bodies] == written[:complete]
    assert consumed == cut
    assert skipped == (0 if cut == sum(map(len, frames[:complete])) else 1)
    # while its writer lives, the torn end is left for later
    bodies, consumed, skipped = scan(whole[:cut], final=False)
    assert (len(bodies), skipped) == (complete, 0)
    again, rest, _ = scan(whole[consumed:], final=False)
    assert [orjson.loads(body) for body in bodies + again] == written
    assert consumed + rest == len(whole)


@settings(max_examples=150, deadline=None)
@given(st.lists(columns, min_size=3, max_size=6), st.data())
def test_damage_within_costs_only_what_it_touches(written: list[dict[str, Any]], data: st.DataObject) -> None:
    frames = [encode(each) for each in written]
    hurt = data.draw(st.integers(0, len(frames) - 1))
    at = data.draw(st.integers(0, len(frames[hurt]) - 1))
    broken = bytearray(frames[hurt])
    broken[at] ^= data.draw(st.integers(1, 255))
    bodies, _, skipped = scan(b"".join([*frames[:hurt], bytes(broken), *frames[hurt + 1 :]]), final=True)
    assert [orjson.loads(body) for body in bodies] == written[:hurt] + written[hurt + 1 :]
    assert skipped == 1


@given(st.binary(max_size=300))
def test_noise_is_no_frame_and_no_error(noise: bytes) -> None:
    bodies, consumed, _ = scan(MAGIC + noise, final=True)
    assert bodies == []
    assert consumed == len(noise) + 4


def deep(levels: int) -> Any:
    value: Any = "end"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        {"lone": "\ud800 surrogate"},
        {"big": 2**80},
        {1: "a", None: "b"},
        {"deep": deep(900)},
        {"not a number": float("nan"), "bytes": b"\xff", "set": {1}, "object": object(), "array": np.zeros(500)},
        {("tuple", "key"): 1},
    ],
)
def test_anything_can_be_recorded(value: Any) -> None:
    raw = dumps(value)
    orjson.loads(raw)
    assert len(raw) < 1_000


def test_long_payloads_are_marked() -> None:
    assert orjson.loads(payload({"input": "short"}, 100)) == {"input": "short"}
    cut = orjson.loads(payload({"input": "é" * 1_000}, 100))
    assert cut["smalti_truncated"] is True
    assert cut["bytes"] == 2_012
    assert cut["head"].startswith('{"input":"é')


@pytest.mark.parametrize("secret", ["smk_" + "a" * 43, "12345678", 'quo"te\\d key', "schlüssel-wort", "request_time"])
def test_secrets_are_taken_out_and_the_rest_stays_whole(secret: str) -> None:
    body = {
        "request": orjson.Fragment(orjson.dumps({"input": f"my key is {secret}!", "n": 12345678, secret: [secret]})),
        "error": secret,
    }
    (found,), _, _ = scan(encode({"request_time": "now", **body}, (secret,)), final=True)
    value = orjson.loads(found)
    assert value["request"] == {"input": "my key is [redacted]!", "n": 12345678, "[redacted]": ["[redacted]"]}
    assert value["error"] == "[redacted]"
    assert value["request_time"] == "now"
