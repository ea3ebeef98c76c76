"""Fit `faithfulness.json` and `.npz`: `python -m evals.train_faithfulness FOLDER --out evals/faithfulness.json [--tracking-uri
URI]`.

FOLDER holds SummEdits (`summedits/summedits_*.json`, https://github.com/salesforce/factualNLG, Laban et al. 2023), at least three
of its domains, and for the projections of word pieces alone BEGIN or WiCE as `evals.train_groundedness` takes them. Each domain
is judged by models that have not seen it, from the network of word pieces on. The models over that network learn from its values
for domains that it has not seen either, so that they know it as it is on new ones. With a tracking URI the model is logged to
MLflow and registered as `faithfulness`, with its numbers.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from evals.astray import ASTRAY, astray
from evals.faithfulness import Weighed
from evals.groundedness import register
from evals.support import features
from evals.train_groundedness import Pair, pairs
from evals.train_wording import bases, differs, fit
from evals.wording import POOLED, Network, Read, Wording, pooled

C = 0.02
LINE = 2.0
"""How much the regression counts beside the trees."""
SEEDS = 3
"""Sets of trees, of which the mean counts."""
TREES: Mapping[str, Any] = {"n_estimators": 80, "max_depth": 3, "learning_rate": 0.05, "subsample": 0.5, "max_features": 0.3}


class Fitted:
    """A logistic regression over what the pieces come to and what is astray, and trees over the former and `evals.support`."""

    def __init__(
        self, worded: np.ndarray, strayed: np.ndarray, found: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> None:
        from sklearn.ensemble import GradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression

        x = np.concatenate([worded, strayed], axis=1)
        mean, scale = x.mean(0), x.std(0) + 1e-9
        line = LogisticRegression(C=C, max_iter=2_000).fit((x - mean) / scale, labels, sample_weight=weights)
        self.slopes = LINE * np.asarray(line.coef_)[0] / scale
        self.intercept = float(LINE * np.asarray(line.intercept_)[0] - self.slopes @ mean)
        seen = np.concatenate([found, worded], axis=1)
        self.trees: list[Any] = [
            GradientBoostingClassifier(**TREES, min_samples_leaf=20, random_state=seed).fit(seen, labels, sample_weight=weights)
            for seed in range(SEEDS)
        ]

    def grown(self, worded: np.ndarray, found: np.ndarray) -> np.ndarray:
        """What the trees say."""
        seen = np.concatenate([found, worded], axis=1)
        return np.mean([each.decision_function(seen) for each in self.trees], axis=0)

    def __call__(self, worded: np.ndarray, strayed: np.ndarray, found: np.ndarray) -> np.ndarray:
        return np.concatenate([worded, strayed], axis=1) @ self.slopes + self.intercept + self.grown(worded, found)


@dataclass
class Study:
    """The pairs, what is computed of them, and what is fitted on parts of them."""

    data: Sequence[Pair]
    names: list[str]
    found: np.ndarray
    """Features of `evals.support`, a row a pair."""
    strayed: np.ndarray
    """Features of `evals.astray`."""
    rows: list[np.ndarray]
    """Features of the pieces of each pair."""
    changed: list[np.ndarray]
    basis: tuple[Any, Any]
    _networks: dict[frozenset[str], Network] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.labels, self.domains = np.array([pair.label for pair in self.data]), np.array([pair.domain for pair in self.data])

    def network(self, *without: str) -> Network:
        """The network that has seen all domains but these."""
        if (key := frozenset(without)) not in self._networks:
            chosen = np.flatnonzero(~np.isin(self.domains, without))
            false = np.concatenate([np.full(len(self.rows[place]), not self.labels[place]) for place in chosen])
            rows, changed = (np.concatenate([of[place] for place in chosen]) for of in (self.rows, self.changed))
            self._networks[key] = fit(rows, changed, false, *self.basis)
            print(f"network without {', '.join(sorted(key)) or 'none'}", flush=True)
        return self._networks[key]

    def worded(self, without: str = "") -> np.ndarray:
        """What the pieces come to, a row a pair: of a domain by a network that has seen neither it nor `without`."""
        left, found = [without] if without else [], np.zeros((len(self.data), len(POOLED)))
        for domain in sorted(set(self.domains)):
            network = self.network(*{*left, domain})
            for place in np.flatnonzero(self.domains == domain):
                rows = self.rows[place].astype(np.float32)
                found[place] = list(pooled(rows, network(rows)).values())
        return found

    def weights(self, places: np.ndarray) -> np.ndarray:
        """Both labels of each domain count the same, whatever their number."""
        keys = np.array([f"{self.domains[place]} {self.labels[place]}" for place in places])
        kinds, at, counts = np.unique(keys, return_inverse=True, return_counts=True)
        return len(places) / len(kinds) / counts[at]

    def fitted(self, places: np.ndarray, worded: np.ndarray) -> Fitted:
        """Both models of these pairs."""
        return Fitted(worded[places], self.strayed[places], self.found[places], self.labels[places], self.weights(places))

    def held_out(self) -> np.ndarray:
        """Log-odds of each pair by models that have seen nothing of its domain."""
        found = np.zeros(len(self.data))
        for domain in sorted(set(self.domains)):
            worded, test = self.worded(domain), self.domains == domain
            made = self.fitted(np.flatnonzero(~test), worded)
            found[test] = made(worded[test], self.strayed[test], self.found[test])
        return found


def _nodes(tree: Any, rate: float) -> list[list[float]]:
    """A tree of scikit-learn's as `evals.groundedness.Trees` reads it."""
    return [
        [round(float(value) * rate, 6)] if left < 0 else [int(feature), float(threshold), int(left), int(right)]
        for feature, threshold, left, right, value in zip(
            tree.feature, tree.threshold, tree.children_left, tree.children_right, tree.value.ravel(), strict=True
        )
    ]


