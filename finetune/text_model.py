"""The registered form of a trained encoder: an MLflow model from code that reads text and needs ONNX Runtime, not PyTorch.

This file is copied into the model and run when it is loaded, where the rooms may not be installed.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any

BATCH = 32


def cleaned(text: str, entities: bool, replace: Sequence[Sequence[str]]) -> str:
    """A text as it was read in training."""
    if entities:
        text = html.unescape(text)
    for pattern, by in replace:
        text = re.sub(pattern, by, text)
    return " ".join(text.split())


def make() -> Any:
    """The model, as `mlflow.models.set_model` takes it."""
    import os

    import numpy as np
    import pandas as pd
    from mlflow.pyfunc.model import PythonModel, PythonModelContext

    class TextModel(PythonModel):
        """A column of texts to a frame: `label`, `confidence` and each label's probability."""

        def load_context(self, context: PythonModelContext) -> None:
            import onnxruntime
            from tokenizers import Tokenizer

            with open(context.artifacts["classifier"], encoding="utf-8") as file:
                self.about = json.load(file)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = max(1, min(4, (os.cpu_count() or 1) // 2))
            options.log_severity_level = 3
            given = {"sess_options": options, "providers": ["CPUExecutionProvider"]}
            self.session = onnxruntime.InferenceSession(context.artifacts["model"], **given)
            self.tokenizer = Tokenizer.from_file(context.artifacts["tokenizer"])

        def predict(  # pyright: ignore[reportIncompatibleMethodOverride] - MLflow declares None
            self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None
        ) -> Any:
            about = self.about
            texts = [cleaned(str(text), about["html"], about["replace"]) for text in model_input[about["text_column"]]]
            read = [encoded.ids for encoded in self.tokenizer.encode_batch(texts)]
            order = sorted(range(len(read)), key=lambda i: len(read[i]))  # alike in length together: little is padded
            logits = np.zeros((len(read), len(about["labels"])), np.float32)
            for start in range(0, len(order), BATCH):
                part = order[start : start + BATCH]
                ids = np.zeros((len(part), max(1, *(len(read[i]) for i in part), 1)), np.int64)
                mask = np.zeros_like(ids)
                for row, i in enumerate(part):
                    ids[row, : len(read[i])], mask[row, : len(read[i])] = read[i], 1
                logits[part] = np.asarray(self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0])
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities = scores / scores.sum(axis=1, keepdims=True)
            names = about["labels"]
            frame = pd.DataFrame({"label": [names[i] for i in probabilities.argmax(1)], "confidence": probabilities.max(1)})
            return frame.assign(**{f"p_{label}": probabilities[:, i] for i, label in enumerate(names)})

    return TextModel()


if __name__ != "finetune.text_model":  # run by MLflow, from the model's folder
    from mlflow.models import set_model

    set_model(make())
