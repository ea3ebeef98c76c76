"""Text classification by an encoder: mean of its states, one hidden layer, one logit a label."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.metrics import metrics, reliability, softmax
from finetune.tasks.network import Reading, in_parts

if TYPE_CHECKING:
    import torch

    from finetune.data import Row
    from finetune.schema import EncoderRecipe

CLEANING: Mapping[str, tuple[str, str]] = {
    "urls": (r"https?\S*", "http"),
    "users": (r"@\S+", "@user"),
    "repeats": (r"(.)\1{2,}", r"\1\1"),
}
"""Patterns and what they become; `html` is apart, and first."""
EVAL_BATCH = 64


class EncoderTask(Reading):
    """What `finetune.loop` trains for an `EncoderRecipe`.

    Parameters
    ----------
    rows, evaluation: checked rows.
    """

    def __init__(
        self, recipe: EncoderRecipe, folder: Path, rows: Sequence[Row], evaluation: Sequence[Row], device: str = "cpu"
    ) -> None:
        import torch

        self.recipe: EncoderRecipe
        self.labels = tuple(sorted({row.label for row in rows}))
        super().__init__(recipe, folder, "labels", len(self.labels), device)
        number = {label: i for i, label in enumerate(self.labels)}
        self._texts, self._y = self._read(rows), torch.tensor([number[row.label] for row in rows], device=device)
        self._held_out, self.truth = self._read(evaluation), np.array([number[row.label] for row in evaluation], int)
        self.pairs = False  # single texts: their tokens are all of the one kind
        share = np.bincount([number[row.label] for row in rows], minlength=len(self.labels)) / max(1, len(rows))
        self._adjustment = torch.tensor(recipe.class_balance * np.log(share), dtype=torch.float32, device=device)

    @cached_property  # asked for at each step
    def lengths(self) -> Sequence[int]:
        return [len(text.ids) for text in self._texts]

    def targets(self, examples: Sequence[int]) -> int:
        return len(examples)

    def loss(self, examples: Sequence[int]) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        logits = self.model(*self.padded([self._texts[i] for i in examples])).float() + self._adjustment
        return cross_entropy(logits, self._y[list(examples)], label_smoothing=self.recipe.label_smoothing, reduction="sum")

    def evaluate(self) -> Mapping[str, float]:
        if not self._held_out:
            return {}
        found = metrics(self.probabilities(), self.truth)
        return {**found, "score": found["macro_recall"]}

    def probabilities(self) -> np.ndarray:
        """Of the evaluation's rows, (rows, labels)."""
        import torch

        logits = np.zeros((len(self._held_out), len(self.labels)), np.float32)
        with torch.no_grad():
            for part in in_parts([len(text.ids) for text in self._held_out], EVAL_BATCH):
                logits[part] = self.model(*self.padded([self._held_out[i] for i in part])).float().cpu().numpy()
        return softmax(logits)

    def result(self) -> dict[str, Any]:
        """The evaluation in full: metrics, confusion matrix, reliability. Empty where there is nothing to judge on."""
        if not self._held_out:
            return {}
        found, confusion = self.probabilities(), np.zeros((len(self.labels), len(self.labels)), int)
        np.add.at(confusion, (self.truth, found.argmax(1)), 1)
        told = {"metrics": metrics(found, self.truth), "confusion": confusion.tolist()}
        return told | {"reliability": reliability(found, self.truth), "labels": list(self.labels)}

    def export(self, folder: Path) -> Path:
        """As `Reading`, with `model.json`: labels, the column, and how texts are cleaned."""
        super().export(folder)
        about = {"kind": "classify", "labels": self.labels, "text_column": self.recipe.data.text_column}
        about |= {"html": "html" in self.recipe.clean}
        about |= {"replace": [CLEANING[name] for name in self.recipe.clean if name in CLEANING]}
        (folder / "model.json").write_text(json.dumps(about), encoding="utf-8")
        return folder

    def _read(self, rows: Sequence[Row]) -> list[Any]:
        return self.tokenizer.encode_batch([clean(row.text, self.recipe.clean) for row in rows])


def clean(text: str, steps: Sequence[str]) -> str:
    """A text as the model reads it; serving does the same by `model.json`."""
    from finetune.text_model import cleaned

    return cleaned(text, "html" in steps, [CLEANING[name] for name in steps if name in CLEANING])
