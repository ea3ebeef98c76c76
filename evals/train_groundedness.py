"""Fit `groundedness.json`: `python -m evals.train_groundedness FOLDER --out evals/groundedness.json [--tracking-uri URI]`.

FOLDER holds the development parts of BEGIN (`begin/begin_dev_*.tsv`, https://github.com/google/BEGIN-dataset), WiCE
(`wice/*claim_dev.jsonl`, https://github.com/ryokamoi/wice) and SummEdits (`summedits/summedits_*.json`,
https://github.com/salesforce/factualNLG). Validation never sees what it is measured on: BEGIN and WiCE by folds of whole
documents and claims, SummEdits by leaving each domain out. With a tracking URI the model is logged to MLflow and registered as
`groundedness`, with its numbers.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evals.groundedness import EMBEDDED, Model, register
from evals.support import Vectors, features

SAY = {"begin": 3.0, "wice": 1.0, "summedits": 0.3}
"""How much each collection's sets count, whatever their size; both labels of a set count the same."""
C = 0.01
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Pair:
    passages: str
    text: str
    label: bool
    set: str
    domain: str
    """What is left out together in validation: a SummEdits domain; else the collection, in folds of groups."""
    group: str
    original: str = ""
    """The summary that a SummEdits summary was made from."""


def pairs(folder: Path) -> Iterator[Pair]:
    for path in sorted((folder / "begin").glob("begin_dev_*.tsv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                grounded = row["begin_label"].lower().startswith("fully")
                yield Pair(row["knowledge"], row["response"], grounded, path.stem, "begin", row["knowledge"])
    for path in sorted((folder / "wice").glob("*claim_dev.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield Pair("\n".join(row["evidence"]), row["claim"], row["label"] == "supported", path.stem, "wice", row["claim"])
    for path in sorted((folder / "summedits").glob("summedits_*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            yield Pair(row["doc"], row["summary"], bool(row["label"]), path.stem, path.stem, row["doc"], row["original_summary"])


def weights(data: Sequence[Pair]) -> np.ndarray:
    sets, labels = np.array([pair.set for pair in data]), np.array([pair.label for pair in data])
    found = np.zeros(len(data))
    for name in set(sets):
        for label in (False, True):
            chosen = (sets == name) & (labels == label)
            found[chosen] = SAY[name.split("_")[0] if "claim" not in name else "wice"] / max(1, chosen.sum())
    return found * len(data) / found.sum()


def fit(x: np.ndarray, data: Sequence[Pair]) -> tuple[np.ndarray, float]:
    """Coefficients and intercept of a logistic regression over standardised features, folded back to plain ones."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = x.mean(0), x.std(0) + 1e-9
    model = LogisticRegression(C=C, max_iter=2_000)
    model.fit((x - mean) / scale, [pair.label for pair in data], sample_weight=weights(data))
    coefficients = np.asarray(model.coef_)[0] / scale
    return coefficients, float(np.asarray(model.intercept_)[0] - coefficients @ mean)


def held_out(x: np.ndarray, data: Sequence[Pair]) -> np.ndarray:
    """The log-odds of each pair by a model that has seen nothing of its group, or of its SummEdits domain."""
    from sklearn.model_selection import GroupKFold

    domains, groups = np.array([pair.domain for pair in data]), np.array([pair.group for pair in data])
    found = np.zeros(len(data))
    for domain in sorted(set(domains)):
        own = np.flatnonzero(domains == domain)
        whole = [own] if domain.startswith("summedits") else [own[t] for _, t in GroupKFold(FOLDS).split(own, groups=groups[own])]
        for test in whole:
            train = np.setdiff1d(np.arange(len(data)), test)
            coefficients, intercept = fit(x[train], [data[place] for place in train])
            found[test] = x[test] @ coefficients + intercept
    return found


def train(folder: Path, embed: Any) -> dict[str, Any]:
    """The model, calibrated on held-out log-odds, with what it reaches there by set."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

    data, vectors = list(pairs(folder)), Vectors(embed, longest=EMBEDDED)
    rows = []
    for number, pair in enumerate(data):
        rows.append(features(pair.passages, pair.text, vectors))
        if number % 500 == 0:
            print(f"{number} of {len(data)}", flush=True)
    names = list(rows[0])
    x = np.array([[row[name] for name in names] for row in rows])
    labels, sets = np.array([pair.label for pair in data]), np.array([pair.set for pair in data])
    logits = held_out(x, data)
    platt = LogisticRegression(C=1e6).fit(logits[:, None], labels, sample_weight=weights(data))
    slope, shift = float(np.asarray(platt.coef_)[0, 0]), float(np.asarray(platt.intercept_)[0])
    probabilities = 1 / (1 + np.exp(-(slope * logits + shift)))
    validation = {}
    for name in sorted(set(sets)):
        at = sets == name
        validation[name] = {
            "pairs": int(at.sum()),
            "auroc": round(float(roc_auc_score(labels[at], probabilities[at])), 3),
            "balanced_accuracy": round(float(balanced_accuracy_score(labels[at], probabilities[at] >= 0.5)), 3),
            "brier": round(float(brier_score_loss(labels[at], probabilities[at])), 3),
        }
    coefficients, intercept = fit(x, data)
    return {
        "intercept": round(slope * intercept + shift, 6),
        "coefficients": {name: round(slope * float(value), 6) for name, value in zip(names, coefficients, strict=True)},
        "threshold": 0.5,
        "validation": validation,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.train_groundedness", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="where the model is written; without it only the validation is printed")
    parser.add_argument("--encoder", default="retrieval.embed:Encoder", help="MODULE:CLASS with load(cache).embed")
    parser.add_argument("--cache", type=Path, default=Path(".smalti/models"))
    parser.add_argument("--tracking-uri", help="MLflow, where the model is registered")
    options = parser.parse_args(arguments)
    module, _, name = options.encoder.partition(":")
    spec = train(options.folder, getattr(importlib.import_module(module), name).load(options.cache).embed)
    print(json.dumps(spec["validation"], indent=1))
    if not all(math.isfinite(value) for value in spec["coefficients"].values()):
        raise SystemExit("the fit has a coefficient that is no number; look for features without values")
    if options.out:
        options.out.write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")
    if options.tracking_uri:
        params = {"C": C, **{f"say_{name}": value for name, value in SAY.items()}}
        print(register("groundedness", Model(spec), spec, {}, options.tracking_uri, params))


if __name__ == "__main__":
    main()
