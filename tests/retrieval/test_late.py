from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from retrieval import Encoder, Indexes
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
