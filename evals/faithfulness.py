"""Faithfulness of a summary without an LLM: the probability that what restates passages has changed nothing that they say.

`evals.groundedness` asks whether a text is found in passages at all. A summary is found in them nearly whole, and may be false by
one word: here each word piece is held against what stands in its place (`evals.wording`), and words astray (`evals.astray`)
are left out in turn. What comes of both is weighed by a logistic regression, and what comes of the pieces by
boosted trees, which see the features of `evals.support` too. `faithfulness.json` and
`faithfulness.npz` are made by `python -m evals.train_faithfulness FOLDER --out evals/faithfulness.json`; here they are only
applied. What the model reaches on domains it has not seen is written in the former, under `validation`: clearly more than chance,
and far less than people or a good judge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from evals.astray import astray
from evals.cache import digest
from evals.groundedness import scored
from evals.support import features, probability
from evals.wording import Network, Read, Wording, pooled, shipped


class Trees:
    """Log-odds by boosted regression trees: each a list of `[feature, threshold, left, right]` and, where it ends, `[value]`."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.names, self.trees, self.start = list(spec["names"]), spec["trees"], float(spec["start"])

    def __call__(self, values: Mapping[str, float]) -> float:
        row, found = [values[name] for name in self.names], self.start
        for tree in self.trees:
            node = tree[0]
            while len(node) > 1:
                node = tree[node[2] if row[node[0]] <= node[1] else node[3]]
            found += node[0]
        return found


class Weighed:
    """A logistic model and trees together, calibrated by a `slope`; `threshold`: from where on a summary counts as faithful."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.coefficients: dict[str, float] = dict(spec["coefficients"])
        self.intercept, self.slope, self.threshold = (float(spec[name]) for name in ("intercept", "slope", "threshold"))
        self.trees = Trees(spec["trees"])
        self.fingerprint = digest([spec[name] for name in ("coefficients", "intercept", "slope", "threshold", "trees")])

    def __call__(self, values: Mapping[str, float]) -> float:
        """The probability; evidence for and against counted as equally likely beforehand."""
        line = self.intercept + sum(weight * values[name] for name, weight in self.coefficients.items())
        return probability(self.slope * (line + self.trees(values)))


@cache
def model() -> Weighed:
    """The model that Smalti comes with, read once."""
    return Weighed(json.loads(resources.files("evals").joinpath("faithfulness.json").read_text(encoding="utf-8")))


class Faithfulness:
    """A scorer for summaries: the probability that a summary says of its passages nothing that they do not say.

    Parameters
    ----------
    read: the encoder, word piece by word piece; the model that Smalti comes with was made with all-MiniLM-L6-v2's.

    It reads outputs as `Groundedness` does.
    """

    name = "faithfulness"

    def __init__(self, read: Read, spec: Weighed | None = None, network: Network | None = None) -> None:
        self.weighed, self._network = spec or model(), network or shipped()
        self._wording, self.fingerprint = Wording(read, self._network.spelled, self._network.meant), self.weighed.fingerprint

    def score(self, passages: str, text: str) -> float:
        """The probability that `text` is faithful to `passages`, 0 to 1."""
        rows, _ = self._wording.pairs(passages, text)  # first: it reads at once all that the features need
        found = features(passages, text, self._wording.vectors) | astray(passages, text, self._wording.glance)
        return self.weighed(found | pooled(rows, self._network(rows)))

    def run(self, *, inputs: Any = None, outputs: Any = None, expectations: Any = None, trace: Any = None) -> float | None:
        return scored(self.score, outputs)
