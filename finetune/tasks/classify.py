"""Text classification the classical way: embeddings of a frozen encoder, logistic regression, calibrated probabilities.

It is judged beside a baseline that uses no encoder (TF-IDF and logistic regression), always.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.classifier import LinearClassifier
from finetune.metrics import ece, log_loss, metrics, reliability, softmax

if TYPE_CHECKING:
    from finetune.data import Row
    from finetune.recipe import ClassifyRecipe

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts to (n, dimension) float32 embeddings; blocking."""

Progress = Callable[[str, int, int], None]
"""Told of `(stage, done, total)`."""

VERSION = 1
"""Raised whenever the same data would train another classifier; kept classifiers of another version are not used."""
BASELINE_C = (1.0, 10.0, 100.0)
_CHUNK = 512
MANY = 10_000
"""Texts from which on several processes take less time than their start."""


@dataclass(frozen=True)
class Result:
    """A trained classifier and how good it is.

    `metrics` and `baseline` hold accuracy, macro_recall, macro_f1, log_loss and ece: measured on the evaluation file, or,
    where there is none (`judged_on` says), on cross-validated predictions, whose C and temperature were chosen on the same rows.
    """

    classifier: LinearClassifier
    metrics: Mapping[str, float]
    baseline: Mapping[str, float]
    judged_on: str
    C: float
    curve: Sequence[tuple[float, float]]
    """Cross-validated log-loss of each C."""
    calibration: Mapping[str, float]
    """`log_loss` and `ece` of cross-validated predictions, `_before` and `_after` the temperature."""
    confusion: Sequence[Sequence[int]]
    """Rows are true labels, columns predicted ones, in the order of the classifier's labels."""
    reliability: Sequence[tuple[float, float, int]]
    """Mean confidence, accuracy and number of predictions by confidence."""
    rows: int
    converged: bool
    seconds: float


