"""From a classifier to a router: which kind of message is this, and how sure are we."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from agents.state import Embed, Route, Router

if TYPE_CHECKING:
    import numpy as np

LABELS = ("documents", "small_talk", "decline")
THRESHOLD = 0.75
"""Probability under which a route is not trusted: a question wrongly declined costs more than small talk that is looked up."""

MAX_CHARS = 2_000
"""What the router reads of a long message: its beginning, which says what is wanted."""


def examples() -> list[dict[str, str]]:
    """The examples the shipped router is trained on: `{"text", "label"}`, from `router.jsonl` beside this module."""
    text = resources.files("agents").joinpath("router.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def make_router(
    predict_proba: Callable[[np.ndarray], Any], labels: Sequence[str], embed: Embed, threshold: float = THRESHOLD
) -> Router:
    """A router over a classifier of embeddings.

    Parameters
    ----------
    predict_proba: (n, dimension) embeddings to (n, len(labels)) calibrated probabilities, as scikit-learn's.
    labels: the classes in the order of its columns.
    threshold: probability under which the route is marked as not confident.
    """
    names = [str(label) for label in labels]

    async def route(text: str) -> Route:
        probabilities = predict_proba(await embed([text[:MAX_CHARS]]))[0]
        scores = {name: float(p) for name, p in zip(names, probabilities, strict=True)}
        label = max(scores, key=scores.__getitem__)
        return Route(label, scores[label], scores, confident=scores[label] >= threshold)

    return route
