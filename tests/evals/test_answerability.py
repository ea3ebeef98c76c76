from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from evals.answerability import Answerability, Machine, Rarity, features, model
from evals.support import Vectors, words
from evals.train_answerability import train

QUESTION = "When did the Zambezi bridge open?"
HELD = ["Zambezi bridge: The bridge over the Zambezi opened in 1905.", "Zambezi: The Zambezi is a river in Africa."]
OTHERS = ["Tomato: Tomatoes are red.", "Chess: A game of chess has two players."]


def embed(texts: Sequence[str]) -> np.ndarray:
    """Words hashed into places: similar where words are shared."""
    found = np.zeros((len(texts), 384), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        row[[zlib.crc32(word.stem.encode()) % 384 for word in words(text)] or [0]] = 1
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_passages_that_speak_of_it_score_higher_and_their_order_says_nothing() -> None:
    scorer = Answerability(embed)
    assert scorer.score(QUESTION, HELD) > scorer.score(QUESTION, OTHERS)
    assert scorer.score(QUESTION, [*HELD, *OTHERS]) == pytest.approx(scorer.score(QUESTION, [*reversed(OTHERS), *reversed(HELD)]))
    for question, passages in (
        ("?", HELD),
        ("a", ["", "x"]),
        (QUESTION, ["."] * 3),
        (QUESTION * 50, HELD[:1]),
        ("何?", ["日本語"]),
    ):
        assert 0 <= scorer.score(question, passages) <= 1


def test_what_is_asked_for_must_be_there() -> None:
    _, rarity = model()
    with_year, *_ = features(QUESTION, HELD, Vectors(embed), rarity)
    without, *_ = features(QUESTION, ["Zambezi bridge: The bridge over the Zambezi opened with a feast."], Vectors(embed), rarity)
    assert (with_year["hit"], without["hit"], without["nohit"]) == (1, 0, 1)
    assert Rarity({"the": 900}, 1000)("the") < Rarity({"the": 900}, 1000)("zambezi")


def test_rows_without_passages_that_carry_their_text_yield_nothing() -> None:
    scorer, inputs = Answerability(embed), {"question": QUESTION}
    assert scorer.run(inputs=inputs, outputs={"text": "", "passages": []}) is None
    assert scorer.run(inputs=inputs, outputs={"passages": [{"source": "a.md"}]}) is None
    assert scorer.run(inputs={"text": 1}, outputs={"passages": [{"text": "x"}]}) is None
    found = scorer.run(inputs=inputs, outputs={"passages": [{"title": "Zambezi", "text": "It opened in 1905."}]})
    assert found is not None
    assert 0 <= found <= 1


def test_the_model_that_is_shipped_says_what_it_reached() -> None:
    validation = json.loads((Path(__file__).parents[2] / "evals" / "answerability.json").read_text())["validation"]["nomiracl-en"]
    assert validation["accuracy"] >= 0.76
    assert validation["hallucination"] <= 0.25
    assert validation["error"] <= 0.2


def test_training_makes_a_model_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.train_answerability.REPEATS", 1)
    monkeypatch.setattr("evals.train_answerability.WITHIN", 3)
    for name, passages in (("relevant", HELD), ("non_relevant", OTHERS)):
        shown = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(passages, start=1))
        rows = [
            {"prompt": f"Say.\n\nQUESTION:\nWhen did the Zambezi bridge {number} open?\n\nCONTEXTS:\n{shown}\n\nOUTPUT:\n"}
            for number in range(20)
        ]
        (tmp_path / f"en.{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec, arrays = train(tmp_path, embed)
    reached = spec["validation"]["nomiracl-en"]
    assert reached["questions"] == 40
    assert reached["accuracy"] > 0.9
    made, rarity = Machine(spec, arrays), Rarity(spec["frequency"], spec["passages"])
    asked = "When did the Zambezi bridge 3 open?"
    assert made(*features(asked, HELD, Vectors(embed), rarity)) > 0.5
    assert made(*features(asked, OTHERS, Vectors(embed), rarity)) < 0.5
