"""How good probabilities of classes are: numpy alone."""

from __future__ import annotations

import numpy as np

BINS = 15


def softmax(scores: np.ndarray) -> np.ndarray:
    """Scores (rows, classes) to probabilities."""
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def log_loss(probabilities: np.ndarray, y: np.ndarray) -> float:
    """Mean negative log of the true classes' probabilities."""
    return float(-np.log(np.clip(probabilities[np.arange(len(y)), y], 1e-12, None)).mean())


def reliability(probabilities: np.ndarray, y: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of predictions, by confidence."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        (float(confidence[bins == b].mean()), float(right[bins == b].mean()), int((bins == b).sum()))
        for b in range(BINS)
        if (bins == b).any()
    ]


def ece(probabilities: np.ndarray, y: np.ndarray) -> float:
    """Expected calibration error: how far confidence is from accuracy, on average, over 15 equal bins."""
    return sum(n * abs(confidence - accuracy) for confidence, accuracy, n in reliability(probabilities, y)) / len(y)


def metrics(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """accuracy, macro_recall, macro_f1, log_loss and ece, over the classes that occur."""
    predicted = probabilities.argmax(axis=1)
    recalls, f1s = [], []
    for label in np.unique(y):
        hits = int(((predicted == label) & (y == label)).sum())
        truly, said = int((y == label).sum()), int((predicted == label).sum())
        recalls.append(hits / truly)
        f1s.append(2 * hits / (truly + said))
    return {
        "accuracy": float((predicted == y).mean()),
        "macro_recall": float(np.mean(recalls)),
        "macro_f1": float(np.mean(f1s)),
        "log_loss": log_loss(probabilities, y),
        "ece": ece(probabilities, y),
    }
