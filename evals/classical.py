"""Metrics of a classifier over all rows at once, which no row has of its own: precision, recall, macro-F1, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evals.data import RowResult

BINS = 10


@dataclass(frozen=True, slots=True)
class Classes:
    """What a classifier got right: `confusion[true][predicted]` counts rows, in the order of `labels`.

    `calibration` holds, for each tenth of confidence that has rows, its mean confidence, the share that was right and n; empty
    where the predictions have no probabilities.
    """

    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    by_label: dict[str, dict[str, float]]
    macro_precision: float
    macro_recall: float
    macro_f1: float
    calibration: tuple[dict[str, float], ...]


def classes(results: Sequence[RowResult]) -> Classes | None:
    """The metrics over the rows with a label as target; None where there are none. A label never met counts as wrong."""
    rows = [result for result in results if isinstance(result.row.target, str) and result.prediction.error is None]
    if not rows:
        return None
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    true = [str(result.row.target) for result in rows]
    said = [str(result.prediction.text if result.prediction.label is None else result.prediction.label) for result in rows]
    labels = sorted({*true, *said})
    known = sorted(set(true))
    scored: Any = precision_recall_fscore_support(true, said, labels=known, zero_division=0)  # pyright: ignore[reportArgumentType]
    precision, recall, f1, support = scored
    by_label = {
        name: {"precision": float(precision[i]), "recall": float(recall[i]), "f1": float(f1[i]), "n": float(support[i])}
        for i, name in enumerate(known)
    }
    means = [float(values.mean()) for values in (precision, recall, f1)]
    counts = tuple(tuple(int(count) for count in row) for row in confusion_matrix(true, said, labels=labels))
    return Classes(tuple(labels), counts, by_label, means[0], means[1], means[2], _calibration(rows, true, said))


def _calibration(rows: Sequence[RowResult], true: Sequence[str], said: Sequence[str]) -> tuple[dict[str, float], ...]:
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, right, label in zip(rows, true, said, strict=True):
        confidence = (row.prediction.probabilities or {}).get(label)
        if confidence is not None:
            bins.setdefault(min(int(confidence * BINS), BINS - 1), []).append((confidence, right == label))
    return tuple(
        {
            "confidence": sum(value for value, _ in found) / len(found),
            "accuracy": sum(hit for _, hit in found) / len(found),
            "n": float(len(found)),
        }
        for _, found in sorted(bins.items())
    )
