"""Into the model registry: a trained classifier with signature, input example, data hash and the alias `champion`."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.classifier import LinearClassifier

ALIAS = "champion"
_CODE = Path(__file__).with_name("linear_model.py")


@dataclass(frozen=True, slots=True)
class Registered:
    """A model version: `models:/{name}@champion` loads it."""

    name: str
    version: str
    model_uri: str


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


def register(classifier: LinearClassifier, name: str, *, metadata: Mapping[str, Any] | None = None) -> Registered:
    """Log a classifier to MLflow's active run, register it as `name` and make it its champion.

    The model is an MLflow pyfunc of embeddings, shape (-1, dimension), with explicit requirements: nothing is inferred or
    fetched. Its metadata and the version's tags hold `metadata` and the classifier's own.
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
        client.set_registered_model_alias(name, ALIAS, number)
    return Registered(name, number, logged.model_uri)
