"""Words of a text that the passages' sentences nearest to its own do not hold: how many of each kind, and what they do to it.

A word that changes what a sentence says takes it away from the sentence that it restates, and one that says the same otherwise
does not: so each is left out in turn, and it is seen whether the sentence comes nearer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from evals.support import CLAIMS, Word, evidence, nearest, sentences, words

KINDS = ("number", "name", "word")
TRIED = 10
"""Words of a sentence that are left out in turn."""
MOST = 0.2
"""Above which a share is no other: a text that has more is no summary, and what was learned of summaries says nothing of it."""
ASTRAY = (
    *(f"{kind}_{where}" for where in ("elsewhere", "nowhere") for kind in KINDS),
    "without_mean", "without_least", "without_new_mean", "without_new_least",
)  # fmt: skip
"""Shares of the text's numbers, names and other words that stand elsewhere in the passages, and nowhere in them; by how much the
similarity grows without a word, on average and least, of all such words and of those that stand nowhere."""


def astray(passages: str, text: str, vectors: Callable[[Sequence[str]], Any]) -> dict[str, float]:
    """The features of `ASTRAY` of a text against its passages; `vectors`: texts to unit vectors."""
    ground = evidence(passages)
    said, away = Counter[str](), Counter[tuple[str, bool]]()
    texts: list[str] = []
    tried: list[tuple[int, slice, list[bool]]] = []
    for sentence in sentences(text)[:CLAIMS]:
        content = [word for word in words(sentence) if word.content]
        near = nearest(ground, frozenset(word.stem for word in content))
        held = frozenset().union(*(ground.stems[place] for place in near))
        missing = [word for word in content if word.stem not in held]
        said.update(map(_kind, content))
        away.update((_kind(word), word.stem in ground.everything) for word in missing)
        if missing := missing[:TRIED]:
            start = len(texts)
            without = [(sentence[: word.start] + sentence[word.end :]).strip() or "." for word in missing]
            texts += [sentence, *(ground.sentences[place] for place in near), *without]
            first = start + 1 + len(near)
            tried.append((start, slice(start + 1, first), [word.stem not in ground.everything for word in missing]))
    found = {
        f"{kind}_{where}": min(MOST, away[kind, known] / max(1, said[kind]))
        for where, known in (("elsewhere", True), ("nowhere", False))
        for kind in KINDS
    }
    grown: list[tuple[float, bool]] = []
    if texts:
        made = vectors(texts)
        for start, near, new in tried:
            whole = float((made[near] @ made[start]).max())
            for place, nowhere in enumerate(new, start=near.stop):
                grown.append((float((made[near] @ made[place]).max()) - whole, nowhere))
    for name, values in (("without", [by for by, _ in grown]), ("without_new", [by for by, nowhere in grown if nowhere])):
        found[f"{name}_mean"] = sum(values) / len(values) if values else 0.0
        found[f"{name}_least"] = min(values, default=0.0)
    return found


def _kind(word: Word) -> str:
    return "number" if word.number else "name" if word.name else "word"
