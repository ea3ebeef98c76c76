"""Into the model registry: a trained model with signature, input example, data hash; the best has the alias `champion`."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.classifier import LinearClassifier
from finetune.data import Row

ALIAS = "champion"
MADE_BY = "smalti.created_by"
"""Tag of a version, and of a model that is new with it: for whom the run was."""
LOCAL = "local"
"""Whose runs are that a command or a program on this machine began, as the server calls its command line."""
_CODE = Path(__file__).with_name("linear_model.py")
_TEXT_CODE = Path(__file__).with_name("text_model.py")


@dataclass(frozen=True, slots=True)
class Registered:
    """A model version: `models:/{name}@champion` loads it."""

    name: str
    version: str
    model_uri: str
    champion: bool
    """Whether the alias points to it."""
    reason: str
    """Why it does, or does not."""


def sign(made: Registered, created_by: str = "") -> Registered:
    """Note who began the run in what came of it; `created_by` is `KIND:NAME`, or says where a run without a caller began."""
    import mlflow

    name = created_by.partition(":")[2] or LOCAL
    client = mlflow.MlflowClient()
    client.set_model_version_tag(made.name, made.version, MADE_BY, name)
    if made.version == "1":
        client.set_registered_model_tag(made.name, MADE_BY, name)
    return made


@contextmanager
def quiet() -> Iterator[None]:
    """MLflow tells of its own doings by warnings and log lines; none of them is about the model."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def register(
    classifier: LinearClassifier,
    name: str,
    *,
    metadata: Mapping[str, Any] | None = None,
    score: float | None = None,
    judge: Callable[[Any], float] | None = None,
    margin: float = 0.0,
) -> Registered:
    """Log a classifier to MLflow's active run, register it as `name` and make it its champion if it is better.

    The model is an MLflow pyfunc of embeddings, shape (-1, dimension), with explicit requirements: nothing is inferred or
    fetched. Its metadata and the version's tags hold `metadata` and the classifier's own.

    score, judge, margin: as in `promote`.
    """
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import DataType as T

    facts = {**classifier.metadata, **(metadata or {}), "labels": list(classifier.labels)}
    columns: list[ColSpec | TensorSpec] = [ColSpec(T.string, "label"), ColSpec(T.float, "confidence")]
    columns += [ColSpec(T.float, f"p_{label}") for label in classifier.labels]
    inputs = Schema([TensorSpec(np.dtype(np.float32), (-1, classifier.dimension))])
    example = np.zeros((1, classifier.dimension), np.float32)
    example[0, 0] = 1
    with tempfile.TemporaryDirectory() as folder, quiet():
        kept = Path(folder) / "classifier.json"
        kept.write_text(classifier.to_json(), encoding="utf-8")
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(_CODE),
            artifacts={"classifier": str(kept)},
            signature=ModelSignature(inputs, Schema(columns)),
            input_example=example,
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "numpy", "pandas")],
            metadata=facts,
            registered_model_name=name,
        )
        number = str(logged.registered_model_version)
        client = mlflow.MlflowClient()
        for key, value in facts.items():
            client.set_model_version_tag(name, number, key, str(value)[:5000])
        champion, reason = promote(name, number, score, judge, margin)
        client.set_model_version_tag(name, number, "promotion", reason)
    return Registered(name, number, logged.model_uri, champion, reason)


def register_text_model(
    folder: Path,
    name: str,
    *,
    signature: Any,
    example: Any,
    facts: Mapping[str, Any],
    card: str,
    score: float | None,
    judge: Callable[[Any], float] | None,
    margin: float = 0.0,
) -> Registered:
    """Log a trained encoder to MLflow's active run and register it.

    Parameters
    ----------
    folder: `model.onnx`, `tokenizer.json`, `model.json`, as the task exports them.
    facts: hashes and metrics, kept in the model's metadata and the version's tags.
    card: the model card, Markdown.
    score, judge, margin: as in `promote`.
    """
    files = {"model": "model.onnx", "tokenizer": "tokenizer.json", "about": "model.json"}
    packages = ("mlflow", "numpy", "onnxruntime", "pandas", "tokenizers")
    return register_code(
        _TEXT_CODE, folder, name, files, packages, signature, example, facts, card, score=score, judge=judge, margin=margin
    )


