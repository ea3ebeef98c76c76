"""A trained linear classifier: needs numpy to run and JSON to be kept."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FORMAT = "linear_classifier/1"


@dataclass(frozen=True, slots=True)
class LinearClassifier:
    """Probabilities of classes from an embedding: `softmax((x @ weights.T + bias) / temperature)`.

    Parameters
    ----------
    labels: the classes, in the order of the rows of `weights`.
    weights: (classes, dimension) float32.
    bias: (classes,) float32.
    temperature: over 1 it makes probabilities less sure, under 1 surer; fitted on predictions for rows not trained on.
    metadata: what it was made from (encoder, data hash, metrics); JSON values, kept with it.
    """

    labels: tuple[str, ...]
    weights: np.ndarray
    bias: np.ndarray
    temperature: float = 1.0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        classes = len(self.labels)
        if classes < 2 or self.weights.ndim != 2 or self.weights.shape[0] != classes or self.bias.shape != (classes,):
            shapes = f"weights {self.weights.shape}, bias {self.bias.shape}"
            raise ValueError(
                f"A classifier of {classes} labels needs weights ({classes}, d) and bias ({classes},), not {shapes}."
            )
        if not self.temperature > 0:
            raise ValueError(f"The temperature must be above 0, not {self.temperature}.")

    @property
    def dimension(self) -> int:
        return int(self.weights.shape[1])

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(n, dimension) embeddings to (n, classes) probabilities, float32; rows sum to 1.

        Raises
        ------
        ValueError: the embeddings have another dimension, that is, come from another encoder.
        """
        X = np.asarray(X, dtype=np.float32)
        if X.ndim != 2 or X.shape[1] != self.dimension:
            raise ValueError(f"Embeddings must have shape (n, {self.dimension}), not {X.shape}.")
        scores = (X @ self.weights.T + self.bias) / np.float32(self.temperature)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def predict(self, X: np.ndarray) -> list[str]:
        """The likeliest label of each row."""
        return [self.labels[i] for i in self.predict_proba(X).argmax(axis=1)]

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": FORMAT,
                "labels": list(self.labels),
                "dimension": self.dimension,
                "weights": base64.b64encode(np.ascontiguousarray(self.weights, "<f4").tobytes()).decode(),
                "bias": [float(value) for value in self.bias],
                "temperature": float(self.temperature),
                "metadata": dict(self.metadata),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> LinearClassifier:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError: it is not a classifier, or a damaged one.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}")
            labels = tuple(str(label) for label in data["labels"])
            weights = np.frombuffer(base64.b64decode(data["weights"], validate=True), "<f4")
            weights = weights.reshape(len(labels), int(data["dimension"])).astype(np.float32)
            bias = np.asarray(data["bias"], np.float32)
            return cls(labels, weights, bias, float(data["temperature"]), data.get("metadata") or {})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"This is not a {FORMAT} file ({error!r}); train it again.") from error