def fit(
    rows: Sequence[Row],
    embed: Embed,
    recipe: ClassifyRecipe,
    *,
    evaluation: Sequence[Row] = (),
    progress: Progress | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Result:
    """Train on `rows`; choose C by cross-validated log-loss and the temperature on the same out-of-fold predictions.

    Parameters
    ----------
    rows, evaluation: what `finetune.data` let pass.
    embed: the frozen encoder.
    metadata: kept in the classifier.

    Raises
    ------
    ValueError: a label has fewer rows than there are folds.
    """
    began = time.perf_counter()
    labels = tuple(sorted({row.label for row in rows}))
    number = {label: i for i, label in enumerate(labels)}
    y = np.array([number[row.label] for row in rows])
    scarce = [f"{label!r} {n}" for label, n in zip(labels, np.bincount(y), strict=True) if n < 2]
    if scarce:
        raise ValueError(f"Each label needs at least 2 rows to be cross-validated: {', '.join(scarce)}.")
    X = _embed(embed, [row.text for row in rows], "embed", progress)
    X_eval = _embed(embed, [row.text for row in evaluation], "embed evaluation", progress) if evaluation else None
    y_eval = np.array([number[row.label] for row in evaluation])

    chosen = _choose(X, y, recipe.C, recipe, progress)
    temperature = _temperature(chosen.scores, y) if recipe.calibration == "temperature" else 1.0
    weights, bias, converged = _logistic(X, y, chosen.C, recipe)
    classifier = LinearClassifier(labels, weights.astype(np.float32), bias.astype(np.float32), temperature, metadata or {})
    before, after = softmax(chosen.scores), softmax(chosen.scores / temperature)
    calibration = {
        f"{name}_{when}": measure(p, y)
        for name, measure in (("log_loss", log_loss), ("ece", ece))
        for when, p in (("before", before), ("after", after))
    }
    base = baseline([row.text for row in rows], y, [row.text for row in evaluation], recipe, progress)
    judged, truth = (after, y) if X_eval is None else (classifier.predict_proba(X_eval), y_eval)
    confusion = np.zeros((len(labels), len(labels)), int)
    np.add.at(confusion, (truth, judged.argmax(1)), 1)
    return Result(
        classifier=classifier,
        metrics=metrics(judged, truth),
        baseline=metrics(base, truth),
        judged_on="cross-validation" if X_eval is None else "evaluation file",
        C=chosen.C,
        curve=chosen.curve,
        calibration=calibration,
        confusion=confusion.tolist(),
        reliability=reliability(judged, truth),
        rows=len(rows),
        converged=converged and chosen.converged,
        seconds=time.perf_counter() - began,
    )


def fit_cached(train_file: Path, embed: Embed, cache: Path, *, encoder: str, overrides: Sequence[str] = ()) -> LinearClassifier:
    """The classifier for a file of labelled text: as kept in `cache`, or trained now and kept.

    It is trained again when the file, the encoder, the overrides or this code's `VERSION` changed. Reading a kept one imports
    no scikit-learn and calls no encoder.

    Parameters
    ----------
    train_file: JSON lines of `text` and `label`.
    cache: a folder; made when it is not there. A damaged file in it is made anew.
    encoder: fingerprint of the encoder behind `embed`.
    overrides: of the recipe, as in `load_recipe`.

    Raises
    ------
    DataError: the file cannot be trained on.
    """
    content = train_file.read_bytes()
    key = hashlib.sha256(json.dumps([hashlib.sha256(content).hexdigest(), encoder, VERSION, list(overrides)]).encode())
    kept = cache / f"{train_file.stem}-{key.hexdigest()[:24]}.json"
    try:
        return LinearClassifier.from_json(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    from finetune.data import read_labelled
    from finetune.recipe import ClassifyRecipe, load_recipe

    recipe = load_recipe({"name": train_file.stem, "data": {"train": str(train_file)}}, overrides)
    assert isinstance(recipe, ClassifyRecipe)
    data = read_labelled(
        train_file,
        text=recipe.data.text_column,
        label=recipe.data.label_column,
        labels=recipe.labels,
        ignore=recipe.data.ignore_columns,
    )
    classifier = _fit_plain(data.rows, embed, recipe, {"data_sha256": hashlib.sha256(content).hexdigest(), "encoder": encoder})
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=cache, suffix=".new", delete=False, encoding="utf-8") as file:
        file.write(classifier.to_json())
    os.replace(file.name, kept)
    return classifier


def _fit_plain(rows: Sequence[Row], embed: Embed, recipe: ClassifyRecipe, metadata: Mapping[str, Any]) -> LinearClassifier:
    """As `fit`, without judging it: what the start of a server has time for."""
    labels = tuple(sorted({row.label for row in rows}))
    y = np.array([labels.index(row.label) for row in rows])
    X = _embed(embed, [row.text for row in rows], "embed", None)
    chosen = _choose(X, y, recipe.C, recipe, None)
    temperature = _temperature(chosen.scores, y) if recipe.calibration == "temperature" else 1.0
    weights, bias, _ = _logistic(X, y, chosen.C, recipe)
    return LinearClassifier(labels, weights.astype(np.float32), bias.astype(np.float32), temperature, metadata)


# -- fitting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    C: float
    scores: np.ndarray
    """Out-of-fold scores (logits) of every row."""
    curve: list[tuple[float, float]]
    converged: bool


def _choose(X: Any, y: np.ndarray, grid: Sequence[float], recipe: ClassifyRecipe, progress: Progress | None) -> _Chosen:
    """The C whose out-of-fold predictions have the least log-loss."""
    splits = _splits(y, recipe)
    fits = (_logistic(X[train], y[train], C, recipe) for C in grid for train, _ in splits)
    return _chosen(X, y, grid, splits, fits, progress)


def _splits(y: np.ndarray, recipe: ClassifyRecipe) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedKFold

    folds = min(recipe.folds, int(np.bincount(y).min()))
    return list(StratifiedKFold(folds, shuffle=True, random_state=recipe.seed).split(np.zeros(len(y)), y))


def _chosen(X: Any, y: np.ndarray, grid: Sequence[float], splits: Any, fits: Iterator[Any], progress: Progress | None) -> _Chosen:
    """`fits`: of each C, and for it of each split, weights, bias and whether the solver converged."""
    best: _Chosen | None = None
    curve: list[tuple[float, float]] = []
    for done, C in enumerate(grid):
        scores, converged = np.zeros((len(y), int(y.max()) + 1)), True
        for _, held_out in splits:
            weights, bias, finished = next(fits)
            scores[held_out] = X[held_out] @ weights.T + bias
            converged &= finished
        loss = log_loss(softmax(scores), y)
        curve.append((C, loss))
        if best is None or loss < best.curve[-1][1]:
            best = _Chosen(C, scores, [(C, loss)], converged)
        if progress:
            progress("choose C", done + 1, len(grid))
    assert best is not None
    return _Chosen(best.C, best.scores, curve, best.converged)


def _logistic(X: Any, y: np.ndarray, C: float, recipe: ClassifyRecipe) -> tuple[np.ndarray, np.ndarray, bool]:
    """Weights and bias, a row a class, and whether the solver converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    weight = "balanced" if recipe.class_weight == "balanced" else None
    model = LogisticRegression(C=C, class_weight=weight, max_iter=1000, random_state=recipe.seed)
    # The matrices are small: threads of the linear algebra wait for each other, under load a hundred times longer than they work.
    with warnings.catch_warnings(record=True) as caught, threadpool_limits(1):
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(X, y)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    weights, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
    if weights.shape[0] == 1:  # two classes: scikit-learn keeps the second's log-odds
        return np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2, converged
    return weights, bias, converged


def _temperature(scores: np.ndarray, y: np.ndarray) -> float:
    """What the scores are to be divided by for the least log-loss (https://arxiv.org/abs/1706.04599).

    Not under 1/4: examples that are all told apart would ask for certainty, which other texts do not deserve.
    """
    from scipy.optimize import minimize_scalar

    bounds = (np.log(0.25), np.log(20.0))
    found = minimize_scalar(lambda t: log_loss(softmax(scores / np.exp(t)), y), bounds=bounds, method="bounded")
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]


def baseline(
    texts: Sequence[str],
    y: np.ndarray,
    eval_texts: Sequence[str],
    recipe: ClassifyRecipe,
    progress: Progress | None,
    processes: int = 1,
) -> np.ndarray:
    """Probabilities of TF-IDF of words and pairs of words with logistic regression, its C chosen in the same way.

    Parameters
    ----------
    processes: what may fit at once, where there are many texts; the result is the same.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(texts) > 2000 else 1)
    try:
        X = words.fit_transform(texts)
    except ValueError:  # no text has a word in it
        return np.tile(np.bincount(y) / len(y), (len(eval_texts) or len(y), 1))
    told = (lambda _, done, total: progress("baseline", done, total)) if progress else None
    whole: dict[float, Any] = {}
    if eval_texts and np.bincount(y).min() < 2:  # a label that one row has cannot be cross-validated
        chosen = _Chosen(BASELINE_C[len(BASELINE_C) // 2], np.zeros(0), [], True)
    elif processes > 1 and len(texts) >= MANY:
        chosen, whole = _choose_at_once(X, y, recipe, told, processes)
    else:
        chosen = _choose(X, y, BASELINE_C, recipe, told)
    if not eval_texts:
        return softmax(chosen.scores)
    weights, bias, _ = whole.get(chosen.C) or _logistic(X, y, chosen.C, recipe)
    return softmax(words.transform(eval_texts) @ weights.T + bias)


def _choose_at_once(
    X: Any, y: np.ndarray, recipe: ClassifyRecipe, progress: Progress | None, processes: int
) -> tuple[_Chosen, dict[float, Any]]:
    """As `_choose` of the baseline's C, in several processes; and of each C what it makes of all rows, which takes longest."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    splits = _splits(y, recipe)
    count = min(processes, len(BASELINE_C) * (len(splits) + 1))
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        whole = {C: pool.submit(_logistic, X, y, C, recipe) for C in BASELINE_C}
        fits = [pool.submit(_logistic, X[train], y[train], C, recipe) for C in BASELINE_C for train, _ in splits]
        chosen = _chosen(X, y, BASELINE_C, splits, (fit.result() for fit in fits), progress)
        return chosen, {C: fit.result() for C, fit in whole.items()}


def _embed(embed: Embed, texts: Sequence[str], stage: str, progress: Progress | None) -> np.ndarray:
    parts = []
    for start in range(0, len(texts), _CHUNK):
        parts.append(np.asarray(embed(texts[start : start + _CHUNK]), np.float32))
        if progress:
            progress(stage, min(start + _CHUNK, len(texts)), len(texts))
    return np.concatenate(parts)
