"""Reranking: the best hits put in a better order by their text. It never fails a query: what goes wrong is a warning."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from retrieval import words
from retrieval.postings import K1, B
from retrieval.rank import convex

log = logging.getLogger("smalti.retrieval")

DEPTH = 50
"""Hits that are looked at."""
MAX_TEXT = 2000
"""Characters of a hit that are looked at."""
BUILT_IN = "databricks_reranker"
"""What clients call the reranker that is always there."""

Rerank = Callable[[str, str, Sequence[str]], Awaitable[np.ndarray]]
"""`rerank(model, query, texts)`: how well each text answers, higher is better."""


async def reranked(
    rerank: Rerank, model: str, query: str, texts: Sequence[str], hits: list[tuple[Any, float]]
) -> tuple[list[tuple[Any, float]], dict[str, Any]]:
    """The hits with the first `len(texts)` of them reordered and rescored, and what `debug_info` tells of it."""
    if not query.strip():
        return hits, {"warnings": ["The hits were not reranked: reranking needs query_text."]}
    began = time.perf_counter()
    try:
        scores = np.asarray(await rerank(model, query, [text[:MAX_TEXT] for text in texts]), float) if texts else np.empty(0)
        if scores.shape != (len(texts),) or not np.isfinite(scores).all():
            raise ValueError(f"reranker {model!r} gave {scores.size} scores for {len(texts)} texts")
    except Exception as error:
        message = getattr(error, "message", None) or (str(error) if isinstance(error, ValueError) else type(error).__name__)
        log.warning("reranking by %s: %s", model, message)
        return hits, {"warnings": [f"The hits were not reranked: {message}"]}
    order = np.argsort(-scores, kind="stable")
    better = [(hits[i][0], float(scores[i])) for i in map(int, order)]
    return better + hits[len(texts) :], {"reranker_time": round((time.perf_counter() - began) * 1e3, 3)}


def blend(query: str, texts: Sequence[str], similar: np.ndarray) -> np.ndarray:
    """Similarities of the texts to the query, fused with BM25 of its words among these texts."""
    number = words.language(query)
    asked = [word for word in words.WORD.findall(query) if word.lower() not in words.STOPWORDS] or words.WORD.findall(query)
    wanted = {term for word in asked for term in words.terms(word, number)}
    counted = [words.counted(text, number) for text in texts]
    lengths = np.array([sum(each.values()) for each in counted], float)
    norm = K1 * (1 - B + B * lengths / max(lengths.mean() if len(lengths) else 0.0, 1.0))
    lexical = np.zeros(len(texts))
    for term in wanted:
        counts = np.array([each.get(term, 0) for each in counted], float)
        held = int((counts > 0).sum())
        if held:
            lexical += np.log1p((len(texts) - held + 0.5) / (held + 0.5)) * counts * (K1 + 1) / (counts + norm)
    return convex(similar, lexical)
