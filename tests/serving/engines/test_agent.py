from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from openai.types.responses import Response
from sqlalchemy import create_engine

from agents.graphs import rag
from agents.runtime import Agent, Runtime
from governance.call import STEP, Call, CallError, Event
from retrieval.errors import NotFound
from retrieval.types import Document, Passage
from serving.chat_model import EndpointChatModel
from serving.endpoint import Endpoint
from serving.engines.agent import agent_engine
from serving.engines.external import ExternalChat
from serving.engines.upstream import Upstream as Address
from tests.serving.upstream import KEY, House, Upstream, house

pytestmark = pytest.mark.anyio

INDEX = "main.default.docs"
TEXT = "Smalti are glass tiles. Mosaics are set from them."


class Shelf:
    """An index of one document."""

    def __init__(self) -> None:
        self.searched: list[tuple[str, str, int]] = []

    async def asearch(self, name: str, query: str, *, k: int = 5, mode: str = "hybrid", **_: Any) -> list[Passage]:
        self.searched.append((name, query, k))
        if name != INDEX:
            raise NotFound(f"There is no index {name}.")
        return [Passage("p1", "a b/c", INDEX, "guide/smalti.md", "Smalti", ("Smalti",), TEXT, 10, 10 + len(TEXT), 0.9, 0.8, 1.0)]

    def document(self, name: str, document_id: str, groups: Any = ()) -> Document:
        return Document(document_id, name, "guide/smalti.md", "Smalti", "x" * 10 + TEXT, "text/markdown", "0")


class State(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]


async def embed(texts: Any) -> np.ndarray:
    return np.ones((len(texts), 2), dtype=np.float32) / np.sqrt(2)


class Site:
    """A house with agents: `assistant` (ours, over an upstream model), `own` (a developer's graph that calls the model)."""

    def __init__(self, made: House, runtime: Runtime, shelf: Shelf) -> None:
        self.house, self.runtime, self.shelf = made, runtime, shelf

    def add(self, name: str, builder: Any, *, model: str | None = "chat", index: str = "docs", **options: Any) -> None:
        dispatcher = self.house.dispatcher
        chat = EndpointChatModel(dispatcher=dispatcher, endpoint=model) if model else None
        agent = Agent(name, builder, chat, dispatcher.retriever(index), options={"embed": embed, **options})
        engine = agent_engine(self.runtime, agent, base_url="http://here", count_tokens=lambda text: len(text.split()))
        self.house.endpoints.register(Endpoint(name, "agent/v1/responses", engine))

    async def ask(
        self, text: str | list[Any], *, endpoint: str = "assistant", key: str | None = None, **more: Any
    ) -> list[Event]:
        items = text if isinstance(text, list) else [{"type": "message", "role": "user", "content": text}]
        call = Call(endpoint, "agent", {"input": items}, credential=key or self.house.admin, stream=True, **more)
        return [event async for event in self.house.dispatcher.stream(call)]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    opened = Upstream()
    yield opened
    opened.close()


@pytest.fixture
async def site(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Site]:
    shelf, engine = Shelf(), create_engine(f"sqlite:///{tmp_path}/threads.db")
    runtime, chat = Runtime(engine, tmp_path / "checkpoints.db"), ExternalChat(Address(upstream.url, "cites", KEY))
    with house(tmp_path, indexes=shelf) as made:
        made.endpoints.register(Endpoint("chat", "llm/v1/chat", chat.run))
        yield Site(made, runtime, shelf)
        await runtime.close()
        await chat.aclose()
        engine.dispose()


def said(events: list[Event]) -> str:
    return "".join(event.data["delta"] for event in events if event.type == "response.output_text.delta")


async def test_a_cited_answer(site: Site) -> None:
    site.add("assistant", rag.build)
    events = await site.ask("What are Smalti?")
    text = said(events)
    assert text.startswith("Smalti are glass tiles [1]")
    assert [event.type for event in events if event.type != STEP][:2] == ["response.created", "response.in_progress"]
    assert {event.data["kind"] for event in events if event.type == STEP} >= {"retrieval", "model"}
    response = events[-1].data["response"]
    Response.model_validate({**response, "id": "x"})
    content = response["output"][0]["content"][0]
    (note,) = content["annotations"]
    assert content["text"] == text
    assert text[note["start_index"] : note["end_index"]] == "[1]"
    address = urlsplit(note["url"])
    assert (address.netloc, address.path) == ("here", "/documents/main.default.docs/a%20b%2Fc")
    place = parse_qs(address.query)
    start, end = int(place["start"][0]), int(place["end"][0])
    assert ("x" * 10 + TEXT)[start:end] in TEXT
    custom = response["custom_outputs"]
    assert custom["passages"] == [
        {"id": "p1", "document_id": "a b/c", "index": INDEX, "source": "guide/smalti.md", "title": "Smalti",
         "start": 10, "end": 10 + len(TEXT), "score": 0.9}
    ]  # fmt: skip
    assert (custom["mode"], custom["abstained"], custom["thread_id"]) == ("generative", False, None)
    assert custom["citations"][0]["number"] == 1
    assert response["metadata"]["mode"] == "generative"
    assert response["metadata"]["abstained"] == "false"
    assert response["usage"]["total_tokens"] == 18, "the inner model call's tokens"


