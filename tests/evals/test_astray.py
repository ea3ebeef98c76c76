from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from evals.astray import ASTRAY, MOST, astray

PASSAGE = "Employees get 28 days of annual leave. Unused days expire on 31 March. Ann Lee approves requests within three days."
ASKED: list[str] = []


def vectors(texts: Sequence[str]) -> np.ndarray:
    """Nearer to the passages the less the text tells of bears."""
    ASKED.extend(texts)
    angles = np.array([0.5 if "bears" in text else 0.0 for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_words_are_counted_by_kind_and_by_where_they_stand() -> None:
    found = astray(PASSAGE, "Employees get 35 days of annual leave from Bob Stone.", vectors)
    assert tuple(found) == ASTRAY
    assert found["number_nowhere"] == MOST
    assert found["name_nowhere"] == MOST
    assert found["word_nowhere"] == found["word_elsewhere"] == found["number_elsewhere"] == 0


def test_what_stands_far_from_its_sentence_is_elsewhere() -> None:
    filled = " ".join(f"Rule {n} tells what employees get of annual leave in days." for n in range(5))
    found = astray(f"{filled} The office opens at 35 degrees.", "Employees get 35 days of annual leave.", vectors)
    assert (found["number_elsewhere"], found["number_nowhere"]) == (MOST, 0)


def test_a_word_that_takes_a_sentence_away_is_seen_when_it_is_left_out() -> None:
    away = astray(PASSAGE, "Employees get 28 days of bears.", vectors)
    assert away["without_new_mean"] == pytest.approx(1 - np.cos(0.5))
    none = astray(PASSAGE, "Employees get 28 days of holiday.", vectors)
    assert none["without_new_mean"] == pytest.approx(0)


@pytest.mark.parametrize("text", ["", "?!", "word " * 5_000, "n't isn't", "\ud800 \x00 日本", "1,000 isn't 1000's"])
def test_odd_texts_have_finite_values_and_a_sentence_is_tried_a_few_times(text: str) -> None:
    for passages in (PASSAGE, "", text):
        ASKED.clear()
        assert np.isfinite(list(astray(passages, text, vectors).values())).all()
        assert len(ASKED) <= 12 * (1 + 3 + 10)


def test_what_is_found_as_it_stands_asks_nothing_of_the_encoder() -> None:
    ASKED.clear()
    assert set(astray(PASSAGE, "Employees get 28 days of annual leave.", vectors).values()) == {0.0}
    assert ASKED == []
