from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from retrieval import Encoder, Indexes, held_pieces
from retrieval.late import Asked, packed, scores
from retrieval.search import rarity
from retrieval.tables import pieces


def test_the_scores_are_those_of_the_signs() -> None:
    rng = np.random.default_rng(1)
    question = rng.standard_normal((5, 384)).astype(np.float32)
    question /= np.linalg.norm(question, axis=1, keepdims=True)
    texts = [rng.standard_normal((n, 384)).astype(np.float32) for n in (7, 1, 30)]
    weights = np.array([1.0, 0.0, 2.0, 0.5, 3.0])
    wanted = [weights @ (question @ np.sign(text).T / 384**0.5).max(axis=1) / weights.sum() for text in texts]
    asked = Asked(question[0], question, ((0, 1),) * 5)
    found = scores(asked, weights, [packed(texts[0]), packed(texts[1]), b"", packed(texts[2])])
    np.testing.assert_allclose(found[[0, 1, 3]], wanted, atol=0.01)
    assert found[2] == -1  # a passage without pieces fits worst
    assert (scores(asked, weights, [b"", b""]) == -1).all()


def test_a_question_is_its_words(encoder: Encoder) -> None:
    question = "Which tiles are cut by hand? \ud800"
    asked = encoder.ask(question)
    assert [question[a:b] for a, b in asked.spans][:7] == ["Which", "tiles", "are", "cut", "by", "hand", "?"]
    assert asked.vector @ encoder.embed([question])[0] > 0.99
    np.testing.assert_allclose(np.linalg.norm(asked.pieces, axis=1), 1, atol=1e-4)
    again = asyncio.run(encoder.aask(question))
    np.testing.assert_array_equal(again.pieces, asked.pieces)
    assert encoder.ask("").pieces.shape == (0, 384)


def test_words_without_meaning_are_not_kept(encoder: Encoder) -> None:
    vectors, held = encoder.embed_pieces(["The glass of the tiles!", "", "of the"])
    assert [len(each) // 48 for each in held] == [2, 0, 2]
    assert vectors[0] @ encoder.embed(["The glass of the tiles!"])[0] > 0.99


def test_rare_words_weigh_more(indexes: Indexes, folder: Path) -> None:
    indexes.add("docs", folder)
    indexes.sync("docs")
    rows = indexes._finder.memory(indexes._row("docs").id).snapshot()
    question = "unheard-of smalti, and the glass?"
    spans = indexes.encoder.ask(question).spans
    weight = {question[a:b]: w for (a, b), w in zip(spans, rarity(rows, question, spans), strict=True)}
    assert weight["glass"] < weight["heard"]
    assert weight["the"] < weight["glass"]
    assert weight["?"] == 0


def test_pieces_come_and_go_with_their_chunks(indexes: Indexes, folder: Path, engine: sa.Engine) -> None:
    indexes.add("docs", folder)
    chunks = indexes.sync("docs").chunks

    def held() -> int:
        with engine.connect() as db:
            return db.execute(sa.select(sa.func.count()).select_from(pieces)).scalar_one()

    assert held() == chunks
    found = indexes.search("docs", "who cuts tiles by hand?", k=3)
    assert found[0].source == "glass.md"
    (folder / "glass.md").unlink()
    indexes.sync("docs")
    assert held() == indexes.get("docs").chunks
    with engine.begin() as db:
        db.execute(sa.delete(pieces))  # as an index made by an older version is, until its next sync
    assert indexes.search("docs", "how long is bread baked?", k=1)[0].source == "guides/bread.md"
    indexes.drop("docs")
    assert held() == 0


def test_pieces_are_held_as_long_as_their_rows_are_there(indexes: Indexes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexes.add("docs", folder)
    indexes.sync("docs")
    held, number = indexes._finder._pieces, indexes._row("docs").id
    picked, reads = indexes._store.picked_pieces, []
    monkeypatch.setattr(indexes._store, "picked_pieces", lambda seqs, db=None: reads.extend(seqs) or picked(seqs, db))

    def numbers() -> list[int]:
        there = indexes._store.seqs(number).tolist()
        assert held._size == sum(map(len, held._held[number].values())) == sum(map(len, picked(there).values()))
        return there

    asked = "who cuts tiles by hand?", "how long is bread baked?"
    first = [indexes.search("docs", question) for question in asked]
    assert reads == numbers(), "each once, by the first search"
    assert [indexes.search("docs", question) for question in asked] == first
    (folder / "glass.md").write_text("# Glass\n\nTiles are cut by a machine now.\n")
    (folder / "guides" / "bread.md").unlink()
    indexes.sync("docs")
    assert sorted(held._held[number]) == numbers(), "what is gone is not held, what is new is"
    indexes.search("docs", asked[0])
    assert len(reads) == len(set(reads)), "what stayed was not read again"
    indexes.drop("docs")
    assert not held._held
    assert held._size == 0


@pytest.mark.parametrize(("large", "most"), [(3, 1 << 29), (100, 1000)])
def test_pieces_that_are_too_many_are_read_from_the_database(
    indexes: Indexes, folder: Path, monkeypatch: pytest.MonkeyPatch, large: int, most: int
) -> None:
    indexes.add("docs", folder)
    indexes.sync("docs")
    right = indexes.search("docs", "who cuts tiles by hand?")
    indexes._finder.forget(indexes._row("docs").id)
    monkeypatch.setattr(held_pieces, "LARGE", large)
    monkeypatch.setattr(held_pieces, "MOST", most)
    monkeypatch.setattr(held_pieces, "BATCH", 2)
    assert indexes.search("docs", "who cuts tiles by hand?") == right
    assert indexes._finder._pieces._size == 0
    assert not any(indexes._finder._pieces._held.values())