def study(folder: Path, read: Read) -> Study:
    """The summaries of `folder` with their features."""
    everything = list(pairs(folder))
    data = [pair for pair in everything if pair.original]
    others = [pair.text for pair in everything if not pair.original]
    if len({pair.domain for pair in data}) < 3 or not others:
        raise SystemExit(f"{folder}: needs at least three domains in summedits/, and begin/ or wice/")
    basis = bases(read, others[::2])
    wording, values, strayed, rows, changed = Wording(read, *basis), [], [], [], []
    for number, pair in enumerate(data):
        found, shown = wording.pairs(pair.passages, pair.text)
        values.append(features(pair.passages, pair.text, wording.vectors))
        strayed.append(list(astray(pair.passages, pair.text, wording.glance).values()))
        rows.append(found.astype(np.float16))
        changed.append(differs(pair.text, pair.original, shown))
        if number % 500 == 0:
            print(f"{number} of {len(data)}", flush=True)
    names = list(values[0])
    found = np.array([[row[name] for name in names] for row in values])
    return Study(data, names, found, np.array(strayed), rows, changed, basis)


def train(folder: Path, read: Read) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The model and its network's arrays, calibrated on held-out log-odds, with what it reaches there by domain."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

    made = study(folder, read)
    everything, logits = np.arange(len(made.data)), made.held_out()
    platt = LogisticRegression(C=1e6, fit_intercept=False).fit(
        logits[:, None], made.labels, sample_weight=made.weights(everything)
    )
    slope = float(np.asarray(platt.coef_)[0, 0])
    probabilities, validation = 1 / (1 + np.exp(-slope * logits)), {}
    for name in sorted(set(made.domains)):
        at = made.domains == name
        validation[name] = {
            "pairs": int(at.sum()),
            "auroc": round(float(roc_auc_score(made.labels[at], probabilities[at])), 3),
            "balanced_accuracy": round(float(balanced_accuracy_score(made.labels[at], probabilities[at] >= 0.5)), 3),
            "brier": round(float(brier_score_loss(made.labels[at], probabilities[at])), 3),
        }
    worded = made.worded()
    whole = made.fitted(everything, worded)
    spec: dict[str, Any] = {
        "intercept": round(whole.intercept, 6),
        "coefficients": {name: round(float(value), 6) for name, value in zip((*POOLED, *ASTRAY), whole.slopes, strict=True)},
        "slope": round(slope, 6),
        "threshold": 0.5,
        "trees": {
            "names": [*made.names, *POOLED],
            "start": 0.0,
            "trees": [
                _nodes(each.tree_, TREES["learning_rate"] / SEEDS) for seed in whole.trees for each in seed.estimators_[:, 0]
            ],
        },
        "validation": validation,
    }
    first = dict(zip(spec["trees"]["names"], [*made.found[0], *worded[0]], strict=True))
    said = float(whole.grown(worded[:1], made.found[:1])[0])
    spec["trees"]["start"] = round(said - Weighed(spec).trees(first), 6)
    return spec, made.network().arrays()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.train_faithfulness", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="where the model is written, and its network beside it; without it nothing is")
    parser.add_argument("--encoder", default="retrieval.embed:Encoder", help="MODULE:CLASS with load(cache).read")
    parser.add_argument("--cache", type=Path, default=Path(".smalti/models"))
    parser.add_argument("--tracking-uri", help="MLflow, where the model is registered")
    options = parser.parse_args(arguments)
    module, _, name = options.encoder.partition(":")
    spec, arrays = train(options.folder, getattr(importlib.import_module(module), name).load(options.cache).read)
    print(json.dumps(spec["validation"], indent=1))
    if options.out:
        options.out.write_text(json.dumps(spec, separators=(",", ":")).replace("},", "},\n") + "\n", encoding="utf-8")
        np.savez_compressed(options.out.with_suffix(".npz"), **cast("Any", arrays))
    if options.tracking_uri:
        print(register("faithfulness", Weighed(spec), spec, arrays, options.tracking_uri, {"C": C, **TREES}))


if __name__ == "__main__":
    main()