def register_code(
    code: Path,
    folder: Path,
    name: str,
    files: Mapping[str, str],
    packages: Sequence[str],
    signature: Any,
    example: Any,
    facts: Mapping[str, Any],
    card: str,
    *,
    score: float | None,
    judge: Callable[[Any], float] | None,
    margin: float = 0.0,
) -> Registered:
    """The one way of a model from code into the registry: `files` of `folder` are its artifacts, `packages` all that it needs."""
    import mlflow

    (folder / "README.md").write_text(card, encoding="utf-8")
    with quiet():
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code),
            artifacts={key: str(folder / file) for key, file in {**files, "card": "README.md"}.items()},
            signature=signature,
            input_example=example,
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in packages],
            metadata={**facts, "rowwise": True},
            registered_model_name=name,
        )
        number = str(logged.registered_model_version)
        client = mlflow.MlflowClient()
        client.update_model_version(name, number, card)
        for key, value in facts.items():
            client.set_model_version_tag(name, number, key, str(value)[:5000])
        champion, reason = promote(name, number, score, judge, margin)
        client.set_model_version_tag(name, number, "promotion", reason)
    return Registered(name, number, logged.model_uri, champion, reason)


def labels_signature(inputs: Any, labels: Sequence[str]) -> Any:
    """The signature of a model that gives `label`, `confidence` and each label's probability."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema
    from mlflow.types.schema import DataType as T

    outputs = [ColSpec(T.string, "label"), ColSpec(T.float, "confidence"), *(ColSpec(T.float, f"p_{label}") for label in labels)]
    return ModelSignature(inputs, Schema(list(outputs)))


def labels_facts(labels: Sequence[str]) -> dict[str, Any]:
    return {"labels": list(labels), "id2label": {str(i): label for i, label in enumerate(labels)}}


def evaluation_lines(recipe: Any, result: Mapping[str, Any], rows: int) -> list[str]:
    """A model card's section: metrics beside the baseline's."""
    if not result["metrics"]:
        return ["## Evaluation", "", "It was not evaluated: the recipe names no `data.eval`."]
    name, base = (recipe.data.eval.name if recipe.data.eval else ""), result["baseline"]
    lines = ["## Evaluation", "", f"On {rows} rows of `{name}`.", "", f"| | this model | {result['baseline_name']} |"]
    return [*lines, "|---|---|---|", *(f"| {key} | {value:.3f} | {base[key]:.3f} |" for key, value in result["metrics"].items())]


def macro_recall(version: Any, rows: Sequence[Row], given: Callable[[Any], Any]) -> float:
    """Of a registered version on labelled rows; `given` makes of the loaded model what it is to predict of the rows' texts."""
    import mlflow

    model = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")
    right: dict[str, list[bool]] = {}
    for row, label in zip(rows, model.predict(given(model))["label"], strict=True):
        right.setdefault(row.label, []).append(row.label == label)
    return sum(sum(hits) / len(hits) for hits in right.values()) / len(right)


def promote(name: str, number: str, score: float | None, judge: Callable[[Any], float] | None, margin: float) -> tuple[bool, str]:
    """Move the alias to a version if it is better than the champion; gives whether it did, and why.

    Parameters
    ----------
    score: of the new version, higher is better; None if it was not evaluated.
    judge: scores the champion, given as MLflow's model version, on the rows that gave `score`; raises `LookupError` with why it
        cannot.
    margin: how much better it must be.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    try:
        incumbent = client.get_model_version_by_alias(name, ALIAS)
    except MlflowException:
        client.set_registered_model_alias(name, ALIAS, number)
        return True, "It is the first champion."
    if score is None or judge is None:
        return False, f"It was not evaluated, so version {incumbent.version} stays the champion."
    try:
        theirs = judge(incumbent)
    except LookupError as error:
        return False, f"Version {incumbent.version}, the champion, stays: {error.args[0]}"
    except Exception as error:
        return False, f"Version {incumbent.version}, the champion, could not be judged on these rows ({type(error).__name__})."
    told = f"{score:.4f}, version {incumbent.version} has {theirs:.4f} on the same rows"
    if score <= theirs + margin:
        return False, f"It scores {told}: no better{f' by {margin:g}' if margin else ''}."
    client.set_registered_model_alias(name, ALIAS, number)
    return True, f"It scores {told}."
