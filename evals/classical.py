"""Metrics of classical models over all rows at once, which no row has of its own: macro-F1, RMSE, R², calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evals.data import RowResult
from evals.stats import LEVEL, Estimate, mean

BINS = 10
RESAMPLES = 2_000


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
    said = [result.prediction.said for result in rows]
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


def overall(results: Sequence[RowResult]) -> dict[str, Estimate]:
    """The metrics by name, with 95 % bootstrap intervals (seeded, percentile); those of classifiers, of regressions, or none."""
    found = _of_labels(results)
    numbers = [(float(result.row.target), float(result.scores["squared_error"] or 0)) for result in results
               if isinstance(result.row.target, int | float) and result.scores.get("squared_error") is not None]  # fmt: skip
    if numbers:
        n, left = len(numbers), len(results) - len(numbers)
        ends = [None if end is None else max(0.0, end) ** 0.5 for end in mean([error for _, error in numbers])]
        found["rmse"] = Estimate(ends[0], ends[1], ends[2], n, left)
        if (value := _explained(numbers)) is not None:
            found["r2"] = Estimate(*value, n, left)
    return found


def drawings(results: Sequence[RowResult]) -> dict[str, str]:
    """A classifier's confusion matrix and calibration as SVG, by file name; none for other endpoints."""
    from evals import plots

    found = classes(results)
    if found is None:
        return {}
    made = {
        "confusion.svg": plots.confusion(found.labels, found.confusion),
        "calibration.svg": plots.calibration(found.calibration),
    }
    return {name: drawing for name, drawing in made.items() if drawing}


def _of_labels(results: Sequence[RowResult]) -> dict[str, Estimate]:
    import numpy as np

    whole = classes(results)
    if whole is None:
        return {}
    counts = np.array(whole.confusion, float)
    n, size = int(counts.sum()), len(counts)
    # Drawing rows again is drawing again how many of them fall into each cell of the confusion matrix.
    drawn = np.random.default_rng(0).multinomial(n, counts.ravel() / n, RESAMPLES).reshape(-1, size, size)
    true, said, right = drawn.sum(2), drawn.sum(1), np.diagonal(drawn, axis1=1, axis2=2)
    known = counts.sum(1) > 0
    with np.errstate(invalid="ignore"):
        shares = {name: np.nan_to_num(over / under)[:, known].mean(1) for name, over, under in (
            ("macro_precision", right, said), ("macro_recall", right, true), ("macro_f1", 2 * right, true + said))}  # fmt: skip
    ends = {name: np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) for name, values in shares.items()}
    return {
        name: Estimate(getattr(whole, name), float(low), float(high), n, len(results) - n) for name, (low, high) in ends.items()
    }


def _explained(numbers: Sequence[tuple[float, float]]) -> tuple[float, float, float] | None:
    """R² with its interval; None where the targets do not vary."""
    import numpy as np

    target, error = np.array(numbers).T
    if len(target) < 2 or np.ptp(target) == 0:
        return None
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES // 4):
        chosen = rng.integers(0, len(target), len(target))
        spread = target[chosen].var()
        if spread > 0:
            drawn.append(1 - error[chosen].mean() / spread)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(1 - error.mean() / target.var()), float(low), float(high)


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
