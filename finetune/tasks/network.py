"""A text encoder with what is put on it: labels, a vector, a span; and how its texts become tensors, groups and ONNX."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune import ranks, speed

if TYPE_CHECKING:
    import torch

    from finetune.schema import LoraRecipe, ReadingRecipe

Head = Literal["labels", "vector", "span"]
"""One logit a label from the mean of the states; the mean itself, of unit length; or two logits a token, start and end."""
_GIVEN = ("input_ids", "attention_mask", "token_type_ids")


class Reading:
    """What tasks over an encoder have in common: tokenizer, network, parameters to train, tensors of texts, ONNX.

    Parameters
    ----------
    folder: the base model, from `finetune.base_model.locate`.
    outputs: labels of the head `labels`.
    """

    def __init__(self, recipe: ReadingRecipe, folder: Path, head: Head, outputs: int = 1, device: str = "cpu") -> None:
        import torch
        from tokenizers import Tokenizer

        self.recipe, self.device = recipe, device
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(recipe.max_length)
        torch.manual_seed(recipe.seed)
        with torch.device("meta") if device == "meta" else nullcontext():  # where only shapes are asked for
            self.model: Any = build(folder, head, outputs, recipe.dropout, empty=device == "meta")
        if not recipe.train_embeddings:
            self.model.encoder.get_input_embeddings().requires_grad_(False)
        if recipe.method != "full":
            self.model.encoder = adapted(self.model.encoder, recipe.lora, recipe.method == "dora", str(folder))
        self.model = ranks.place(self.model, device, recipe.launcher)
        self.pairs = int(getattr(self.model.encoder.config, "type_vocab_size", 0) or 0) > 1
        """Whether the encoder is told which of two texts a token belongs to."""

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

    def samples(self) -> Sequence[str]:
        return ()

    def padded(self, texts: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """Encoded texts, or pairs of them, as the network takes them."""
        import numpy as np
        import torch

        ids = [text.ids for text in texts]
        sizes = np.array([len(each) for each in ids])
        places = np.arange(sizes.max()) < sizes[:, None]
        given = [ids] + ([[text.type_ids for text in texts]] if self.pairs else [])
        found = [np.zeros(places.shape, np.int64) for _ in given]
        for into, values in zip(found, given, strict=True):
            into[places] = np.fromiter((value for row in values for value in row), np.int64, int(sizes.sum()))
        found.insert(1, places.astype(np.int64))
        return tuple(speed.there(torch.from_numpy(each), self.device) for each in found)

    def export(self, folder: Path) -> Path:
        """Write what serving needs, without PyTorch: `model.onnx` and `tokenizer.json`. Adapters become part of the weights."""
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(self.model.encoder, "merge_and_unload"):
            self.model.encoder = self.model.encoder.merge_and_unload()
        model = self.model.float().cpu().eval()
        model.encoder.set_attn_implementation("eager")  # the fused one writes a graph that is bound to the example's length
        names = list(_GIVEN[: 3 if self.pairs else 2])
        example = [torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long), torch.zeros(2, 8, dtype=torch.long)]
        example[1][1, 5:] = 0
        axes: dict[str, dict[int, str]] = {name: {0: "rows", 1: "tokens"} for name in names}
        axes["logits"] = {0: "rows", 1: "tokens"} if self.model.head == "span" else {0: "rows"}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                tuple(example[: len(names)]),
                str(folder / "model.onnx"),
                input_names=names,
                output_names=["logits"],
                dynamic_axes=axes,
                dynamo=False,
            )
        self.tokenizer.save(str(folder / "tokenizer.json"))
        return folder


def in_parts(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Batches of texts alike in length, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[at : at + size] for at in range(0, len(order), size)]


def build(folder: Path, head: Head, outputs: int, dropout: float, *, empty: bool = False) -> Any:
    """The network, `forward(input_ids, attention_mask[, token_type_ids])`. `empty` leaves the weights as they come."""
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(config, key):
            setattr(config, key, dropout)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stored: dict[str, Any] = {"config": config, "local_files_only": True}
            self.head = head
            self.encoder: Any = AutoModel.from_config(config) if empty else AutoModel.from_pretrained(folder, **stored)
            self.encoder.pooler = None  # not part of what is read, so it would never be trained
            width = int(config.hidden_size)
            self.dropout = torch.nn.Dropout(dropout)
            if head == "labels":
                self.hidden = torch.nn.Linear(width, width)
            if head != "vector":
                self.out = torch.nn.Linear(width, outputs if head == "labels" else 2)

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
        ) -> torch.Tensor:
            given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
            if head == "span":
                return self.out(self.dropout(states))
            weight = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * weight).sum(1) / weight.sum(1)
            if head == "vector":
                return torch.nn.functional.normalize(mean.float(), dim=-1)
            return self.out(self.dropout(torch.tanh(self.hidden(self.dropout(mean)))))

    return Network()


def adapted(model: Any, lora: LoraRecipe, dora: bool, base: str, task: str | None = None) -> Any:
    """A model with adapters beside its linear layers, which alone are trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=int(lora.alpha or 2 * lora.rank),
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) if lora.targets else "all-linear",
        use_dora=dora,
        base_model_name_or_path=base,
    )
    with warnings.catch_warnings():  # PEFT asks transformers by a name it has given up
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        found = get_peft_model(model, config)
    found.peft_config["default"].base_model_name_or_path = base
    return found
