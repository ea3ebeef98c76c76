from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from governance.call import Call, CallError
from retrieval.errors import BadRequest, NotFound
from retrieval.types import Document, Passage
from tests.serving.upstream import house

pytestmark = pytest.mark.anyio

PASSAGE = Passage("p", "d", "main.default.docs", "a.md", "A", ("A", "B"), "text", 3, 7, 0.5, 0.25, 1.5, 2)


class Shelf:
    """An index that knows one document and two modes."""

    async def asearch(self, name: str, query: str, *, k: int = 5, mode: str = "hybrid", **_: Any) -> list[Passage]:
        if mode not in ("hybrid", "lexical"):
            raise BadRequest(f"mode must be hybrid or lexical, not {mode!r}")
        return [PASSAGE] * k if mode == "lexical" else [PASSAGE]

    def document(self, name: str, document_id: str, groups: Any = ()) -> Document:
        if document_id != "d":
            raise NotFound(f"index {name} has no document {document_id!r}")
        return Document(document_id, name, "a.md", "A", "the text", "text/markdown", "0")


async def test_search_and_document(tmp_path: Path) -> None:
    with house(tmp_path, indexes=Shelf()) as made:

        async def ask(task: Any, **payload: Any) -> Any:
            return await made.dispatcher.invoke(Call("main.default.docs", task, payload, made.admin))

        (row,) = (await ask("search", query="x"))["passages"]
        assert Passage.from_dict(row) == PASSAGE
        assert len((await ask("search", query="x", k=3, mode="lexical"))["passages"]) == 3
        assert (await ask("document", id="d"))["document"]["text"] == "the text"
        for task, payload, status in (("search", {"query": "x", "mode": "psychic"}, 400), ("document", {"id": "e"}, 404)):
            with pytest.raises(CallError) as caught:
                await ask(task, **payload)
            assert caught.value.status == status


@pytest.mark.parametrize(
    ("task", "payload", "param"),
    [
        ("search", {"query": " "}, "query"),
        ("search", {"query": "x", "k": 0}, "k"),
        ("search", {"query": 3}, "query"),
        ("document", {}, "id"),
    ],
)
async def test_bad_index_requests(tmp_path: Path, task: Any, payload: Any, param: str) -> None:
    with house(tmp_path, indexes=Shelf()) as made:
        with pytest.raises(CallError) as caught:
            await made.dispatcher.invoke(Call("main.default.docs", task, payload, made.admin))
        assert (caught.value.status, caught.value.param) == (400, param)
