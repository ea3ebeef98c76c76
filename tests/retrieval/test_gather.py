"""Several indexes as one answer, neighbours joined, and answers that are unlike each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieval import Indexes, Passage
from retrieval.gather import fused
from retrieval.rows.schema import Spec

pytestmark = pytest.mark.anyio


def passage(index: str, name: str, similarity: float, lexical: float) -> Passage:
    return Passage(name, name, index, name, name, (), "text", 0, 4, 1.0, similarity, lexical)


def test_several_are_put_on_one_scale() -> None:
    good = [passage("a", "a1", 0.8, 9.0), passage("a", "a2", 0.3, 2.0)]
    poor = [passage("b", "b1", 0.31, 1.0)]
    found = fused([good, poor, []], 5)
    assert [p.id for p in found] == ["a1", "a2", "b1"], "that a passage is the best of its index says nothing"
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    assert fused([good, []], 1) == good[:1], "what one index found is left as it is"
    worded = [passage("w", "w1", 0.0, 12.0)]
    assert {p.id for p in fused([good, worded], 2)} == {"a1", "w1"}, "words alone can win"


def test_a_code_decides_where_several_are_searched() -> None:
    right = replace(passage("a", "right", 0.3, 9.0), text="Case QX-12: the lamp is broken.")
    alike = [
        replace(passage(index, f"{index}{i}", 0.5, 3.0), text=f"Case AB-{i}: the lamp is loud.") for index in "ab" for i in "345"
    ]
    assert fused([[right, *alike[:3]], alike[3:]], 5, "what about QX-12?")[0].id == "right"
    assert fused([[right, *alike[:3]], alike[3:]], 5, "which lamp makes a noise?")[0].id != "right", "no code was asked for"


async def test_neighbours_are_joined_and_offsets_stay_exact(indexes: Indexes, tmp_path: Path) -> None:
    root = tmp_path / "long"
    root.mkdir()
    facts = [f"Furnace number {i} melts the glass of colour {i} at {900 + i} degrees for {i} hours." for i in range(150)]
    paragraphs = [" ".join(facts[at : at + 6]) for at in range(0, 150, 6)]
    (root / "furnaces.md").write_text("# Furnaces\n\n" + "\n\n".join(paragraphs) + "\n")
    (root / "bread.md").write_text("# Bread\n\nKnead the dough and bake it in the furnace.\n")
    indexes.add("long", root)
    indexes.sync("long")
    plain = await indexes.asearch("long", "which furnace melts glass", k=50)
    joined = await indexes.asearch("long", "which furnace melts glass", k=50, merge=True)
    assert len([p for p in plain if p.source == "furnaces.md"]) > 1
    (whole,) = [p for p in joined if p.source == "furnaces.md"]
    assert all(fact in whole.text for fact in facts), "nothing is lost between the parts"
    assert whole.text.count(facts[75]) == 1, "and nothing is there twice"
    for p in joined:
        assert indexes.document("long", p.document_id).text[p.start : p.end] == p.text
    assert whole.score == max(p.score for p in plain if p.source == "furnaces.md")


async def test_diversity_prefers_what_is_unlike(indexes: Indexes, tmp_path: Path) -> None:
    root = tmp_path / "much"
    root.mkdir()
    for i in range(4):
        (root / f"glass{i}.md").write_text(f"# Glass {i}\n\nCobalt makes the glass blue in the furnace of workshop number {i}.\n")
    (root / "other.md").write_text("# Eyes\n\nHis blue eyes looked at the sea.\n")
    indexes.add("much", root)
    indexes.sync("much")
    plain = await indexes.asearch("much", "what makes the glass blue", k=2)
    spread = await indexes.asearch("much", "what makes the glass blue", k=2, diversity=0.7)
    assert all(p.source.startswith("glass") for p in plain)
    assert spread[0].source == plain[0].source, "the best stays the best"
    assert spread[1].source == "other.md"


async def test_rows_are_passages_and_documents(indexes: Indexes) -> None:
    over = indexes.over_rows
    over.endpoints.create("e", "STANDARD", "root")
    columns = {"id": "string", "title": "string", "body": "string", "url": "string", "n": "int"}
    spec = Spec("id", "DIRECT_ACCESS", columns=columns, text="body", model="all-minilm-l6-v2", query_model="all-minilm-l6-v2")
    over.create("main.default.rows", "e", spec, "root")
    rows: list[dict[str, Any]] = [
        {"id": "a/1", "title": "Glass", "body": "Cobalt makes the glass blue.", "url": "https://x.example/glass", "n": 1},
        {"id": "b", "title": "Bread", "body": "Knead the dough for ten minutes.", "url": None, "n": 2},
    ]
    await over.upsert("main.default.rows", rows, indexes.embed, None)
    best, *_ = await indexes.asearch("rows", "what makes glass blue", k=2)
    assert (best.id, best.title, best.source, best.text) == ("a/1", "Glass", "https://x.example/glass", rows[0]["body"])
    assert 0.5 < best.similarity <= 1, "the cosine, as of passages of documents"
    document = indexes.document("rows", best.document_id)
    assert document.text[best.start : best.end] == best.text
    (filtered,) = await indexes.asearch("rows", "what makes glass blue", k=2, filters={"n": 2})
    assert (filtered.id, filtered.source) == ("b", "b")
    words = Spec("id", "DIRECT_ACCESS", subtype="FULL_TEXT", columns=columns)
    over.create("main.default.words", "e", words, "root")
    await over.upsert("main.default.words", json.loads(json.dumps(rows)), indexes.embed, None)
    assert [p.id for p in await indexes.asearch("words", "cobalt glass")] == ["a/1"], "an index without vectors, by its words"
