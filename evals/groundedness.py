"""Groundedness without an LLM: the probability that passages support a text, by a logistic regression over `evals.support`.

The coefficients in `groundedness.json` are made by `python -m evals.train_groundedness FOLDER --out evals/groundedness.json`;
here they are only applied. What the model reaches on data it has not seen is written in that file, under `validation`. It
measures whether the words, numbers, names and sentences of a text are found in the passages. A summary in which one word was
changed for another is told apart hardly better than by chance (SummEdits); `evals.faithfulness` is for summaries.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

from evals.cache import digest
from evals.support import Embed, Vectors, features, probability

EMBEDDED = 80
"""Characters of a sentence that are embedded; more have told nothing more."""


class Model:
    """A logistic model: `coefficients` by feature, `intercept`, and the `threshold` from which a text counts as grounded."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.coefficients: dict[str, float] = dict(spec["coefficients"])
        self.intercept, self.threshold = float(spec["intercept"]), float(spec["threshold"])
        self.fingerprint = digest([self.coefficients, self.intercept, self.threshold])

    def __call__(self, values: Mapping[str, float]) -> float:
        """The probability; evidence for and against counted as equally likely beforehand."""
        logit = self.intercept + sum(weight * values[name] for name, weight in self.coefficients.items())
        return probability(logit)


@cache
def model() -> Model:
    """The model that Smalti comes with, read once."""
    return Model(json.loads(resources.files("evals").joinpath("groundedness.json").read_text(encoding="utf-8")))


class Groundedness:
    """A scorer for `evals.run.evaluate` and `mlflow.genai.evaluate`'s kind: the probability that the passages support the answer.

    Parameters
    ----------
    embed: the encoder; the model that Smalti comes with was made with all-MiniLM-L6-v2.

    It reads `text` and the `text` (or `quote`) of `passages` from the outputs; a row that abstained or has no passages yields
    nothing.
    """

    name = "groundedness"

    def __init__(self, embed: Embed, spec: Model | None = None) -> None:
        self.model, self._vectors = spec or model(), Vectors(embed, longest=EMBEDDED)
        self.fingerprint = self.model.fingerprint

    def score(self, passages: str, text: str) -> float:
        """The probability that `passages` support `text`, 0 to 1."""
        return self.model(features(passages, text, self._vectors))

    def run(self, *, inputs: Any = None, outputs: Any = None, expectations: Any = None, trace: Any = None) -> float | None:
        return scored(self.score, outputs)


def scored(score: Callable[[str, str], float], outputs: Any) -> float | None:
    """What `score` says of a row's passages and text; nothing where it abstained or has no passages."""
    if not isinstance(outputs, Mapping) or outputs.get("abstained") or not str(outputs.get("text") or "").strip():
        return None
    passages = "\n".join(filter(None, (str(p.get("text") or p.get("quote") or "") for p in outputs.get("passages") or ())))
    return round(score(passages, str(outputs["text"])), 4) if passages else None


def register(
    name: str,
    score: Callable[..., float],
    spec: Mapping[str, Any],
    arrays: Mapping[str, Any],
    tracking_uri: str,
    params: Mapping[str, Any],
) -> str:
    """Log a fitted model to MLflow with its numbers and files, and register a version of `name`; the version's URI.

    `score`: features by name, and what else an input is called, to a probability.
    """
    import mlflow
    import numpy as np
    from mlflow.pyfunc.model import PythonModel

    class Scorer(PythonModel):
        """Rows of features (columns by name) to probabilities; `evals.support` and its like make the features."""

        def predict(self, context, model_input, params=None):  # pyright: ignore[reportIncompatibleMethodOverride]
            import numpy as np

            return np.array([score(dict(row)) for row in model_input.to_dict("records")])

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment(name)
    with mlflow.start_run(), tempfile.TemporaryDirectory() as folder:
        mlflow.log_dict(dict(spec), f"{name}.json")
        np.savez_compressed(Path(folder) / f"{name}.npz", **cast("Any", arrays))
        mlflow.log_artifact(str(Path(folder) / f"{name}.npz"))
        mlflow.log_params(dict(params))
        mlflow.log_metrics({f"{set_}/{key}": value for set_, found in spec["validation"].items() for key, value in found.items()})
        info = mlflow.pyfunc.log_model(name=name, python_model=Scorer(), registered_model_name=name)
    return f"models:/{name}/{info.registered_model_version}"
