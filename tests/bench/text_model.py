"""The benchmark's text classifier as an MLflow model from code: MiniLM vectors and a logistic regression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel


class Classifier(PythonModel):
    """`classifier.json` has the encoder's folder, the labels, weights and biases."""

    def load_context(self, context: Any) -> None:
        import numpy as np

        from retrieval.embed import Encoder

        given = json.loads(Path(context.artifacts["classifier"]).read_text())
        self.encoder = Encoder.load(Path(given["encoder"]), threads=2)
        self.labels, self.weights, self.bias = np.array(given["labels"]), np.array(given["weights"]), np.array(given["bias"])

    def predict_texts(self, texts: list[str]) -> list[str]:
        return self.labels[(self.encoder.embed(texts) @ self.weights.T + self.bias).argmax(1)].tolist()

    def predict(self, context: Any, model_input: Any, params: Any = None) -> list[str]:
        return self.predict_texts(list(model_input["text"]))


mlflow.models.set_model(Classifier())
