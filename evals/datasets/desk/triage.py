"""Which team a message is for: a logistic regression over words and word pairs, trained on tickets.jsonl when first asked."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _model() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = [json.loads(line) for line in Path(__file__).with_name("tickets.jsonl").read_text("utf-8").splitlines()]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=30, max_iter=1_000))
    return model.fit([row["text"] for row in rows], [row["label"] for row in rows])


def triage(text: str) -> dict[str, Any]:
    """The team, and how sure the classifier is."""
    model = _model()
    chances = model.predict_proba([text])[0]
    best = chances.argmax()
    return {"label": str(model.classes_[best]), "confidence": round(float(chances[best]), 4)}
