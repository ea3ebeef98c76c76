"""From Responses events to what an answer shows."""

from __future__ import annotations

import pytest

from governance.call import STEP, Event, limit_exceeded
from serving.ui.services import ThreadMessage
from serving.ui.turn import Turn, local_url, sureness

CITATION = {
    "number": 1,
    "index": "main.default.docs",
    "document_id": "d/1",
    "source": "a.md",
    "title": "A",
    "heading": ["H"],
    "start": 3,
    "end": 9,
    "quote": "quoted",
    "text_start": 4,
    "text_end": 7,
}


def completed(**more):
    response = {
        "status": "completed",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Yes.[1]"}]}],
        **more,
    }
    return Event("response.completed", {"response": response})


def test_text_and_citations_gather():
    turn = Turn("r")
    assert turn.apply(Event("response.output_text.delta", {"delta": "Yes.[1]"}))
    note = {
        "type": "url_citation",
        "url": "http://host/documents/i/d?start=1&end=2",
        "title": "A",
        "start_index": 4,
        "end_index": 7,
    }
    assert turn.apply(Event("response.output_text.annotation.added", {"annotation": note}))
    assert turn.sources[1].url == "/documents/i/d?start=1&end=2"
    assert turn.status == "running"
    outputs = {
        "mode": "extractive",
        "abstained": False,
        "route": {"label": "documents", "confidence": 0.9},
        "citations": [CITATION],
    }
    turn.apply(completed(custom_outputs=outputs))
    assert (turn.status, turn.text, turn.mode, turn.route, turn.confidence) == (
        "completed",
        "Yes.[1]",
        "extractive",
        "documents",
        0.9,
    )
    source = turn.sources[1]
    assert (source.url, source.quote, source.heading) == ("/documents/main.default.docs/d%2F1?start=3&end=9", "quoted", ("H",))
    assert turn.badge == "Quoted from documents"


def test_answer_without_deltas_comes_from_the_last_event():
    turn = Turn()
    turn.apply(completed(metadata={"mode": "canned", "route": "small_talk", "abstained": "false"}))
    assert (turn.text, turn.badge, turn.route, turn.abstained) == ("Yes.[1]", "Standard reply", "small_talk", False)


def test_abstention_is_said():
    turn = Turn()
    turn.apply(completed(custom_outputs={"mode": "extractive", "abstained": True}))
    assert turn.badge == "Not in these documents"


def test_steps_are_ordered_timed_and_described():
    turn = Turn()
    second = 1_000_000_000
    rows = [
        {
            "name": "search",
            "kind": "retrieval",
            "start_ns": second + 2_000_000,
            "end_ns": second + 12_000_000,
            "outputs": {"passages": [1, 2]},
        },
        {
            "name": "route",
            "kind": "route",
            "start_ns": second,
            "end_ns": second + 2_000_000,
            "attributes": {"label": "documents", "confidence": 0.8},
        },
        {"name": "lookup", "kind": "tool", "start_ns": second + 12_000_000, "end_ns": 0, "status": "ERROR"},
    ]
    for row in rows:
        assert not turn.apply(Event(STEP, row))
    route, search, lookup = turn.steps
    assert (route.name, route.detail, route.ms) == ("route", "documents, 80% sure", 2.0)
    assert (search.detail, search.offset_ms, search.ms) == ("2 passages", 2.0, 10.0)
    assert (lookup.failed, lookup.ms) == (True, 0.0)


def test_confidence_is_never_all_of_it():
    assert (sureness(0.9999), sureness(0.97)) == ("over 99% sure", "97% sure")


def test_failures_say_what_happened_and_what_to_do():
    turn = Turn()
    turn.apply(
        Event("response.failed", {"response": {"status": "failed", "error": {"message": "The model is away. Ask again."}}})
    )
    assert (turn.status, turn.error) == ("failed", "The model is away. Ask again.")
    turn = Turn()
    turn.fail(limit_exceeded("Too many calls.", 11.6))
    assert turn.error == "Too many calls. Try again in 12 s."
    turn = Turn()
    turn.fail(RuntimeError("secret internals"))
    assert "secret" not in turn.error


def test_stored_answers_show_like_new_ones():
    outputs = {"mode": "extractive", "citations": [CITATION]}
    turn = Turn.stored(ThreadMessage("assistant", "Yes.[1]", "r", {"status": "completed", "custom_outputs": outputs}))
    assert (turn.status, turn.text, turn.request_id, turn.sources[1].quote) == ("completed", "Yes.[1]", "r", "quoted")
    assert Turn.stored(ThreadMessage("assistant", "Ye", "r", {"status": "cancelled"})).status == "stopped"
    assert Turn.stored(ThreadMessage("assistant", "Ye", "r", {"status": "failed"})).error
    assert Turn.stored(ThreadMessage("assistant", "Yes", None, None)).text == "Yes"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1/documents/i/d?start=1", "/documents/i/d?start=1"),
        ("/documents/i/d", "/documents/i/d"),
        ("https://a.example/x", "https://a.example/x"),
        ("javascript:alert(1)", ""),
        ("javascript://x/documents/%0aalert(1)", ""),
        ("data:text/html,x", ""),
        ("//evil.example/x", ""),
        ("", ""),
        ("http://[", ""),
    ],
)
def test_citation_addresses(url, expected):
    assert local_url(url) == expected
