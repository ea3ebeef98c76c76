"""A question to passages: dense and lexical rankings, fused by reciprocal rank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from retrieval.store import Store, unpack
from retrieval.types import Passage
from retrieval.vectors import Vectors

MODES = ("hybrid", "dense", "lexical")

DEPTH = 50
"""Passages of each ranking that are fused."""
RRF = 60
"""Cormack, Clarke and Büttcher 2009, https://doi.org/10.1145/1571941.1572114."""
MAX_QUERY = 4000
"""Characters of a question that are looked at."""
MAX_TERMS = 48

STOPWORDS = frozenset(
    """a about above after again all am an and any are as at be because been before being below between both but by can could
    did do does doing down during each few for from further had has have having he her here hers him his how i if in into
    is it its itself just me more most my no nor not now of off on once only or other our ours out over own same she
    should so some such than that the their them then there these they this those through to too under until up very was
    we were what when where which while who whom why will with would you your yours""".split()  # noqa: SIM905
)
WORD = re.compile(r"\w+(?:[._\-/:]+\w+)*")


def tidy(query: str) -> str:
    """The question as it is searched: no NUL, no lone surrogate, of bounded length."""
    return query[:MAX_QUERY].replace("\x00", " ").encode("utf-8", "replace").decode().strip()


def expression(query: str) -> str:
    """An FTS5 expression that matches any word of `query`, or "" where it has none.

    Every word is quoted, so nothing in a question is syntax. Of `max_retries` the parts are looked for, and the whole phrase.
    """
    terms: dict[str, None] = {}
    for match in WORD.finditer(query):
        word = match[0]
        parts = re.findall(r"[^\W_]+", word)
        if len(parts) > 1:
            terms[" ".join(parts).lower()] = None
        for part in parts:
            terms[part.lower()] = None
    kept = [t for t in terms if t not in STOPWORDS] or list(terms)
    return " OR ".join(f'"{t}"' for t in kept[:MAX_TERMS])


def search(
    store: Store, vectors: Vectors, index_id: int, index: str, query: str, vector: np.ndarray | None, k: int, mode: str
) -> list[Passage]:
    """The `k` best passages. `vector` is the question's, None to search words alone.

    Their score is the fused one, or in the modes that do not fuse the similarity or the BM25 score.
    """
    depth = max(DEPTH, 2 * k)
    terms = expression(query) if mode != "dense" else ""
    similar = dict(vectors.query(index_id, vector, depth)) if vector is not None and mode != "lexical" else {}
    worded, scores = store.lexical(index_id, terms, depth) if terms else ({}, {})
    fused: dict[str, float] = {}
    for ranking in (similar, worded):
        for rank, key in enumerate(ranking, 1):
            fused[key] = fused.get(key, 0.0) + 1.0 / (RRF + rank)
    order = sorted(fused, key=lambda key: (-fused[key], -similar.get(key, -1.0), key))
    # A few more than asked for: Chroma may name a chunk that has just been replaced.
    at, chosen = 0, []
    while at < len(order) and len(chosen) < k:
        part = order[at : at + k + 5]
        at += len(part)
        found = store.passages(index, part)
        chosen.extend(found[key] for key in part if key in found)
    chosen = chosen[:k]
    if not chosen:
        return []
    score = {"dense": similar, "lexical": worded}.get(mode, fused)
    return _scored(store, index_id, terms or expression(query), vector, chosen, score, scores)


def _scored(
    store: Store,
    index_id: int,
    terms: str,
    vector: np.ndarray | None,
    chosen: Sequence[tuple[int, Passage, bytes]],
    score: dict[str, float],
    scores: dict[int, float],
) -> list[Passage]:
    """Fills in what the other ranking did not say of a passage, so that both scores always hold."""
    silent = [seq for seq, _, _ in chosen if seq not in scores]
    extra = store.lexical_scores(index_id, terms, silent) if terms and silent else {}
    cosines = unpack([v for _, _, v in chosen]) @ vector if vector is not None else np.zeros(len(chosen))
    return [
        replace(
            passage,
            score=score[passage.id],
            similarity=float(cosine),
            lexical=scores.get(seq) or extra.get(seq, 0.0),
        )
        for (seq, passage, _), cosine in zip(chosen, cosines, strict=True)
    ]
