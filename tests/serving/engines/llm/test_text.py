from __future__ import annotations

import json

import pytest

from serving.engines.llm.text import Detokenizer, Stops, ToolCalls


def by_bytes(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def test_a_character_of_several_tokens_comes_whole() -> None:
    reader = Detokenizer(by_bytes, list(b"x "))
    given = [reader.add(byte) for byte in "für 🜁".encode()]
    assert "".join(given) == "für 🜁"
    assert "\ufffd" not in "".join(given)
    assert reader.end() == ""


def test_bytes_that_never_become_a_character_are_told_at_the_end() -> None:
    reader = Detokenizer(by_bytes, [])
    assert [reader.add(byte) for byte in b"a\xf0\x9f"] == ["a", "", ""]
    assert reader.end() == "\ufffd"


@pytest.mark.parametrize("pieces", [["ab", "cEN", "Dx"], ["abcENDx"], list("abcENDx")])
def test_a_stop_string_is_found_however_tokens_cut_it(pieces: list[str]) -> None:
    stops = Stops(["END", "zzz"])
    text = ""
    for piece in pieces:
        text += stops.add(piece)
        if stops.hit:
            break
    assert (text, stops.hit) == ("abc", True)


def test_what_only_looked_like_a_stop_string_is_text() -> None:
    stops = Stops(["END"])
    assert stops.add("the E") + stops.add("NE") + stops.add("N") + stops.end() == "the ENEN"
    assert not stops.hit


@pytest.mark.parametrize(
    "answer",
    [
        'Let me see. <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        'Let me see. [TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]',
        '{"name": "add", "parameters": {"a": 1}}',
        ' [{"name": "add", "arguments": {"a": 1}}]',
    ],
)
def test_calls_are_taken_out_of_the_text(answer: str) -> None:
    for pieces in ([answer], list(answer)):
        reader = ToolCalls(["add"])
        text = "".join(map(reader.add, pieces))
        rest, calls = reader.end()
        assert text + rest == ("Let me see. " if answer.startswith("Let") else "")
        assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("add", {"a": 1})]


def test_several_calls_and_what_is_no_call() -> None:
    reader = ToolCalls(["add", "sub"])
    reader.add('<tool_call>{"name": "add", "arguments": {}}</tool_call>\n<tool_call>{"name": "sub", "arguments": {}}</tool_call>')
    assert [call["name"] for call in reader.end()[1]] == ["add", "sub"]
    for answer in ('{"name": "other", "arguments": {}}', "{not json", "a < b <tool", '<tool_call>{"name": 3}</tool_call>'):
        reader = ToolCalls(["add"])
        text = reader.add(answer)
        assert (text + reader.end()[0], reader.end()[1]) == (answer, [])
