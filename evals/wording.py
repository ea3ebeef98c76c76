"""Word pieces of a text against those of passages: where a text restates what it was given, which pieces change its meaning.

Each piece is aligned with the one of the passages that it is nearest to, and a small network judges the two: whether this one
stands there instead of that one without support. `python -m evals.train_faithfulness` fits it on the pieces in which edited
summaries differ from their originals. Only its use is here; like the sentences' features it takes the encoder as a callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from evals.support import CLAIMS, NEGATIONS, STOP, Evidence, evidence, nearest, sentences, stems, words

Read = Callable[[Sequence[str]], tuple[Any, list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]]]
"""Blocking; an array of a unit vector for each text, and of each text its word pieces: numbers (n), first and last character (n x
2), vectors before and after all layers (n x dimensions)."""

SPELLED, MEANT = 0.4, 0.6
"""Shares of the vectors before and after all layers in how near two pieces are."""
KEPT = 2_000
"""Sentences whose pieces are remembered."""
POOLED = (
    "most", "next", "further", "mean", "all", "new_most", "new_next", "new_further", "new_mean", "new_all",
    "known_most", "known_next", "new", "share", "doubted", "refused", "length", "restated",
)  # fmt: skip


KINDS = ("spelled", "meant")
_PARTS = ("mean", "axes", "scale")
_OWN = ("centre", "scale", "hidden", "hidden_bias", "out", "out_bias")


@dataclass(frozen=True)
class Basis:
    """Principal components of a kind of vectors: `mean` (d), `axes` (d x k), `scale` (k)."""

    mean: np.ndarray
    axes: np.ndarray
    scale: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        return (vectors - self.mean) @ self.axes


@dataclass(frozen=True)
class Network:
    """Log-odds that a piece is unsupported: the mean of networks of one hidden layer, side by side, over scaled features."""

    spelled: Basis
    meant: Basis
    centre: np.ndarray
    scale: np.ndarray
    hidden: np.ndarray
    hidden_bias: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.maximum((x - self.centre) / self.scale @ self.hidden + self.hidden_bias, 0) @ self.out + self.out_bias

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored; eleven bits of precision are enough."""
        bases = {f"{kind}_{part}": getattr(getattr(self, kind), part) for kind in KINDS for part in _PARTS}
        own = {name: np.asarray(getattr(self, name)) for name in _OWN}
        return {name: array.astype(np.float16) for name, array in (bases | own).items()}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Network:
        held = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
        spelled, meant = (Basis(*(held[f"{kind}_{part}"] for part in _PARTS)) for kind in KINDS)
        return cls(spelled, meant, *(held[name] for name in _OWN))


@cache
def shipped() -> Network:
    """The network that Smalti comes with, read once."""
    with resources.files("evals").joinpath("faithfulness.npz").open("rb") as file, np.load(file) as arrays:
        return Network.of(dict(arrays))


@dataclass(frozen=True)
class Pieces:
    """A sentence taken apart: of each word piece its number, its first and last character, and its two projections."""

    numbers: np.ndarray
    spans: np.ndarray
    spelled: np.ndarray
    meant: np.ndarray

    @property
    def place(self) -> np.ndarray:
        """Unit vectors of which the product is how near two pieces are."""
        return np.concatenate([math.sqrt(SPELLED) * _unit(self.spelled), math.sqrt(MEANT) * _unit(self.meant)], axis=1)