async def test_inner_calls_are_governed_and_journalled(site: Site) -> None:
    site.add("assistant", rag.build)
    events = await site.ask("What are Smalti?")
    outer = events[-1].data["response"]["id"].removeprefix("resp_")
    inner = [row for row in site.house.rows() if row["parent_request_id"] == outer]
    assert {(row["task"], row["endpoint_name"], row["requester"]) for row in inner} == {
        ("search", INDEX, "admin"),
        ("chat", "chat", "admin"),
    }
    key = site.house.key("ann", "endpoint:assistant")
    with pytest.raises(CallError, match=f"index:{INDEX}"):
        async for _ in site.house.dispatcher.stream(
            Call("assistant", "agent", {"input": [{"role": "user", "content": "x"}]}, key)
        ):
            pass
    assert len(site.shelf.searched) == 1, "an ungranted index was searched"
    site.house.grants.grant("user:ann", f"index:{INDEX}", "CAN_QUERY")
    site.house.grants.grant("user:ann", "endpoint:chat", "CAN_QUERY")
    assert said(await site.ask("What are Smalti?", key=key))


async def test_threads_belong_to_their_caller(site: Site) -> None:
    site.add("assistant", rag.build)
    first = await site.ask("What are Smalti?", thread_id="t1")
    assert first[-1].data["response"]["metadata"]["thread_id"] == "t1"
    await site.ask("And mosaics?", thread_id="t1")
    assert [turn.role for turn in await site.runtime.turns("t1", "user:admin")] == ["user", "assistant"] * 2
    key = site.house.key("eve", "endpoint:assistant", f"index:{INDEX}", "endpoint:chat")
    with pytest.raises(CallError) as caught:
        await site.ask("What was said?", thread_id="t1", key=key)
    assert caught.value.status == 404


async def test_a_busy_thread_says_so(site: Site) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    def build(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        async def wait(state: Any) -> State:
            entered.set()
            await gate.wait()
            return {"messages": [AIMessage("done")]}

        return StateGraph(State).add_node("wait", wait).add_edge(START, "wait").compile(checkpointer=checkpointer)

    site.add("slow", build)
    running = asyncio.create_task(site.ask("one", endpoint="slow", thread_id="t"))
    await entered.wait()
    with pytest.raises(CallError) as caught:
        await site.ask("two", endpoint="slow", thread_id="t")
    assert caught.value.status == 409
    gate.set()
    assert said(await running) == "done"


async def test_a_developers_graph_streams_its_models_tokens(site: Site) -> None:
    def build(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        async def talk(state: Any) -> State:
            return {"messages": [await model.ainvoke(state["messages"])]}

        return StateGraph(State).add_node("talk", talk).add_edge(START, "talk").compile(checkpointer=checkpointer)

    site.add("own", build)
    events = await site.ask("hello", endpoint="own")
    assert said(events) == "Smalti are glass tiles [1]."
    assert sum(event.type == "response.output_text.delta" for event in events) == 3
    response = events[-1].data["response"]
    assert response["usage"]["output_tokens"] == 7
    assert response["custom_outputs"]["passages"] == []


async def test_a_plain_function_node_may_call_the_model_too(site: Site) -> None:
    def build(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        def talk(state: Any) -> State:
            return {"messages": [model.invoke(state["messages"])]}

        return (
            StateGraph(State)
            .add_node("talk", talk)
            .add_edge("talk", END)
            .add_edge(START, "talk")
            .compile(checkpointer=checkpointer)
        )

    site.add("plain", build)
    events = await site.ask("hello", endpoint="plain")
    assert said(events) == "Smalti are glass tiles [1]."
    assert [row["endpoint_name"] for row in site.house.rows() if row["parent_request_id"]] == ["chat"]


async def test_without_a_model_tokens_are_counted_here(site: Site) -> None:
    def build(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        async def talk(state: Any) -> State:
            return {"messages": [AIMessage("three words here")]}

        return StateGraph(State).add_node("talk", talk).add_edge(START, "talk").compile(checkpointer=checkpointer)

    site.add("own", build, model=None)
    usage = (await site.ask("two words", endpoint="own"))[-1].data["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (2, 3)


async def test_a_failing_node_fails_the_answer_and_hides_why(site: Site) -> None:
    def build(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        async def broken(state: Any) -> State:
            raise ZeroDivisionError("secret")

        return StateGraph(State).add_node("broken", broken).add_edge(START, "broken").compile(checkpointer=checkpointer)

    site.add("broken", build)
    with pytest.raises(CallError) as caught:
        await site.ask("x", endpoint="broken")
    assert caught.value.status == 500
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([{"type": "message", "role": "system", "content": "x"}], "asks nothing"),
        ([{"role": "user", "content": "q"}, {"type": "message", "role": "assistant", "content": "a"}], "last message must be"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]}], "image"),
    ],
)
async def test_what_cannot_be_answered(site: Site, items: list[Any], says: str) -> None:
    site.add("assistant", rag.build)
    with pytest.raises(CallError, match=says) as caught:
        await site.ask(items)
    assert caught.value.status == 400


async def test_a_client_that_goes_leaves_a_thread_that_can_go_on(site: Site) -> None:
    started = asyncio.Event()

    def build(model: Any, retriever: Any, *, checkpointer: Any = None) -> Any:
        async def talk(state: Any) -> State:
            if len([m for m in state["messages"] if isinstance(m, HumanMessage)]) == 1:
                started.set()
                await asyncio.sleep(30)
            return {"messages": [AIMessage("second")]}

        return StateGraph(State).add_node("talk", talk).add_edge(START, "talk").compile(checkpointer=checkpointer)

    site.add("own", build)
    task = asyncio.create_task(site.ask("one", endpoint="own", thread_id="t"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert site.house.rows()[-1]["status_code"] == 499
    assert said(await site.ask("two", endpoint="own", thread_id="t")) == "second"
