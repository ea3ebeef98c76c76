"""Text classification with all of an encoder's weights trained: mean of its states, one hidden layer, one logit a label."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.metrics import metrics, reliability, softmax

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


class EncoderTask:
    """What `finetune.loop` trains for an `EncoderRecipe`.

    Parameters
    ----------
    folder: the base model, from `finetune.base_model.locate`.
    rows, evaluation: checked rows.
    """

    def __init__(
        self, recipe: EncoderRecipe, folder: Path, rows: Sequence[Row], evaluation: Sequence[Row], device: str = "cpu"
    ) -> None:
        import torch
        from tokenizers import Tokenizer

        self.recipe, self.device = recipe, device
        self.labels = tuple(sorted({row.label for row in rows}))
        number = {label: i for i, label in enumerate(self.labels)}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(recipe.max_length)
        self._ids, self._y = self._read(rows), torch.tensor([number[row.label] for row in rows], device=device)
        self._eval_ids, self.truth = self._read(evaluation), np.array([number[row.label] for row in evaluation], int)
        torch.manual_seed(recipe.seed)
        self.model = build(folder, len(self.labels), recipe.dropout).to(device)
        if not recipe.train_embeddings:
            self.model.encoder.get_input_embeddings().requires_grad_(False)
        share = torch.bincount(self._y, minlength=len(self.labels)) / len(self._y)
        self._adjustment = recipe.class_balance * torch.log(share)
        self.truncated = sum(len(ids) >= recipe.max_length for ids in self._ids)

    @property
    def lengths(self) -> Sequence[int]:
        return [len(ids) for ids in self._ids]

    def groups(self) -> list[dict[str, Any]]:
        """The head first and fastest, then the encoder's layers from the top, each slower than the one above it."""
        recipe, layers = self.recipe, int(self.model.encoder.config.num_hidden_layers)
        found: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = re.search(r"\blayers?\.(\d+)\.", name)
            below = layers - 1 - int(layer[1]) if layer else layers
            rate = recipe.learning_rate * recipe.layer_decay**below if name.startswith("encoder.") else recipe.head_learning_rate
            found.setdefault((rate, recipe.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
        return [{"params": found[key], "lr": key[0], "weight_decay": key[1]} for key in sorted(found, reverse=True)]

    def targets(self, examples: Sequence[int]) -> int:
        return len(examples)

    def loss(self, examples: Sequence[int]) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        logits = self.model(*self._padded([self._ids[i] for i in examples])).float() + self._adjustment
        return cross_entropy(logits, self._y[list(examples)], label_smoothing=self.recipe.label_smoothing, reduction="sum")

    def evaluate(self) -> Mapping[str, float]:
        if not self._eval_ids:
            return {}
        found = metrics(self.probabilities(), self.truth)
        return {**found, "score": found["macro_recall"]}

    def samples(self) -> Sequence[str]:
        return ()

    def probabilities(self) -> np.ndarray:
        """Of the evaluation's rows, (rows, labels)."""
        import torch

        order = sorted(range(len(self._eval_ids)), key=lambda i: len(self._eval_ids[i]))
        logits = np.zeros((len(order), len(self.labels)), np.float32)
        with torch.no_grad():
            for start in range(0, len(order), EVAL_BATCH):
                part = order[start : start + EVAL_BATCH]
                logits[part] = self.model(*self._padded([self._eval_ids[i] for i in part])).float().cpu().numpy()
        return softmax(logits)

    def result(self) -> dict[str, Any]:
        """The evaluation in full: metrics, confusion matrix, reliability. Empty where there is nothing to judge on."""
        if not self._eval_ids:
            return {}
        found, confusion = self.probabilities(), np.zeros((len(self.labels), len(self.labels)), int)
        np.add.at(confusion, (self.truth, found.argmax(1)), 1)
        told = {"metrics": metrics(found, self.truth), "confusion": confusion.tolist()}
        return told | {"reliability": reliability(found, self.truth), "labels": list(self.labels)}

    def export(self, folder: Path) -> Path:
        """Write what serving needs, without PyTorch: `model.onnx`, `tokenizer.json` and `classifier.json`."""
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        model = self.model.float().cpu().eval()
        model.encoder.set_attn_implementation("eager")  # the fused one writes a graph that is bound to the example's length
        ids, mask = torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)
        mask[1, 5:] = 0
        axes = {"input_ids": {0: "rows", 1: "tokens"}, "attention_mask": {0: "rows", 1: "tokens"}, "logits": {0: "rows"}}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            path, names = str(folder / "model.onnx"), list(axes)
            torch.onnx.export(
                model, (ids, mask), path, input_names=names[:2], output_names=names[2:], dynamic_axes=axes, dynamo=False
            )
        self.tokenizer.save(str(folder / "tokenizer.json"))
        about = {"labels": self.labels, "text_column": self.recipe.data.text_column, "html": "html" in self.recipe.clean}
        about |= {"replace": [CLEANING[name] for name in self.recipe.clean if name in CLEANING]}
        (folder / "classifier.json").write_text(json.dumps(about), encoding="utf-8")
        return folder

    def _read(self, rows: Sequence[Row]) -> list[list[int]]:
        return [encoded.ids for encoded in self.tokenizer.encode_batch([clean(row.text, self.recipe.clean) for row in rows])]

    def _padded(self, texts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        longest = max(map(len, texts))
        ids, mask = torch.zeros(len(texts), longest, dtype=torch.long), torch.zeros(len(texts), longest, dtype=torch.long)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = torch.tensor(text)
            mask[i, : len(text)] = 1
        return ids.to(self.device), mask.to(self.device)


def clean(text: str, steps: Sequence[str]) -> str:
    """A text as the model reads it; serving does the same by `classifier.json`."""
    from finetune.text_model import cleaned

    return cleaned(text, "html" in steps, [CLEANING[name] for name in steps if name in CLEANING])


def build(folder: Path, labels: int, dropout: float) -> Any:
    """The network: `forward(input_ids, attention_mask)` to (rows, labels) logits."""
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(config, key):
            setattr(config, key, dropout)

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(folder, config=config, local_files_only=True)
            self.encoder.pooler = None  # not part of what is read, so it would never be trained
            width = int(config.hidden_size)
            self.dropout = torch.nn.Dropout(dropout)
            self.hidden, self.out = torch.nn.Linear(width, width), torch.nn.Linear(width, labels)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weight = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * weight).sum(1) / weight.sum(1)
            return self.out(self.dropout(torch.tanh(self.hidden(self.dropout(mean)))))

    return Classifier()
