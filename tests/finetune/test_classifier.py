"""A classifier is numbers in JSON: what comes back predicts the same, what is damaged says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.classifier import LinearClassifier

ROOT = Path(__file__).parents[2]


@pytest.fixture
def classifier() -> LinearClassifier:
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    return LinearClassifier(("a", "b", "c"), weights, bias, 1.7, {"encoder": "e"})


def test_it_is_the_same_after_json(classifier: LinearClassifier) -> None:
    again = LinearClassifier.from_json(classifier.to_json())
    X = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_array_equal(classifier.predict_proba(X), again.predict_proba(X))
    assert again.labels == classifier.labels
    assert again.metadata == {"encoder": "e"}


def test_probabilities_are_probabilities(classifier: LinearClassifier) -> None:
    p = classifier.predict_proba(np.full((2, 8), 1e4, np.float32))  # no overflow either
    assert p.shape == (2, 3)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    assert classifier.predict_proba(np.zeros((0, 8), np.float32)).shape == (0, 3)


def test_embeddings_of_another_encoder_are_refused(classifier: LinearClassifier) -> None:
    with pytest.raises(ValueError, match=r"\(n, 8\), not \(1, 9\)"):
        classifier.predict_proba(np.zeros((1, 9)))


@pytest.mark.parametrize("change", [{"format": "x"}, {"weights": "AAAA"}, {"labels": ["a"]}, {"temperature": 0}, {"bias": None}])
def test_a_damaged_file_says_so(classifier: LinearClassifier, change: dict) -> None:
    text = json.dumps({**json.loads(classifier.to_json()), **change})
    with pytest.raises(ValueError, match="train it again"):
        LinearClassifier.from_json(text)


def test_importing_the_room_imports_nothing_heavy() -> None:
    code = (
        "import sys, finetune\nassert not {'numpy', 'sklearn', 'mlflow', 'pydantic'} & set(sys.modules)\n"
        "finetune.LinearClassifier, finetune.fit_cached\nassert not {'sklearn', 'scipy', 'mlflow', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)
