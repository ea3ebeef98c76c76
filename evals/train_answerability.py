"""Fit `answerability.json`: `python -m evals.train_answerability FOLDER --out evals/answerability.json [--tracking-uri URI]`.

FOLDER holds the English test sample of NoMIRACL (`en.relevant.jsonl`, `en.non_relevant.jsonl`,
https://github.com/project-miracl/nomiracl, Thakur et al. 2024): 250 questions whose ten passages hold the answer, and 250 others.
Validation is by folds of questions, ten times over; `hallucination` and `error` are the benchmark's words: the share of
unanswerable questions called answerable, and of answerable ones called unanswerable.

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
from typing import Any

import numpy as np

from evals.answerability import VECTORS, Rarity, features
from evals.groundedness import register
from evals.support import Vectors, words

C, DIRECTIONS = 0.03, 16
"""Of the logistic regression, and of the principal components of each embedding that it sees."""
FOLDS, REPEATS = 10, 10
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


def train(folder: Path, embed: Any) -> dict[str, Any]:
    """The model, calibrated as a logistic regression is, with what it reaches on questions it has not seen."""
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import brier_score_loss, roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

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
    n, size = len(names), len(rows[0][1])
    blocks = [slice(0, n), slice(n, n + size), slice(n + size, n + 2 * size)]
    reduced = [make_pipeline(PCA(DIRECTIONS, random_state=0), StandardScaler()) for _ in VECTORS]
    columns = [("values", StandardScaler(), blocks[0]), ("question", reduced[0], blocks[1]), ("gap", reduced[1], blocks[2])]
    made = make_pipeline(ColumnTransformer(columns), LogisticRegression(C=C, max_iter=2_000))
    found = []
    for seed in range(REPEATS):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        p = np.asarray(cross_val_predict(made, x, labels, cv=folds, method="predict_proba"))[:, 1]
        said = p >= 0.5
        found.append({
            "accuracy": (said == labels).mean(), "hallucination": said[~labels].mean(), "error": (~said[labels]).mean(),
            "auroc": roc_auc_score(labels, p), "brier": brier_score_loss(labels, p),
        })  # fmt: skip
    made.fit(x, labels)
    # all of it is linear in x, so its slopes are what it says at the unit vectors
    at_zero = float(made.decision_function(np.zeros((1, x.shape[1])))[0])
    slopes = made.decision_function(np.eye(x.shape[1])) - at_zero
    validation = {key: round(float(np.mean([each[key] for each in found])), 3) for key in found[0]}
    return {
        "intercept": round(at_zero, 6),
        "coefficients": {
            **{name: round(float(value), 6) for name, value in zip(names, slopes[blocks[0]], strict=True)},
            **dict.fromkeys(VECTORS, 1.0),
        },
        "vectors": {name: [round(float(v), 4) for v in slopes[block]] for name, block in zip(VECTORS, blocks[1:], strict=True)},
        "threshold": 0.5,
        "validation": {"nomiracl-en": {"questions": len(data), **validation}},
        "passages": total,
        "frequency": frequency,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.train_answerability", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="where the model is written; without it only the validation is printed")
    parser.add_argument("--encoder", default="retrieval.embed:Encoder", help="MODULE:CLASS with load(cache).embed")
    parser.add_argument("--cache", type=Path, default=Path(".smalti/models"))
    parser.add_argument("--tracking-uri", help="MLflow, where the model is registered")
    options = parser.parse_args(arguments)
    module, _, name = options.encoder.partition(":")
    spec = train(options.folder, getattr(importlib.import_module(module), name).load(options.cache).embed)
    print(json.dumps(spec["validation"], indent=1))
    if options.out:
        options.out.write_text(
            json.dumps(spec, indent=None, separators=(",", ":")).replace("},", "},\n") + "\n", encoding="utf-8"
        )
    if options.tracking_uri:
        print(register("answerability", spec, options.tracking_uri, {"C": C, "directions": DIRECTIONS}))


if __name__ == "__main__":
    main()
