from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evals
from evals.faithfulness import Faithfulness, Weighed
from evals.support import words
from evals.train_faithfulness import train
from evals.train_wording import differs
from evals.wording import FLAGS, POOLED, Basis, Network, Wording, pooled, shipped
from retrieval import Encoder

PASSAGE = "Employees get 28 days of annual leave. Unused days expire on 31 March. Ann Lee approves requests within three days."


def read(texts: Sequence[str]) -> tuple[np.ndarray, list[Any]]:
    """Words hashed into places, each a piece: similar where words are shared, which is all that most of these tests need."""
    vectors, pieces = np.zeros((len(texts), 384), dtype=np.float32), []
    for vector, text in zip(vectors, texts, strict=True):
        hashes = np.array([zlib.crc32(word.stem.encode()) % 384 for word in words(text)], int)
        vector[hashes if len(hashes) else [0]] = 1
        spans = np.array([(0, 1)] * len(hashes), int).reshape(-1, 2)
        pieces.append((hashes, spans, np.eye(384, dtype=np.float32)[hashes], np.eye(384, dtype=np.float32)[hashes]))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), pieces


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    made = Encoder.load(tmp_path_factory.getbasetemp() / "encoder", threads=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def scorer(encoder: Encoder) -> Faithfulness:
    return Faithfulness(encoder.read)


@pytest.mark.parametrize(
    ("kept", "changed"),
    [
        ("Employees get 28 days of annual leave.", "Employees get 35 days of monthly leave."),
        ("Ann Lee approves requests within three days.", "Ann Lee refuses requests within three days."),
        ("Unused days expire on 31 March.", "Unused days never expire before December."),
    ],
)
def test_a_summary_that_changes_what_is_said_is_less_faithful(scorer: Faithfulness, kept: str, changed: str) -> None:
    assert scorer.score(PASSAGE, kept) > scorer.score(PASSAGE, changed) + 0.02


def test_a_row_is_scored_by_its_passages_and_left_out_without(scorer: Faithfulness) -> None:
    outputs = {"text": "Employees get 28 days of annual leave.", "passages": [{"quote": PASSAGE}]}
    assert 0 <= (scorer.run(outputs=outputs) or -1) <= 1
    assert scorer.run(outputs={**outputs, "passages": []}) is None
    assert scorer.run(outputs={**outputs, "abstained": True}) is None


@pytest.mark.parametrize("text", ["", "?!", "word " * 5_000, "ß" * 900, "1,000 isn't 1000's", "\ud800 \x00 日本"])
def test_odd_texts_have_a_probability(scorer: Faithfulness, text: str) -> None:
    for passages in (PASSAGE, "", text):
        assert 0 <= scorer.score(passages, text) <= 1


def test_a_piece_is_held_against_the_one_that_stands_in_its_place(encoder: Encoder) -> None:
    network = shipped()
    rows, shown = Wording(encoder.read, network.spelled, network.meant).pairs(PASSAGE, "Employees get 35 days of yearly leave.")
    (sentence, spans), *_ = shown
    new = rows[:, -FLAGS - 5] == 0  # not among the passages' pieces
    assert [sentence[first:last] for first, last in spans[new].tolist()] == ["35", "yearly"]
    found = pooled(rows, network(rows))
    assert tuple(found) == POOLED
    assert found["new"] == pytest.approx(np.log(3))
    assert set(pooled(rows[:0], np.zeros(0)).values()) == {0.0}


def test_pieces_that_differ_from_the_original() -> None:
    spans = np.array([(0, 3), (4, 7), (8, 13), (14, 18)])
    assert differs("The cat never left", "The dog never left", [("The cat never left", spans)]).tolist() == [
        False,
        True,
        False,
        False,
    ]
    assert differs("The cat never left", "The cat has never left", [("The cat never left", spans)]).tolist() == [
        False,
        True,
        True,
        False,
    ]


def test_what_is_stored_of_a_network_is_the_network() -> None:
    basis, draw = Basis(np.zeros(4), np.eye(4)[:, :2], np.ones(2)), np.random.default_rng(0)
    made = Network(
        basis, basis, np.zeros(3), np.ones(3), draw.normal(size=(3, 5)), np.zeros(5), draw.normal(size=5), np.asarray(0.5)
    )
    x = draw.normal(size=(7, 3))
    assert Network.of(made.arrays())(x) == pytest.approx(made(x), abs=0.01)


def test_training_needs_a_folder_alone_and_says_what_it_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.train_wording.NETWORKS", 1)
    (tmp_path / "wice").mkdir()
    (tmp_path / "summedits").mkdir()
    rows = [
        {"label": "supported" if n % 2 else "not_supported", "claim": f"Item {n} costs {n + (n % 2 == 0)} coins in shop {n}.",
         "evidence": [f"Item {n} costs {n} coins in shop {n}.", "Shops open late."]}
        for n in range(60)
    ]  # fmt: skip
    (tmp_path / "wice" / "oracle_claim_dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit, match="at least three domains"):
        train(tmp_path, read)
    for domain in ("news", "mail", "talk"):
        edits = []
        for n in range(32):
            told = {"doc": f"The {domain} of shop {n // 4} is that coins fell by {n}.", "original_summary": f"Coins fell by {n}."}
            edits.append({**told, "summary": f"Coins {'fell' if n % 2 else 'rose'} by {n}.", "label": n % 2})
        (tmp_path / "summedits" / f"summedits_{domain}.json").write_text(json.dumps(edits))
    spec, arrays = train(tmp_path, read)
    assert spec["validation"]["summedits_news"]["balanced_accuracy"] > 0.9
    made = Faithfulness(read, Weighed(json.loads(json.dumps(spec))), Network.of(arrays))
    assert made.score("The news of shop 3 is that coins fell by 13.", "Coins fell by 13.") > 0.5
    assert made.score("The news of shop 3 is that coins fell by 13.", "Coins rose by 13.") < 0.5


def test_the_model_that_is_shipped_says_what_it_reached() -> None:
    held = json.loads((Path(evals.__file__).parent / "faithfulness.json").read_text())["validation"]
    assert np.mean([each["balanced_accuracy"] for each in held.values()]) > 0.65
