"""A question to rows of a snapshot: similarity and BM25 of every candidate, fused; near-duplicates left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from retrieval import late, words
from retrieval.codes import dots
from retrieval.guard import both
from retrieval.memory import Snapshot, Spans
from retrieval.rank import WEIGHT, convex, reach

MODES = ("hybrid", "dense", "lexical")

DEPTH = 100
"""Rows of each ranking that are fused."""
RRF = 60
"""Cormack, Clarke and Büttcher 2009, https://doi.org/10.1145/1571941.1572114."""
STORED = 4_000_000
"""Rows from which the nearest come from the vector store where nothing is filtered; fewer, or filtered ones, are scanned here."""
MAX_QUERY = 4000
"""Characters of a question that are looked at."""
MAX_TERMS = 48
TWIN = 0.995
"""Similarity from which two rows with the same words are one."""

Nearest = Callable[[np.ndarray, int], Sequence[tuple[str, float]] | None]
"""The vector store's answer: keys and similarities of the rows nearest to a vector; None where it cannot be asked."""
Pieces = Callable[[Sequence[int]], Sequence[bytes] | None]
"""The word pieces of rows, given by slot, see `retrieval.late`; None where there are none."""


_NOTHING = (np.empty(0, np.int32), np.empty(0, np.float32))


@dataclass(frozen=True, slots=True)
class Hit:
    """A row found. `rank_dense` and `rank_lexical` are its places in the two rankings, 0 where it is in neither's depth."""

    slot: int
    score: float
    similarity: float
    lexical: float
    rank_dense: int = 0
    rank_lexical: int = 0


def tidy(query: str) -> str:
    """The question as it is searched: no NUL, no lone surrogate, of bounded length."""
    return query[:MAX_QUERY].replace("\x00", " ").encode("utf-8", "replace").decode().strip()


def terms(query: str, languages: Sequence[int], *, naming: bool = False) -> list[int]:
    """What a question asks for, stemmed as the rows' languages are; words without meaning only where there is nothing else.

    With `naming` the terms of its codes and identifiers alone.
    """
    found = words.WORD.findall(query)
    kept = [word for word in found if word.lower() not in words.STOPWORDS] or found
    kept = [word for word in kept if words.naming(word)] if naming else kept
    spoken = words.language(query)
    # In the language it is asked in where rows are, else in the index's commonest.
    among = [spoken] if spoken in languages else list(languages[:2]) or [0]
    return list(dict.fromkeys(term for word in kept for number in among for term in words.terms(word, number)))[:MAX_TERMS]


def rarity(rows: Snapshot, query: str, spans: Sequence[tuple[int, int]], seen: np.ndarray | None = None) -> np.ndarray:
    """What each word piece of a question weighs: how rare its word is among the rows, 0 for what is no word."""
    spoken = words.language(query)
    number = spoken if spoken in rows.languages else next(iter(rows.languages), 0)
    weights = np.zeros(len(spans))
    asked = [(word, words.terms(word[0], number)) for word in words.WORD.finditer(query)]
    worth = iter(rows.rarities([term for _, found in asked for term in found], seen))
    at = 0
    for word, found in asked:
        mean = sum(islice(worth, len(found))) / max(len(found), 1)
        while at < len(spans) and spans[at][0] < word.end():
            if spans[at][1] > word.start():
                weights[at] = mean
            at += 1
    return weights


