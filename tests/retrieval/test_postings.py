from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from retrieval import memory, postings, words
from retrieval.memory import Memory, Page, best

RNG = np.random.default_rng(11)


class Texts:
    """Rows of words drawn by Zipf's law, in one language, without vectors."""

    def __init__(self, count: int) -> None:
        drawn = np.minimum(RNG.zipf(1.4, (count, 30)), 400)
        self.texts = [" ".join(f"w{number}q" for number in row) for row in drawn]
        self.gone: set[int] = set()

    def seqs(self) -> np.ndarray:
        return np.array([i + 1 for i in range(len(self.texts)) if i not in self.gone])

    def frozen(self) -> Any:
        return nullcontext(self)

    def pages(self, after: int) -> Iterator[Page]:
        for at in range(after, len(self.texts), 500):
            part = [i for i in range(at, min(at + 500, len(self.texts))) if i not in self.gone]
            held = [words.encode(self.texts[i], f"w{i % 7}q", 0) if i % 50 else None for i in part]
            yield Page([i + 1 for i in part], [str(i) for i in part], [None] * len(part), held, [{}] * len(part))


@pytest.fixture(params=[(0, 32), (0, 2), (0, 0), (1, 32)])
def texts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Texts:
    monkeypatch.setattr(postings, "PART", 5000)
    many, columns = request.param
    monkeypatch.setattr(memory, "MANY", many)
    monkeypatch.setattr(memory, "CHEAP", 0)
    monkeypatch.setattr(postings, "COLUMNS", columns)
    return Texts(3000)


def test_words_find_the_same_rows_whether_common_terms_are_gone_through_or_looked_up(texts: Texts) -> None:
    rows = Memory(texts, 0).snapshot()
    assert len(rows.postings) > 2
    for share in (None, 0.5, 0.01, 0.0):
        allowed = None if share is None else RNG.random(rows.size) < share
        for _ in range(40):
            asked = [f"w{number}q" for number in np.minimum(RNG.zipf(1.2, 6), 400)]
            spans = rows.spans(list(dict.fromkeys(term for word in asked for term in words.terms(word, 0))))
            exact = rows.lexical(spans)
            held = np.flatnonzero(exact > 0 if allowed is None else (exact > 0) & allowed)
            right = held[best(exact[held], 20)]
            others = RNG.choice(rows.size, 30)
            slots, scores, further = rows.worded(spans, 20, allowed, others)
            np.testing.assert_allclose(further, exact[others], rtol=1e-5)
            np.testing.assert_allclose(scores, exact[right], rtol=1e-5)
            np.testing.assert_allclose(exact[slots], scores, rtol=1e-5)
            assert len(set(slots.tolist())) == len(right)
            np.testing.assert_allclose(rows.lexical_of(spans, slots), scores, rtol=1e-5)


def test_parts_that_grow_weigh_as_one_that_was_read_at_once(texts: Texts) -> None:
    whole, texts.texts = texts.texts, texts.texts[:1000]
    grown = Memory(texts, 0)
    grown.snapshot()
    for count in (1001, 1002, 1500, 3000):
        texts.texts = whole[:count]
        rows = grown.refresh()
    assert len(rows.postings) < 8
    counted = [np.concatenate([p.counts[a:b] for p, a, b in parts]).sum() for _, parts in rows.spans(words.terms("w1q", 0))]
    again = [
        np.concatenate([p.counts[a:b] for p, a, b in parts]).sum()
        for _, parts in Memory(texts, 0).snapshot().spans(words.terms("w1q", 0))
    ]
    assert counted == again
    assert rows.lengths.tolist() == Memory(texts, 0).snapshot().lengths.tolist()


def test_many_terms_are_read_as_one_by_one() -> None:
    stored = [words.encode("Glas und Glas", "Das Haus", 1), b"", words.encode("", "", 0), words.encode("blue glass", "", 0)]
    many = words.decode_many(stored)
    assert many.languages.tolist() == [1, -1, 0, 0]
    one = [words.decode(each) for each in stored if each]
    for name in ("ids", "text", "context"):
        assert getattr(many, name).tolist() == np.concatenate([getattr(each, name) for each in one]).tolist()
    assert many.sizes.tolist() == [len(one[0].ids), 0, 0, 2]