class Wording:
    """Sentences' vectors and pieces by an encoder, each read once; the least recently read leave when there are too many."""

    def __init__(self, read: Read, spelled: Basis, meant: Basis) -> None:
        self._read, self._spelled, self._meant = read, spelled, meant
        self._known: dict[str, tuple[Any, Pieces]] = {}

    def _all(self, texts: Sequence[str]) -> list[tuple[Any, Pieces]]:
        found = {text: self._known[text] for text in texts if text in self._known}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            for text, vector, (numbers, spans, before, after) in zip(missing, *self._read(missing), strict=True):
                found[text] = vector, Pieces(numbers, spans, self._spelled(before), self._meant(after))
            self._known.update(found)
        while len(self._known) > KEPT:
            self._known.pop(next(iter(self._known)), None)
        return [found[text] for text in texts]

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """A unit vector for each text."""
        return np.stack([vector for vector, _ in self._all(texts)])

    def glance(self, texts: Sequence[str]) -> np.ndarray:
        """A unit vector for each text, none of which is remembered."""
        found = {text: self._known[text][0] for text in texts if text in self._known}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            found.update(zip(missing, self._read(missing)[0], strict=True))
        return np.stack([found[text] for text in texts])

    def pairs(self, passages: str, text: str) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
        """A row of features for each piece of `text`, and the sentences with the spans that they stand for."""
        ground = evidence(passages)
        cut = sentences(text)[:CLAIMS]
        near: set[int] = set()
        for sentence in cut:
            near.update(nearest(ground, frozenset(word.stem for word in words(sentence) if word.content)))
        found = [pieces for _, pieces in self._all([*cut, *(ground.sentences[place] for place in sorted(near))])]
        told, held = found[: len(cut)], [each for each in found[len(cut) :] if len(each.numbers)]
        if not held:
            return np.zeros((0, _width(self._spelled)), np.float32), []
        numbers = np.concatenate([each.numbers for each in held])
        there = Pieces(
            numbers, numbers, *(np.concatenate([getattr(each, kind) for each in held]) for kind in ("spelled", "meant"))
        )
        rows, shown = [], []
        for sentence, own in zip(cut, told, strict=True):
            if len(own.numbers):
                rows.append(self._rows(sentence, own, there, ground))
                shown.append((sentence, own.spans))
        return (np.concatenate(rows) if rows else np.zeros((0, _width(self._spelled)), np.float32)), shown

    def _rows(self, sentence: str, own: Pieces, there: Pieces, ground: Evidence) -> np.ndarray:
        close = own.place @ there.place.T
        at, n = close.argmax(1), len(own.numbers)
        every, top = np.arange(n), np.sort(close, axis=1)
        spelled, meant = _unit(own.spelled) @ _unit(there.spelled).T, _unit(own.meant) @ _unit(there.meant).T
        follows = np.diff(at) == 1
        cosines = np.stack(
            [
                spelled[every, at],
                meant[every, at],
                spelled.max(1),
                meant.max(1),
                top[:, -1],
                top[:, -1] - top[:, max(-2, -top.shape[1])],
            ],
            1,
        )
        flags = np.stack(
            [own.numbers == there.numbers[at], np.isin(own.numbers, there.numbers), _known(sentence, own.spans, ground),
             *_written(sentence, own.spans), np.r_[False, follows], np.r_[follows, False],
             np.r_[False, own.spans[1:, 0] == own.spans[:-1, 1]]], 1
        )  # fmt: skip
        parts: list[np.ndarray] = []
        for mine, theirs, basis in (
            (own.spelled, there.spelled[at], self._spelled),
            (own.meant, there.meant[at], self._meant),
        ):
            a, b = mine / basis.scale, theirs / basis.scale
            parts += [a, b, np.abs(a - b), a * b]
        return np.concatenate([*parts, flags, cosines], axis=1).astype(np.float32)


FLAGS, COSINES = 11, 6
NEW = FLAGS + COSINES - 1
"""Where, from the end, a row tells whether its piece is among those of the passages."""


def _width(basis: Basis) -> int:
    return 8 * basis.axes.shape[1] + FLAGS + COSINES


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)


def _known(sentence: str, spans: np.ndarray, ground: Evidence) -> list[bool]:
    """Whether the word that a piece is part of is in the passages."""
    found, start, known = [], 0, False
    ends = [*spans[1:, 0].tolist(), -1]
    for number, ((first, last), following) in enumerate(zip(spans.tolist(), ends, strict=True)):
        if number == 0 or first != spans[number - 1, 1]:
            start = number
        if last != following:
            known = all(stem in ground.everything for stem in stems(sentence[spans[start, 0] : last]))
            found += [known] * (number + 1 - len(found))
    return found


def _written(sentence: str, spans: np.ndarray) -> list[list[bool]]:
    """Of each piece: a number, capitalised within its sentence, a word that says little, no word, a negation."""
    texts = [sentence[first:last] for first, last in spans.tolist()]
    low = [text.lower() for text in texts]
    return [
        [text.isdigit() for text in texts],
        [first > 0 and text[:1].isupper() for text, first in zip(texts, spans[:, 0].tolist(), strict=True)],
        [text in STOP for text in low],
        [not text.isalnum() for text in texts],
        [text in NEGATIONS for text in low],
    ]


def pooled(rows: np.ndarray, doubts: np.ndarray) -> dict[str, float]:
    """What the log-odds of a text's pieces come to: of all, of those that are new, and of those that the passages have."""
    if not len(rows):
        return dict.fromkeys(POOLED, 0.0)
    new = rows[:, -NEW] == 0
    order, fresh, known = (np.sort(part)[::-1] for part in (doubts, doubts[new], doubts[~new]))
    low = np.array([-6.0])
    fresh, known = fresh if len(fresh) else low, known if len(known) else low
    fresh = np.concatenate([fresh, np.full(max(0, 4 - len(fresh)), fresh[-1] - 1)])
    known = np.concatenate([known, np.full(2, known[-1])])
    values = (
        order[0], order[1:3].mean() if len(order) > 1 else order[0],
        order[3:7].mean() if len(order) > 3 else order[-1], order.mean(),
        np.logaddexp.reduce(order), fresh[0], fresh[1], fresh[2:4].mean(), fresh.mean(), np.logaddexp.reduce(2 * fresh) / 2,
        known[0], known[1:3].mean(), math.log1p(new.sum()), new.mean(), math.log1p((doubts > -1).sum()),
        math.log1p((doubts > 0).sum()), math.log(len(doubts)), (new & (doubts < -1.5)).mean(),
    )  # fmt: skip
    return dict(zip(POOLED, map(float, values), strict=True))
