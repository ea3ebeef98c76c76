from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from agents.router import LABELS, examples, make_router

pytestmark = pytest.mark.anyio

HELD_OUT = [json.loads(line) for line in (Path(__file__).parent / "data/router_heldout.jsonl").read_text().splitlines()]


def test_the_examples_are_many_and_not_the_held_out_ones() -> None:
    counts = Counter(e["label"] for e in examples())
    assert set(counts) == set(LABELS)
    assert sum(counts.values()) >= 250
    assert min(counts.values()) >= 60
    assert not {e["text"].lower() for e in examples()} & {e["text"].lower() for e in HELD_OUT}
    assert len(HELD_OUT) >= 60


async def test_a_classifier_becomes_a_router() -> None:
    async def embed(texts):
        assert len(texts[0]) <= 2_000
        return np.array([[len(texts[0])]], np.float32)

    def predict(x):
        return np.array([[0.7, 0.3] if x[0, 0] < 10 else [0.45, 0.55]])

    route = make_router(predict, ["small_talk", "documents"], embed, threshold=0.6)
    short, long = await route("hi"), await route("x" * 50_000)
    assert (short.label, short.confidence, short.confident) == ("small_talk", 0.7, True)
    assert (long.label, long.confident) == ("documents", False)
    assert long.scores == {"small_talk": 0.45, "documents": 0.55}


async def test_held_out_messages_are_routed() -> None:
    from sklearn.linear_model import LogisticRegression

    from retrieval.embed import Encoder
    from tests.live import models

    encoder = Encoder.load(models(), threads=1)
    shipped = examples()
    model = LogisticRegression(C=10, max_iter=2_000, class_weight="balanced")
    model.fit(encoder.embed([e["text"] for e in shipped]), [e["label"] for e in shipped])
    route = make_router(model.predict_proba, list(model.classes_), encoder.aembed)
    routes = [(e, await route(e["text"])) for e in HELD_OUT]
    right = sum(r.label == e["label"] for e, r in routes)
    assert right / len(routes) >= 0.93
    asked = [r for e, r in routes if e["label"] == "documents"]
    assert sum(r.label == "decline" and r.confident for r in asked) <= 0.05 * len(asked)  # many sound like a request
