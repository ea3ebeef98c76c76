"""How well texts are put in order for a question, and which texts are likely mistaken for its answer. Numpy and scikit-learn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

CUT = 10


def ranking_metrics(ranks: np.ndarray) -> dict[str, float]:
    """`ndcg_at_10`, `mrr_at_10`, `hit_at_1`, `recall_at_10` of the places, from 1, of each question's one right text."""
    within = ranks <= CUT
    return {
        "ndcg_at_10": float(np.where(within, 1 / np.log2(ranks + 1), 0).mean()),
        "mrr_at_10": float(np.where(within, 1 / ranks, 0).mean()),
        "hit_at_1": float((ranks == 1).mean()),
        "recall_at_10": float(within.mean()),
    }


def ranks_of(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The place of the right column in each row of scores; among equals it comes last, so that a constant is no help."""
    own = scores[np.arange(len(scores)), right]
    return 1 + (scores > own[:, None]).sum(1) + (scores == own[:, None]).sum(1) - 1


class Words:
    """Texts compared by their words: TF-IDF, its logarithm of counts. The baseline, and what finds hard negatives."""

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._words = TfidfVectorizer(sublinear_tf=True)
        try:
            self._matrix: Any = self._words.fit_transform(texts)
        except ValueError:  # no text has a word in it
            self._matrix = None
        self._count = len(texts)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """(queries, texts) cosines."""
        if self._matrix is None:
            return np.zeros((len(queries), self._count))
        return (self._words.transform(queries) @ self._matrix.T).toarray()


def mined(queries: Sequence[str], right: Sequence[int], texts: Sequence[str], count: int, seed: int) -> list[list[int]]:
    """For each query `count` texts other than its right one: half those most like it by their words, the others drawn."""
    words, draw = Words(texts), random.Random(seed)
    same: dict[str, list[int]] = {}
    for query, text in zip(queries, right, strict=True):
        same.setdefault(query, []).append(text)
    found: list[list[int]] = []
    for at in range(0, len(queries), 256):  # whole matrices of large collections would not fit
        for query, scores in zip(queries[at : at + 256], words.scores(queries[at : at + 256]), strict=True):
            wrong = set(same[query])
            best = np.argsort(-scores, kind="stable")[: count // 2 + len(wrong)]
            hard = [int(i) for i in best if int(i) not in wrong][: (count + 1) // 2]
            left = min(count, len(texts) - len(wrong)) - len(hard)
            taken = wrong | set(hard)
            while left > 0:
                if (other := draw.randrange(len(texts))) not in taken:
                    taken.add(other)
                    hard.append(other)
                    left -= 1
            found.append(hard)
    return found
