from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from retrieval import codes
from retrieval.memory import CODED, Memory, Page, best, highest
from retrieval.search import search

RNG = np.random.default_rng(3)


class Rows:
    """Vectors in clusters, as a source of rows."""

    def __init__(self, count: int) -> None:
        centres = RNG.standard_normal((40, 48)).astype(np.float32)
        self.vectors = centres[RNG.integers(0, 40, count)] + 0.7 * RNG.standard_normal((count, 48)).astype(np.float32)
        self.gone: set[int] = set()

    def seqs(self) -> np.ndarray:
        return np.array([i + 1 for i in range(len(self.vectors)) if i not in self.gone])

    def frozen(self) -> Any:
        return nullcontext(self)

    def pages(self, after: int) -> Iterator[Page]:
        for at in range(after, len(self.vectors), 500):
            part = range(at, min(at + 500, len(self.vectors)))
            vectors = [self.vectors[i].tobytes() for i in part]
            yield Page([i + 1 for i in part], [str(i) for i in part], vectors, [None] * len(part), [{}] * len(part))


@pytest.mark.parametrize("signed", [CODED, 10**6])
@pytest.mark.parametrize("distance", [False, True])
def test_a_large_index_finds_the_nearest_rows_and_their_exact_scores(
    distance: bool, signed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "SIGNED", signed)
    monkeypatch.setattr(codes, "SHORT", 20)  # 48 signs tell less than 384
    source = Rows(CODED + 2000)
    if not distance:
        source.vectors /= np.linalg.norm(source.vectors, axis=1, keepdims=True)
    memory = Memory(source, 48, distance=distance)
    memory.snapshot()
    source.vectors = np.concatenate((source.vectors, source.vectors[:900] * np.float32(1 if not distance else 1.01)))
    source.gone = set(range(100, 200))
    rows = memory.refresh()
    assert rows.codes is not None
    assert rows.codes.telling == (signed == CODED)
    for share in (None, 0.9, 0.05, 0.0):
        mask = None if share is None else RNG.random(rows.size) < share
        allowed = rows.alive if mask is None else rows.alive & mask
        recalls = []
        for vector in source.vectors[RNG.integers(0, rows.size, 30)]:
            exact = np.where(allowed, rows.similarities(vector), -np.inf)
            right = set(np.argsort(-exact, kind="stable")[: min(10, int(allowed.sum()))].tolist())
            found = search(rows, "", vector, 10, "dense", mask=mask, collapse=False)
            assert all(allowed[hit.slot] and hit.score == pytest.approx(exact[hit.slot], abs=1e-5) for hit in found)
            assert len(found) == len(right)
            recalls.append(len(right & {hit.slot for hit in found}) / max(len(right), 1) if right else 1.0)
        assert np.mean(recalls) > 0.99


def test_vectors_whose_signs_tell_nothing_are_compared_by_their_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "SIGNED", CODED)
    source = Rows(CODED + 10)
    source.vectors = np.abs(source.vectors)
    source.vectors /= np.linalg.norm(source.vectors, axis=1, keepdims=True)
    rows = Memory(source, 48).snapshot()
    assert rows.codes is not None
    assert not rows.codes.telling
    for vector in source.vectors[:20]:
        right = np.argsort(-rows.similarities(vector), kind="stable")[:10]
        assert [hit.slot for hit in search(rows, "", vector, 10, "dense", collapse=False)] == right.tolist()


def test_rows_that_are_all_the_same_are_chosen_in_order() -> None:
    same = codes.Codes.empty(48).extended(np.ones((500, 48), np.float32), 500)
    assert same.alike(np.ones(48, np.float32), 40).tolist() == sorted(same.alike(np.ones(48, np.float32), 40).tolist())
    assert len(same.alike(np.ones(48, np.float32), 40)) == 40
    assert same.alike(np.ones(48, np.float32), 600).tolist() == list(range(500))


def test_products_of_bits_are_exact() -> None:
    bits, wanted = RNG.integers(0, 2, (3000, 384)).astype(np.uint8), RNG.integers(-127, 128, (9, 384)).astype(np.int8)
    assert (codes.products(np.packbits(bits, axis=1), wanted) == bits.astype(int) @ wanted.T.astype(int)).all()
    extremes = np.full((2, 384), 127, np.int8) * np.array([[1], [-1]], np.int8)
    assert codes.products(np.full((1, 48), 255, np.uint8), extremes).tolist() == [[127 * 384, -127 * 384]]


def test_a_vector_of_zeros_is_no_trouble() -> None:
    source = Rows(CODED + 10)
    source.vectors[5] = 0
    rows = Memory(source, 48).snapshot()
    assert len(search(rows, "", np.zeros(48, np.float32), 10, "dense", collapse=False)) == 10


@pytest.mark.parametrize("distinct", [3, 10**6])
@pytest.mark.parametrize("size", [1, 7, 400, 5003])
def test_the_highest_of_equal_scores_are_the_first(size: int, distinct: int) -> None:
    scores = RNG.integers(0, distinct, size).astype(np.float32)
    scores[RNG.random(size) < 0.1] = -np.inf
    order = np.argsort(-scores, kind="stable")
    for count in (1, 10, 40, 399, size):
        assert highest(scores, count).tolist() == sorted(order[:count].tolist())
        assert best(scores, count).tolist() == [i for i in order[:count].tolist() if np.isfinite(scores[i])]
