from __future__ import annotations

import pytest

from governance.call import Call
from serving.engines.answer import Answer


def test_an_answer_that_says_nothing_is_still_one_message() -> None:
    answer = Answer(Call("m", "chat", {}))
    events = [*answer.start(), *answer.write(""), *answer.finish()]
    assert [event.type for event in events][-2:] == ["response.output_item.done", "response.completed"]
    (item,) = events[-1].data["response"]["output"]
    assert item["content"][0]["text"] == ""


def test_created_stays_as_it_was_when_the_answer_grows() -> None:
    answer = Answer(Call("m", "chat", {"metadata": {"a": "b"}}))
    created = answer.start()[0]
    list(answer.write("x"))
    completed = list(answer.finish(metadata={"c": "d"}))[-1]
    assert created.data["response"]["output"] == []
    assert created.data["response"]["metadata"] == {"a": "b"}
    assert created.data["response"]["status"] == "in_progress"
    assert completed.data["response"]["metadata"] == {"a": "b", "c": "d"}


def test_what_was_written_counts_text_around_tool_calls() -> None:
    answer = Answer(Call("m", "chat", {}))
    list(answer.write("one "))
    list(answer.call_tool("c", "f"))
    list(answer.arguments("{}"))
    assert answer.written == "one "
    list(answer.write("two"))
    assert answer.written == "one two"
    response = list(answer.finish(incomplete="content_filter"))[-1].data["response"]
    assert [item["status"] for item in response["output"]] == ["completed", "completed", "incomplete"]
    assert (response["status"], response["completed_at"]) == ("incomplete", None)


def test_annotations_are_numbered_within_their_text() -> None:
    answer = Answer(Call("m", "chat", {}))
    note = {"type": "url_citation", "start_index": 0, "end_index": 1, "url": "u", "title": "t"}
    events = [*answer.write("a"), *answer.annotate(note), *answer.annotate(note), *answer.finish()]
    assert [event.data["annotation_index"] for event in events if event.type.endswith("annotation.added")] == [0, 1]
    assert len(events[-1].data["response"]["output"][0]["content"][0]["annotations"]) == 2


def test_an_answer_given_whole_tells_its_text_in_long_pieces() -> None:
    answer, told = Answer(Call("m", "chat", {}), whole=True), []
    for step in (
        answer.start(),
        *(answer.write("word ") for _ in range(500)),
        answer.call_tool("c", "f"),
        answer.arguments("{}"),
    ):
        told += step
    assert answer.rest() == []
    told += [*answer.write("after"), *answer.write(" all")]
    (rest,) = answer.rest()
    told += [rest, *answer.finish()]
    deltas = [event.data["delta"] for event in told if event.type == "response.output_text.delta"]
    assert {event.type for event in told} == {"response.created", "response.output_text.delta", "response.completed"}
    assert "".join(deltas) == "word " * 500 + "after all"
    assert 3 <= len(deltas) <= 8
    assert deltas[0] == "word "  # that it has begun is told at once
    items = told[-1].data["response"]["output"]
    assert [item["type"] for item in items] == ["message", "function_call", "message"]
    assert (items[0]["content"][0]["text"], items[1]["arguments"]) == ("word " * 500, "{}")


def test_what_is_no_text_is_not_written() -> None:
    for whole in (False, True):
        with pytest.raises(TypeError):
            Answer(Call("m", "chat", {}), whole=whole).write(["no", "text"])  # type: ignore[arg-type]