def meaning(rows: Snapshot, query: str, spans: Spans, near: np.ndarray, worded: np.ndarray, seen: np.ndarray | None) -> float:
    """How much of its usual weight what a question means has beside its words, 0 to 1.

    Less where no row stands out by similarity (`near`, best first), and where the question is made of codes and identifiers that
    the best row by words (`worded`, best first) holds and most of the others do not.
    """
    if not len(worded):
        return 1.0
    behind, lead = min(10, len(near) // 10), 0.0
    compared = worded[[0, behind]] if behind < len(worded) else worded[:1]
    for span in rows.spans(terms(query, rows.languages, naming=True), seen) if behind else ():
        held = rows.lexical_of([span], compared) > 0
        lead += span[0] * (float(held[0]) - float(held[1:].any()))
    share = min(max(lead, 0.0) / sum(rare for rare, _ in spans), 1.0)
    return reach(near, distances=rows.squares is not None) * (1 - share)


def search(
    rows: Snapshot,
    query: str,
    vector: np.ndarray | None,
    k: int,
    mode: str = "hybrid",
    *,
    mask: np.ndarray | None = None,
    seen: np.ndarray | None = None,
    nearest: Nearest | None = None,
    fusion: str = "convex",
    collapse: bool = True,
    diversity: float = 0.0,
    asked: late.Asked | None = None,
    pieces: Pieces | None = None,
) -> list[Hit]:
    """The `k` best rows, best first. Their score is the fused one, or in the modes that do not fuse similarity or BM25.

    Parameters
    ----------
    query: searched by its words; "" to search by `vector` alone.
    vector: the question's, of unit length where similarity is a cosine; None to search words alone.
    mask: which rows may be found; None for all.
    seen: which rows there are for who asks, see `retrieval.guard`: how rare a word is depends on no other; None for all.
    nearest: the vector store, asked where the index is large and nothing is filtered.
    fusion: `convex` or `rrf`.
    collapse: whether of rows that are all but equal only the first is given.
    asked, pieces: the question's word pieces and where the rows' are: the best rows of the fused ranking are compared by them.
    diversity: share of the choice, 0 to 1, that goes to being unlike what was chosen before, instead of to the score.
    """
    if rows.live == 0:
        return []
    mask = both(mask, seen)
    allowed = None if rows.whole and mask is None else rows.alive if mask is None else rows.alive & mask
    # Where nothing is fused only what is given is needed, and what may be given in the place of a twin.
    depth = max(DEPTH, 2 * k) if mode != "dense" else (5 if diversity else 2) * k + 20
    spans = rows.spans(terms(query, rows.languages), seen) if query and mode != "dense" else []
    similar = vector if mode != "lexical" else None
    near, cosines = _dense(rows, similar, allowed, mask is None, depth, nearest) if similar is not None else _NOTHING
    worded, fitting, further = rows.worded(spans, depth, allowed, near)
    if mode == "dense":
        found = Ranked(near, cosines, cosines, None if query else further)
    elif mode == "lexical" or similar is None or not len(near):
        found = Ranked(worded, fitting, None, fitting)
    else:
        meant = meaning(rows, query, spans, cosines, worded, seen)
        found = _fuse(rows, (near, cosines, further), (worded, fitting), similar, None if fusion == "rrf" else meant)
        if len(worded):
            found = found.at(np.argsort(-found.score, kind="stable"))
        if len(worded) and asked is not None and pieces is not None and fusion == "convex":
            found = _compared(rows, query, asked, pieces, found, seen, late.SHARE * meant)
    if collapse:
        found = found.at(_distinct(rows, found.slots[: 2 * k + 20], k))
    if diversity and len(found.slots) > 1 and rows.matrix.shape[1]:
        found = found.at(_diverse(rows, found.slots[: 5 * k + 20], found.score[: 5 * k + 20], k, diversity))
    slots, score, cosine, lexical = found.at(slice(k))
    if cosine is None:
        cosine = rows.similarities(vector, slots) if vector is not None else np.zeros(len(slots))
    if lexical is None:
        lexical = rows.lexical_of(rows.spans(terms(query, rows.languages), seen), slots)
    at_dense, at_lexical = ({slot: i for i, slot in enumerate(ranking.tolist(), 1)} for ranking in (near, worded))
    return [
        Hit(slot, fused, similarity, bm25, at_dense.get(slot, 0), at_lexical.get(slot, 0))
        for slot, fused, similarity, bm25 in zip(slots.tolist(), score.tolist(), cosine.tolist(), lexical.tolist(), strict=True)
    ]


class Ranked(NamedTuple):
    """Rows with their score; their similarity and BM25 where they are known already."""

    slots: np.ndarray
    score: np.ndarray
    similar: np.ndarray | None
    lexical: np.ndarray | None

    def at(self, places: np.ndarray | slice) -> Ranked:
        """The rows at some places, in their order."""
        return Ranked(*(None if each is None else each[places] for each in self))  # type: ignore[arg-type]


def _dense(
    rows: Snapshot, vector: np.ndarray, allowed: np.ndarray | None, unfiltered: bool, depth: int, nearest: Nearest | None
) -> tuple[np.ndarray, np.ndarray]:
    """Slots and similarities of the nearest rows: scanned, or of a very large index from the store."""
    found = nearest(vector, depth) if unfiltered and nearest is not None and rows.live > STORED else None
    if found is None:
        return rows.nearest(vector, depth, allowed)
    slot_of = rows.slot_of()
    # The store may name a row that has just been replaced.
    slots = np.array([slot_of[key] for key, _ in found if key in slot_of], np.int32)
    scores = rows.similarities(vector, slots)
    order = np.argsort(-scores, kind="stable")[:depth]
    return slots[order], scores[order]


def _fuse(
    rows: Snapshot,
    nearest: tuple[np.ndarray, np.ndarray, np.ndarray],
    worded: tuple[np.ndarray, np.ndarray],
    vector: np.ndarray,
    meant: float | None,
) -> Ranked:
    """Every row of either ranking with its fused score, by reciprocal ranks where `meant` is None, see `meaning`.

    Both scores are exact, whichever ranking a row is from.
    """
    known = np.sort(nearest[0])
    new = known.take(known.searchsorted(worded[0]), mode="clip") != worded[0]
    extra = worded[0][new]
    chosen = np.concatenate((nearest[0], extra))
    similar = np.concatenate((nearest[1], rows.similarities(vector, extra)))
    lexical = np.concatenate((nearest[2], worded[1][new]))
    if meant is None:
        score = np.zeros(len(chosen))
        place = {int(slot): i for i, slot in enumerate(chosen)}
        for ranking in (nearest[0], worded[0]):
            for rank, slot in enumerate(ranking, 1):
                score[place[int(slot)]] += 1 / (RRF + rank)
        return Ranked(chosen, score, similar, lexical)
    return Ranked(chosen, convex(similar, lexical, WEIGHT * meant), similar, lexical)


def _compared(
    rows: Snapshot, query: str, asked: late.Asked, pieces: Pieces, found: Ranked, seen: np.ndarray | None, share: float
) -> Ranked:
    """The first rows in a new order, by their score and to a `share` by their word pieces; the others stay behind them."""
    top = found.slots[: late.DEPTH].tolist()
    stored = pieces(top)
    if stored is None:
        return found
    fit = late.scores(asked, rarity(rows, query, asked.spans, seen), stored)
    low, high = float(fit.min()), float(fit.max())
    better = (1 - share) * found.score
    better[: len(top)] += share * ((fit - low) / (high - low) if high > low else np.ones(len(top)))
    return found._replace(score=better).at(np.argsort(-better, kind="stable"))


def _diverse(rows: Snapshot, slots: np.ndarray, score: np.ndarray, k: int, diversity: float) -> np.ndarray:
    """Positions in the order of maximal marginal relevance (Carbonell and Goldstein 1998, https://doi.org/10.1145/290941.291025)."""
    span = float(score.max() - score.min())
    relevance = (score - score.min()) / span if span > 0 else np.ones(len(slots))
    block = rows.matrix[slots]
    likest = np.zeros(len(slots))
    kept: list[int] = []
    while len(kept) < min(k, len(slots)):
        marginal = (1 - diversity) * relevance - diversity * likest
        marginal[kept] = -np.inf
        kept.append(int(np.argmax(marginal)))
        likest = np.maximum(likest, block @ block[kept[-1]])
    return np.array(kept)


def _twins(rows: Snapshot, slots: np.ndarray) -> np.ndarray:
    """Of each row, which of those behind it are all but equal to it."""
    block, lengths = rows.matrix.take(slots, axis=0), rows.lengths[slots]
    same = (np.abs(lengths[:, None] - lengths) <= 0.05 * lengths) & (lengths > 0)
    return np.triu((dots(block, block) >= TWIN) & same, 1)


def _distinct(rows: Snapshot, slots: np.ndarray, k: int) -> np.ndarray:
    """Positions of rows that are not all but equal to one before them."""
    if len(slots) < 2 or not rows.matrix.shape[1]:
        return np.arange(len(slots))
    if not _twins(rows, slots[:k]).any():  # after the first k none is left out
        return np.arange(len(slots))
    twins = _twins(rows, slots)
    kept: list[int] = []
    for i in range(len(slots)):
        if not (0 < len(kept) < k and twins[kept, i].any()):
            kept.append(i)
    return np.array(kept)
