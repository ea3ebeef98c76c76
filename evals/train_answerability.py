"""Fit `answerability.json`: `python -m evals.train_answerability FOLDER --out evals/answerability.json [--tracking-uri URI]`.

FOLDER holds the English test sample of NoMIRACL (`en.relevant.jsonl`, `en.non_relevant.jsonl`,
https://github.com/project-miracl/nomiracl, Thakur et al. 2024): 250 questions whose ten passages hold the answer, and 250 others.
Validation is by folds of questions, three times over, with threshold and calibration found within each fold's training part;
`hallucination` and `error` are the benchmark's words: the share of unanswerable questions called answerable, and of answerable
ones called unanswerable.

The collection lists the passages of answerable questions by relevance and the others' shuffled, so a model that reads their
order is right far more often here and learns nothing: passages are taken as a set.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from evals.answerability import VECTORS, Machine, Rarity, features
from evals.groundedness import register
from evals.support import Vectors, words

C, GAMMA, DIRECTIONS = 1.0, 0.003, 16
"""Of the machine and its kernel, and of the principal components of each embedding that it sees."""
HALLUCINATION = 0.24
"""Share of unanswerable questions that may be called answerable, which makes the threshold."""
FOLDS, REPEATS, WITHIN = 10, 3, 10
COMMON = 6
"""Passages that hold a stem, from which on it stands in the table of frequencies."""


def questions(folder: Path) -> Iterator[tuple[str, list[str], bool]]:
    """Question, passages, whether they hold the answer."""
    for name, label in (("relevant", True), ("non_relevant", False)):
        for line in (folder / f"en.{name}.jsonl").read_text(encoding="utf-8").split("\n"):
            if line.strip():
                prompt = json.loads(line)["prompt"].split("QUESTION:\n")[1]
                question, _, rest = prompt.partition("\n\nCONTEXTS:\n")
                parts = re.split(r"(?:^|\n\n)\[\d+\] ", rest.split("\n\nOUTPUT")[0])
                yield question.strip(), [part.strip() for part in parts if part.strip()], label


def machine(names: int, size: int) -> Any:
    """Unfitted: features scaled, each embedding seen by its first principal components, a Gaussian kernel over both."""
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    columns: list[Any] = [("values", StandardScaler(), slice(0, names))]
    for place, name in enumerate(VECTORS):
        first = names + place * size
        columns.append((name, make_pipeline(PCA(DIRECTIONS, random_state=0), StandardScaler()), slice(first, first + size)))
    return make_pipeline(ColumnTransformer(columns), SVC(C=C, gamma=cast("Any", GAMMA)))


def calibrated(made: Any, x: np.ndarray, labels: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Slope, shift and threshold, from what `made` says of questions that it has not seen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(WITHIN, shuffle=True, random_state=seed)
    said = np.asarray(cross_val_predict(made, x, labels, cv=folds, method="decision_function"))
    platt = LogisticRegression(C=1e6).fit(said[:, None], labels)
    slope, shift = float(np.asarray(platt.coef_)[0, 0]), float(np.asarray(platt.intercept_)[0])
    return slope, shift, probability(slope * float(np.quantile(said[~labels], 1 - HALLUCINATION)) + shift)


def probability(logit: Any) -> Any:
    return 1 / (1 + np.exp(-logit))


def train(folder: Path, embed: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The model and its arrays, calibrated, with what it reaches on questions it has not seen."""
    from sklearn.base import clone
    from sklearn.metrics import brier_score_loss, roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    data = list(questions(folder))
    count = Counter(stem for _, passages, _ in data for text in passages for stem in {word.stem for word in words(text)})
    frequency = {stem: times for stem, times in sorted(count.items()) if times >= COMMON}
    total = sum(len(passages) for _, passages, _ in data)
    vectors, rarity, rows = Vectors(embed), Rarity(frequency, total), []
    for number, (question, passages, _) in enumerate(data):
        rows.append(features(question, passages, vectors, rarity))
        if number % 50 == 0:
            print(f"{number} of {len(data)}", flush=True)
    names, labels = list(rows[0][0]), np.array([label for *_, label in data])
    x = np.array([[*values.values(), *own, *gap] for values, own, gap in rows])
    made, found = machine(len(names), len(rows[0][1])), []
    for seed in range(REPEATS):
        p, said = np.zeros(len(data)), np.zeros(len(data), bool)
        for known, asked in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, labels):
            slope, shift, threshold = calibrated(made, x[known], labels[known], seed)
            p[asked] = probability(
                slope * cast("Any", clone(made)).fit(x[known], labels[known]).decision_function(x[asked]) + shift
            )
            said[asked] = p[asked] >= threshold
        found.append({
            "accuracy": (said == labels).mean(), "hallucination": said[~labels].mean(), "error": (~said[labels]).mean(),
            "auroc": roc_auc_score(labels, p), "brier": brier_score_loss(labels, p),
        })  # fmt: skip
    slope, shift, threshold = calibrated(made, x, labels, 0)
    made.fit(x, labels)
    seen, machine_ = made[0].named_transformers_, made[1]
    arrays = {"centre": seen["values"].mean_, "scale": seen["values"].scale_, "support": machine_.support_vectors_}
    arrays["dual"] = machine_.dual_coef_[0]
    for name in VECTORS:
        components, scaler = seen[name][0], seen[name][1]
        arrays[f"{name}_axes"] = components.components_.T / scaler.scale_
        arrays[f"{name}_offset"] = (components.mean_ @ components.components_.T + scaler.mean_) / scaler.scale_
    validation = {key: round(float(np.mean([each[key] for each in found])), 3) for key in found[0]}
    return {
        "names": names,
        "gamma": GAMMA,
        "intercept": round(float(machine_.intercept_[0]), 6),
        "slope": round(slope, 6),
        "shift": round(shift, 6),
        "threshold": round(float(threshold), 4),
        "validation": {"nomiracl-en": {"questions": len(data), **validation}},
        "passages": total,
        "frequency": frequency,
    }, {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.train_answerability", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="where the model is written; without it only the validation is printed")
    parser.add_argument("--encoder", default="retrieval.embed:Encoder", help="MODULE:CLASS with load(cache).embed")
    parser.add_argument("--cache", type=Path, default=Path(".smalti/models"))
    parser.add_argument("--tracking-uri", help="MLflow, where the model is registered")
    options = parser.parse_args(arguments)
    module, _, name = options.encoder.partition(":")
    spec, arrays = train(options.folder, getattr(importlib.import_module(module), name).load(options.cache).embed)
    print(json.dumps(spec["validation"], indent=1))
    if options.out:
        options.out.write_text(
            json.dumps(spec, indent=None, separators=(",", ":")).replace("},", "},\n") + "\n", encoding="utf-8"
        )
        np.savez_compressed(options.out.with_suffix(".npz"), **cast("Any", arrays))
    if options.tracking_uri:
        print(register("answerability", Machine(spec, arrays), spec, arrays, options.tracking_uri, {"C": C, "gamma": GAMMA}))


if __name__ == "__main__":
    main()
