"""What a question means and the words it is in, weighed against each other for each question."""

from __future__ import annotations

import random

import numpy as np
import pytest

from retrieval import Encoder, words
from retrieval.memory import Memory, Snapshot
from retrieval.rank import reach
from retrieval.search import search
from tests.bench.quality import Held

_DRAW = random.Random(1)
_CODES = [f"{_DRAW.choice('KLM')}T-{2000 + number}/{_DRAW.randrange(9)}" for number in range(150)]
_PARTS, _FAULTS = ("valve", "pump", "sensor", "relay"), ("leaks", "is stuck", "overheats", "is loud")
CASES = [
    f"Ticket {code}. The {_DRAW.choice(_PARTS)} in hall {hall} {_DRAW.choice(_FAULTS)}. Told by the night shift; see the manual."
    for hall, code in enumerate(_CODES)
]
OTHERS = [
    "The train to the coast is late.",
    "Bread is baked from flour and water.",
    "Glass melts in the furnace of the workshop.",
]


@pytest.fixture(scope="module")
def encoder_rows(encoder: Encoder) -> tuple[Snapshot, list[bytes]]:
    vectors, pieces = encoder.embed_pieces([*CASES, *OTHERS])
    docs = {str(i): ("", text) for i, text in enumerate([*CASES, *OTHERS])}
    return Memory(Held(docs, vectors), encoder.dimension).snapshot(), pieces


def first(encoder: Encoder, held: tuple[Snapshot, list[bytes]], question: str) -> str:
    rows, pieces = held
    asked = encoder.ask(question)
    hits = search(rows, question, asked.vector, 1, asked=asked, pieces=lambda slots: [pieces[slot] for slot in slots])
    return [*CASES, *OTHERS][int(rows.keys[hits[0].slot])]


def test_a_record_is_found_by_its_code_and_a_text_by_what_it_means(
    encoder: Encoder, encoder_rows: tuple[Snapshot, list[bytes]]
) -> None:
    asked = zip(_CODES, CASES, strict=True)
    missed = [code for code, case in asked if first(encoder, encoder_rows, f"what about {code}?") != case]
    assert missed == []
    assert first(encoder, encoder_rows, "Which railway journey takes longer than planned?") == OTHERS[0]
    assert first(encoder, encoder_rows, "What do loaves consist of?") == OTHERS[1]


def test_how_far_the_nearest_stands_out_is_the_same_by_cosines_and_by_distances() -> None:
    cosines = np.linspace(0.6, 0.3, 150, dtype=np.float32)
    scores = 1 / (1 + (2 - 2 * cosines))
    assert 0 < reach(cosines) < 1
    assert reach(scores, distances=True) == pytest.approx(reach(cosines), rel=1e-3)
    assert reach(np.array([0.9, 0.2])) == 1
    assert reach(np.full(100, 0.5)) == 0, "of rows that are all as near none is preferred by it"
    assert reach(np.array([])) == 0


@pytest.mark.parametrize("word", ["AX-12", "ERR_TIMEOUT", "getUser", "std::move", "E501", "2004", "os.path"])
def test_codes_and_identifiers_name_something(word: str) -> None:
    assert words.naming(word)


@pytest.mark.parametrize("word", ["glass", "Glass", "NATO", "étude", "東京"])
def test_words_of_a_language_do_not(word: str) -> None:
    assert not words.naming(word)
