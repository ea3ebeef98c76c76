from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from governance.call import Call, CallError, Event
from retrieval.errors import NotFound
from retrieval.types import Document, Passage
from serving.chat_model import EndpointChatModel
from serving.endpoint import Endpoint
from tests.serving.upstream import house

pytestmark = pytest.mark.anyio

PASSAGE = Passage("p", "d", "main.default.docs", "a.md", "A", ("A", "B"), "text", 3, 7, 0.5, 0.25, 1.5)


class Shelf:
    async def asearch(self, name: str, query: str, *, k: int = 5, mode: str = "hybrid", **_: Any) -> list[Passage]:
        if name != "main.default.docs":
            raise NotFound(f"There is no index {name}.")
        return [PASSAGE][:k]

    def document(self, name: str, document_id: str, groups: frozenset[str] | None = frozenset()) -> Document:
        return Document(document_id, name, "a.md", "A", "the text", "text/markdown", "0")


async def test_indexes_are_reached_through_the_gateway(tmp_path: Path) -> None:
    with house(tmp_path, indexes=Shelf()) as made:
        search = Call("main.default.docs", "search", {"query": "x", "k": 1}, made.admin)
        assert (await made.dispatcher.invoke(search))["passages"] == [PASSAGE.to_dict()]
        document = await made.dispatcher.invoke(Call("main.default.docs", "document", {"id": "d"}, made.admin))
        assert document["document"]["text"] == "the text"
        with pytest.raises(CallError) as caught:
            await made.dispatcher.invoke(Call("main.default.docs", "search", {"query": "x"}, made.key("bob")))
        assert caught.value.status == 403
        with pytest.raises(CallError, match="no index") as caught:
            await made.dispatcher.invoke(Call("main.default.none", "search", {"query": "x"}, made.admin))
        assert caught.value.status == 404
        assert [row["status_code"] for row in made.rows()] == [200, 200, 403, 404]


async def test_inner_calls_take_caller_thread_and_parent(tmp_path: Path) -> None:
    with house(tmp_path, indexes=Shelf()) as made:
        retrieve = made.dispatcher.retriever("docs")

        async def outer(call: Call) -> AsyncIterator[Event]:
            found = await retrieve("query", k=1)
            yield Event("result", {"result": {"found": [passage.id for passage in found]}})

        made.endpoints.register(Endpoint("outer", "llm/v1/chat", outer))
        key = made.key("ann", "endpoint:outer", "index:main.default.docs")
        call = Call("outer", "chat", {}, key, thread_id="t", usage_context={"team": "x"})
        assert (await made.dispatcher.invoke(call))["found"] == ["p"]
        inner = next(row for row in made.rows() if row["task"] == "search")
        assert (inner["requester"], inner["thread_id"], inner["parent_request_id"]) == ("ann", "t", call.request_id)
        assert inner["usage_context"] == {"team": "x"}
        assert inner["trace_id"] == f"tr-{call.request_id}"


async def test_nothing_is_reached_outside_of_a_call(tmp_path: Path) -> None:
    with house(tmp_path, indexes=Shelf()) as made:
        with pytest.raises(RuntimeError, match="outside of a governed call"):
            await made.dispatcher.retriever("docs")("query")
        with pytest.raises(RuntimeError, match="outside of a governed call"):
            await EndpointChatModel(dispatcher=made.dispatcher, endpoint="echo").ainvoke("hello")


async def test_a_task_that_does_not_fit_is_refused_and_recorded(tmp_path: Path) -> None:
    with house(tmp_path) as made:
        with pytest.raises(CallError, match="/v1/embeddings") as caught:
            await made.dispatcher.invoke(Call("vectors", "chat", {"input": []}, made.admin))
        assert caught.value.status == 400
        with pytest.raises(CallError) as caught:
            await made.dispatcher.invoke(Call("main.default.docs", "search", {"query": "x"}, made.admin))
        assert caught.value.status == 404, "no indexes at all"
        assert [row["status_code"] for row in made.rows()] == [400, 404]


async def test_a_retriever_searches_several_indexes_as_who_asks(tmp_path: Path) -> None:
    class Two(Shelf):
        async def asearch(self, name: str, query: str, *, k: int = 5, mode: str = "hybrid", **_: Any) -> list[Passage]:
            good = name.endswith(".notes")
            scores = {"similarity": 0.9 if good else 0.2, "lexical": 8.0 if good else 1.0}
            return [replace(PASSAGE, index=name, id=name, **scores)]

    with house(tmp_path, indexes=Two()) as made:
        retrieve = made.dispatcher.retriever(["docs", "main.default.notes"])

        async def outer(call: Call) -> AsyncIterator[Event]:
            yield Event("result", {"result": {"found": [passage.id for passage in await retrieve("query", k=2)]}})

        made.endpoints.register(Endpoint("outer", "llm/v1/chat", outer))
        both = made.key("ann", "endpoint:outer", "index:main.default.docs", "index:main.default.notes")
        found = await made.dispatcher.invoke(Call("outer", "chat", {}, both))
        assert found["found"] == ["main.default.notes", "main.default.docs"]
        one = made.key("bob", "endpoint:outer", "index:main.default.docs")
        with pytest.raises(CallError) as caught:
            await made.dispatcher.invoke(Call("outer", "chat", {}, one))
        assert caught.value.status == 403, "an index that one may not query is not left out in silence"
