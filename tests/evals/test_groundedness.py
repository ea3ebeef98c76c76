from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import evals
from evals.groundedness import Groundedness, model
from evals.support import Vectors, features, sentences, words
from evals.train_groundedness import train

PASSAGE = "Employees get 28 days of annual leave. Unused days expire on 31 March. Ann Lee approves requests within three days."


def embed(texts: Sequence[str]) -> np.ndarray:
    """Words hashed into places: similar where words are shared, which is all these tests need of an encoder."""
    found = np.zeros((len(texts), 384), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        row[[zlib.crc32(word.stem.encode()) % 384 for word in words(text)] or [0]] = 1
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def scorer() -> Groundedness:
    return Groundedness(embed)


@pytest.mark.parametrize(
    ("supported", "invented"),
    [
        ("Employees get 28 days of annual leave.", "Managers earn a bonus of 4000 euros in December."),
        ("Employees get 28 days of annual leave.", "Employees get 35 days of annual leave."),
        ("Ann Lee approves requests within three days.", "Bob Stone approves requests within three days."),
        ("Unused days expire on 31 March.", "I think you should really visit the beach, it is great!"),
    ],
)
def test_what_the_passages_say_is_more_grounded_than_what_they_do_not(
    scorer: Groundedness, supported: str, invented: str
) -> None:
    assert scorer.score(PASSAGE, supported) > scorer.score(PASSAGE, invented) + 0.05


def test_a_row_is_scored_by_its_passages_and_left_out_without(scorer: Groundedness) -> None:
    outputs = {"text": "Employees get 28 days of annual leave.", "passages": [{"quote": PASSAGE}]}
    value = scorer.run(outputs=outputs)
    assert value is not None
    assert 0.5 < value <= 1
    assert scorer.run(outputs={**outputs, "abstained": True}) is None
    assert scorer.run(outputs={**outputs, "passages": []}) is None
    assert scorer.run(outputs={**outputs, "text": " "}) is None


@pytest.mark.parametrize("text", ["", "?!", "a", "word " * 5_000, "ß" * 900, "no. " * 50, "1,000 isn't 1000's"])
def test_odd_texts_have_finite_features(text: str) -> None:
    for passages in (PASSAGE, "", text):
        found = features(passages, text, Vectors(embed))
        assert set(model().coefficients) == set(found)
        assert np.isfinite(list(found.values())).all()


def test_words_and_sentences() -> None:
    assert [word.text for word in words("It doesn't cost 1,000 – three's enough")] == [
        "it",
        "does",
        "n't",
        "cost",
        "1000",
        "3",
        "enough",
    ]
    assert sentences("One. Two!\nThree") == ["One.", "Two!", "Three"]


def test_training_needs_a_folder_alone_and_says_what_it_reached(tmp_path: Path) -> None:
    (tmp_path / "wice").mkdir()
    rows = [
        {"label": "supported" if n % 2 else "not_supported", "claim": f"Item {n} costs {n + (n % 2 == 0)} coins in shop {n}.",
         "evidence": [f"Item {n} costs {n} coins in shop {n}.", "Shops open late."]}
        for n in range(40)
    ]  # fmt: skip
    (tmp_path / "wice" / "oracle_claim_dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = train(tmp_path, embed)
    assert spec["validation"]["oracle_claim_dev"]["auroc"] > 0.9
    assert set(spec["coefficients"]) == set(features(PASSAGE, "Days.", Vectors(embed)))
    shipped = json.loads((Path(evals.__file__).parent / "groundedness.json").read_text())
    assert shipped["validation"]["begin_dev_wow"]["pairs"] == 430
