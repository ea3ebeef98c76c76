"""Indexes: what is in each and when it was brought up to date, and a query with its dense, lexical and fused ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from governance.call import Call, CallError
from serving.ui.console.forms import choice, field, form
from serving.ui.console.frame import ConsolePage
from serving.ui.console.tables import table
from serving.ui.console.words import stamp
from serving.ui.document import document_url
from serving.ui.parts import Latest, tag

LISTED = 200
FOUND = 20
MODES: tuple[str, ...] = ("hybrid", "dense", "lexical")

Row = Mapping[str, Any]


def ranked(found: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Passages of the three modes as one list, the fused order first, each with its rank in every mode that found it."""
    places = {mode: {row["id"]: i for i, row in enumerate(rows, 1)} for mode, rows in found.items()}
    rows = {row["id"]: row for mode in reversed(MODES) for row in found[mode]}
    order = sorted(rows, key=lambda key: [places[mode].get(key, FOUND + 1) for mode in MODES])
    return [
        {
            "id": key, "fused": places["hybrid"].get(key), "dense": places["dense"].get(key),
            "lexical": places["lexical"].get(key), "similarity": round(rows[key]["similarity"], 3),
            "bm25": round(rows[key]["lexical"], 2), "title": rows[key]["title"], "source": rows[key]["source"],
            "text": " ".join(rows[key]["text"].split())[:300],
        }
        for key in order
    ]  # fmt: skip


class IndexesPage(ConsolePage):
    section = "Indexes"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._queries = Latest()

    async def load(self) -> Sequence[Row]:
        return await self.data.indexes(await self.who())

    def draw(self, loaded: Sequence[Row]) -> None:
        self.head("Indexes", "What answers are looked up in.")
        columns = [
            ("name", "Index"), ("state", "State"), ("documents", "Documents"), ("chunks", "Chunks"), ("synced", "Last sync"),
            ("skipped", "Skipped"), ("encoder", "Encoder"), ("source", "Source"), ("error", "Error"),
        ]  # fmt: skip
        shown = [
            {
                "name": row["name"], "state": row["status"], "documents": row["documents"], "chunks": row["chunks"],
                "synced": stamp(row["synced_at"]), "skipped": len(row["skipped"]), "encoder": row["encoder"],
                "source": str(row["source"]), "error": row["error"],
            }
            for row in loaded
        ]  # fmt: skip
        empty = "There is no index yet. Add one with: smalti index add NAME FOLDER"
        table("All indexes", empty, columns, shown, key="name", wraps=("error",))
        for row in loaded:
            if row["skipped"]:
                with tag("details", "how"):
                    tag("summary", text=f"{len(row['skipped']):,} skipped in {row['name']}")
                    with tag("ul", "skipped"):
                        for item in row["skipped"][:LISTED]:
                            with tag("li"):
                                tag("code", text=str(item["source"]))
                                tag("span", text=str(item["reason"]))
        if loaded:
            self._query([str(row["name"]) for row in loaded])

    def _query(self, names: Sequence[str]) -> None:
        with tag("section", "panel-section", aria_label="Query"):
            with tag("div", "section-head"):
                tag("h2", text="Query")
                tag("p", text="Where each passage stands by meaning, by words, and by both together.")
            with form("Search", self._search, "wide-form"):
                choice("Index", "index", [(name, name) for name in names], names[0])
                field("Query", "query", required=True, maxlength=2000, type="search")
            self.results = tag("div", aria_live="polite")

    async def _search(self, given: Mapping[str, str]) -> None:
        index, query = given.get("index", ""), given.get("query", "").strip()
        if not query:
            return

        async def search(mode: str) -> Sequence[Row]:
            payload = {"query": query, "k": FOUND, "mode": mode}
            return (await self.services.dispatcher.invoke(Call(index, "search", payload, credential=self.credential)))["passages"]

        latest = self._queries.begin()
        try:
            found = dict(zip(MODES, await asyncio.gather(*map(search, MODES)), strict=True))
        except CallError as error:
            if latest():
                self.tell(error)
            return
        if not latest() or self.results.is_deleted:
            return
        columns = [
            ("fused", "Fused"), ("dense", "Dense"), ("lexical", "Lexical"), ("similarity", "Similarity"), ("bm25", "BM25"),
            ("title", "Document"), ("text", "Passage"), ("source", "Source"),
        ]  # fmt: skip
        rows = ranked(found)
        links = {row["id"]: document_url(index, row["document_id"], row["start"], row["end"]) for m in MODES for row in found[m]}

        def opened(key: str) -> None:
            self.client.open(links[key], new_tab=True)

        self.results.clear()
        with self.results:
            table(
                "Passages", "Nothing was found.", columns, rows, key="id", size=20, opens="title", on_open=opened, wraps=("text",)
            )
