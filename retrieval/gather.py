"""What several searches found, as one answer: on one scale, and with neighbouring passages joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from retrieval import words
from retrieval.rank import WEIGHT, convex
from retrieval.types import Passage

GAP = 16
"""Characters, all of them white space, that may lie between two passages that are joined."""


def fused(found: Sequence[Sequence[Passage]], k: int, query: str = "") -> list[Passage]:
    """The `k` best of what several indexes found for a question, best first; of one index what it found.

    Scores of two indexes are not comparable; the similarities and BM25 scores they are made of are, as far as the indexes share
    an encoder. They are brought to one scale over all candidates. An index that is searched by words alone gives no similarities.
    As within an index, similarity counts for less where the question is made of codes and identifiers.
    """
    several = [passages for passages in found if passages]
    if len(several) < 2:
        return list(several[0][:k]) if several else []
    every = [passage for passages in several for passage in passages]
    similar = np.array([passage.similarity for passage in every])
    worded = np.repeat([not any(p.similarity for p in passages) for passages in several], [len(p) for p in several])
    if not worded.all():
        similar[worded] = similar[~worded].min()
    lexical = np.array([passage.lexical for passage in every])
    scores = convex(similar, lexical, WEIGHT * (1 - _named(query, every, int(lexical.argmax()))))
    order = np.argsort(-scores, kind="stable")[:k]
    return [replace(every[at], score=float(scores[at])) for at in order]


def _named(query: str, passages: Sequence[Passage], best: int) -> float:
    """Share of a question's rarity that codes and identifiers are which the best passage by words holds, and few others do."""
    number = words.language(query)
    asked = [word for word in words.WORD.findall(query) if word.lower() not in words.STOPWORDS]
    held = [words.counted(" ".join((*passage.heading, passage.text)), number) for passage in passages]
    lead = whole = 0.0
    for term, naming in {term: words.naming(word) for word in asked for term in words.terms(word, number)}.items():
        count = sum(term in each for each in held)
        rare = math.log1p((len(held) - count + 0.5) / (count + 0.5)) if count else 0.0
        whole += rare
        lead += rare if naming and term in held[best] and 2 * count <= len(held) else 0.0
    return lead / whole if whole else 0.0


def merged(passages: Sequence[Passage], between: Callable[[Passage, Passage], str]) -> list[Passage]:
    """Passages with those that follow each other in a document's section joined, each in the place of its best part.

    `document.text[start:end] == text` holds for what is joined too; id, headings and scores are those of the best part.

    Parameters
    ----------
    between: the document's text between the first's end and the second's start, asked for where that is at most `GAP` long.
    """
    joined: list[Passage | None] = []
    for passage in passages:
        here, place = passage, len(joined)
        for at, other in enumerate(joined):
            if other is None:
                continue
            # What it was joined with first is the better one of all.
            union = _union(other, here, between) if place == len(joined) else _union(here, other, between)
            if union is not None:
                here, joined[at], place = union, None, min(place, at)
        if place < len(joined):
            joined[place] = here
        else:
            joined.append(here)
    return [passage for passage in joined if passage is not None]


def _union(better: Passage, other: Passage, between: Callable[[Passage, Passage], str]) -> Passage | None:
    """Both as one; None where they are of different sections, or words lie between them."""
    if (better.index, better.document_id, better.heading) != (other.index, other.document_id, other.heading):
        return None
    first, second = (better, other) if better.start <= other.start else (other, better)
    gap = ""
    if second.start > first.end:
        gap = between(first, second) if second.start - first.end <= GAP else "far"
        if gap.strip():
            return None
    text = first.text + gap + second.text[max(first.end - second.start, 0) :]
    return replace(better, text=text, start=first.start, end=first.start + len(text), page=first.page)
