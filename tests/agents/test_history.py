from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from agents.generate import prompt
from agents.history import UNANSWERED, estimate, fresh, settle, summarise, text_of, trim, turns_of


def call(call_id: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": call_id}])


def test_unanswered_calls_are_answered_where_they_stand() -> None:
    settled = settle([HumanMessage("a"), call("1"), HumanMessage("b"), ToolMessage("stray", tool_call_id="9")])
    assert [m.type for m in settled] == ["human", "ai", "tool", "human"]
    assert isinstance(settled[2], ToolMessage)
    assert settled[2].tool_call_id == "1"
    assert settled[2].status == "error"


def test_a_late_result_moves_behind_its_call() -> None:
    settled = settle([call("1"), HumanMessage("b"), ToolMessage("r", tool_call_id="1")])
    assert [m.type for m in settled] == ["ai", "tool", "human"]
    assert text_of(settled[1]) == "r"


messages = st.lists(
    st.one_of(
        st.text(max_size=20).map(HumanMessage),
        st.text(max_size=20).map(AIMessage),
        st.sampled_from("abc").map(call),
        st.sampled_from("abcd").map(lambda i: ToolMessage("r", tool_call_id=i)),
    ),
    max_size=12,
)


@given(messages, st.integers(0, 60))
def test_every_provider_accepts_the_result(history: list, budget: int) -> None:
    out = trim(settle(history), budget)
    open_calls: list[str] = []
    for message in out:
        if isinstance(message, ToolMessage):
            assert open_calls.pop(0) == message.tool_call_id
        else:
            assert not open_calls
            if isinstance(message, AIMessage):
                open_calls = [str(c["id"]) for c in message.tool_calls]
                assert message.tool_calls or text_of(message).strip()
    assert not open_calls
    assert settle(out) == out


def test_trim_keeps_system_and_the_last_question() -> None:
    history = [SystemMessage("s"), *[m for i in range(2_500) for m in (HumanMessage(f"q{i} " * 20), AIMessage("a " * 40))]]
    start = time.thread_time()
    kept = trim(settle(history), 1_000)
    assert time.thread_time() - start < 2
    assert isinstance(kept[0], SystemMessage)
    assert isinstance(kept[1], HumanMessage)
    assert text_of(kept[-1]) == "a " * 40
    assert sum(map(estimate, kept)) <= 1_000
    assert trim([HumanMessage("x" * 9_000)], 10) != []


def test_only_what_is_new_is_taken_from_a_resent_history() -> None:
    assert [text_of(m) for m in fresh([HumanMessage("a"), AIMessage("b"), HumanMessage("c")])] == ["c"]
    assert fresh([HumanMessage("a"), AIMessage("b")]) == []


def test_turns_join_what_was_said_around_a_tool_call() -> None:
    first = AIMessage("Let me look.", tool_calls=[{"name": "s", "args": {}, "id": "1"}])
    turns = turns_of(
        [
            HumanMessage("q", id="r1:0"),
            first,
            ToolMessage("x", tool_call_id="1"),
            AIMessage("Done.", response_metadata={"mode": "generative"}),
        ]
    )
    assert [(t.role, t.text, t.request_id) for t in turns] == [("user", "q", "r1"), ("assistant", "Let me look.\n\nDone.", "r1")]


def test_models_that_count_their_calls_anew_in_each_message() -> None:
    def call(id: str) -> AIMessage:
        return AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": id}])

    said = [HumanMessage("q"), call("c"), call("c"), ToolMessage("second", tool_call_id="c")]
    assert [m.content for m in settle(said) if m.type == "tool"] == [UNANSWERED, "second"]
    said = [HumanMessage("q"), call("c"), ToolMessage("one", tool_call_id="c"), call("c"), ToolMessage("two", tool_call_id="c")]
    assert settle(said) == said


def test_what_does_not_fit_is_summarised_within_the_budget() -> None:
    history = [
        m for i in range(100) for m in (HumanMessage(f"My number {i} is here. {'x ' * 50}"), AIMessage(f"Noted {i}. And so on."))
    ]
    asked = prompt([*history, HumanMessage("Which numbers?")], [], 600)
    system = text_of(asked[0])
    assert text_of(asked[-1]) == "Which numbers?"
    kept = [text_of(m) for m in asked[1:]]
    assert sum(estimate(m) for m in asked[1:]) <= 600
    first = next(i for i in range(100) if any(f"My number {i} is here" in text for text in kept))
    assert f"User: My number {first - 1} is here.\nAssistant: Noted {first - 1}." in system, (
        "the summary ends where the history begins"
    )
    assert "My number 0 is" not in system
    assert "x x" not in system
    assert len(summarise(history, 100)) <= 400
    assert "earlier turns" not in text_of(prompt([HumanMessage("Hello")], [], 600)[0])
