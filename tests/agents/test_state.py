from __future__ import annotations

import subprocess
import sys

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage

from agents.models import ScriptedModel
from agents.serde import CompactSerializer
from agents.state import Citation, Route, emit_delta, emit_step, merge_messages
from retrieval.types import Passage

P = Passage("p", "d", "i", "a.md", "T", ("H",), "abc def", 10, 17)


def test_importing_the_package_is_cheap() -> None:
    heavy = ("langgraph", "langchain_core", "numpy", "sklearn")
    code = f"import sys, agents, agents.state; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    import agents

    assert all(getattr(agents, name) is not None for name in agents.__all__)
    with pytest.raises(AttributeError):
        _ = agents.nothing  # type: ignore[attr-defined]


def test_a_citation_counts_in_the_document() -> None:
    citation = Citation.of(P, 2, 4, 7, 0, 3)
    assert (citation.quote, citation.start, citation.end) == ("def", 14, 17)
    assert citation.to_dict()["heading"] == ["H"]


def test_nodes_can_be_called_outside_a_run() -> None:
    emit_delta("x")
    with pytest.raises(ValueError), emit_step("a", "tool") as step:
        raise ValueError("broken")
    assert step.status == "ERROR"
    assert step.end_ns >= step.start_ns
    assert "broken" in step.attributes["error"]


def test_messages_are_merged_as_langgraph_does() -> None:
    first = merge_messages([], HumanMessage("a", id="1"))
    assert merge_messages(first, [AIMessage("b", id="2")]) == [HumanMessage("a", id="1"), AIMessage("b", id="2")]
    assert merge_messages(first, [HumanMessage("c", id="1")]) == [HumanMessage("c", id="1")]
    assert merge_messages(first, [RemoveMessage("1")]) == []
    assert merge_messages([], [AIMessage("x")])[0].id


def test_checkpoints_come_back_as_they_were() -> None:
    allowed = [("retrieval.types", "Passage"), ("agents.state", "Citation"), ("agents.state", "Route")]
    serde = CompactSerializer(allowed_msgpack_modules=allowed)
    call = AIMessage("", id="3", tool_calls=[{"name": "n", "args": {"a": 1}, "id": "c"}])
    said = AIMessage(
        "b" * 5_000,
        id="2",
        response_metadata={"mode": "m"},
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
    )
    values = {
        "messages": [HumanMessage("a", id="1"), said, call, HumanMessage([{"type": "text", "text": "x"}], id="4")],
        "documents": [P],
        "route": Route("documents", 0.9, {"documents": 0.9}),
    }
    kind, data = serde.dumps_typed({"v": 1, "channel_values": values})
    assert len(data) < 3_000
    back = serde.loads_typed((kind, data))["channel_values"]
    assert back["messages"] == values["messages"]
    assert back["documents"][0].to_dict() == P.to_dict()
    assert back["route"] == values["route"]


@pytest.mark.anyio
async def test_a_scripted_model_streams_and_runs_out() -> None:
    model = ScriptedModel(replies=["a b  c\n", ValueError("down")])
    assert [c.content async for c in model.astream("x")][:3] == ["a", " b", "  c"]
    with pytest.raises(ValueError, match="down"):
        await model.ainvoke("x")
    with pytest.raises(AssertionError, match="asked 3 times and has 2 replies"):
        await model.ainvoke("x")
