"""The registered form of a `LinearClassifier`: an MLflow model from code, self-contained.

This file is copied into the model and run when it is loaded, where the rooms may not be installed; it needs numpy and pandas
alone. It takes embeddings, not text: the encoder (its name and fingerprint are in the model's metadata) is not copied into each
model that uses it.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class LinearModel(PythonModel):
    """(n, dimension) float32 embeddings to a frame: `label`, `confidence` and each label's probability."""

    def load_context(self, context: PythonModelContext) -> None:
        with open(context.artifacts["classifier"], encoding="utf-8") as file:
            data = json.load(file)
        self.labels: list[str] = data["labels"]
        weights = np.frombuffer(base64.b64decode(data["weights"]), "<f4").reshape(len(self.labels), -1)
        self.weights, self.bias = weights / data["temperature"], np.asarray(data["bias"], np.float32) / data["temperature"]

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride] - MLflow declares None
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        scores = np.asarray(model_input, np.float32) @ self.weights.T + self.bias
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities = scores / scores.sum(axis=1, keepdims=True)
        frame = pd.DataFrame({"label": [self.labels[i] for i in probabilities.argmax(1)], "confidence": probabilities.max(1)})
        return frame.assign(**{f"p_{label}": probabilities[:, i] for i, label in enumerate(self.labels)})


set_model(LinearModel())
