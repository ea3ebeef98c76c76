"""Causal language models: whole or by adapters, on packed texts."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import head, ranks, speed
from finetune.packing import IGNORED, Pack, Tokens, pack, tensors
from finetune.recipe import RecipeError
from finetune.tasks.network import adapted

if TYPE_CHECKING:
    import torch

    from finetune.schema import LanguageRecipe


class LanguageTask:
    """What `finetune.loop` trains for a `LanguageRecipe`. Its examples are packed sequences.

    Parameters
    ----------
    folder: the base model, from `finetune.base_model.locate`.
    texts, evaluation: from `finetune.texts.read`.

    Raises
    ------
    RecipeError: the model reads fewer tokens than the recipe's context_length.
    """

    def __init__(
        self,
        recipe: LanguageRecipe,
        folder: Path,
        tokenizer: Any,
        texts: Sequence[Tokens],
        evaluation: Sequence[Tokens],
        device: str = "cpu",
    ) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self.recipe, self.device, self.tokenizer = recipe, device, tokenizer
        self._packs, self._held_out = pack(texts, recipe.context_length), pack(evaluation, recipe.context_length)
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._length = recipe.context_length if recipe.compile else None  # one shape, compiled once
        torch.manual_seed(recipe.seed)
        precise = torch.bfloat16 if recipe.precision == "bf16-true" else torch.float32
        stored: dict[str, Any] = {"dtype": precise}
        stored |= {"attn_implementation": recipe.attention} if recipe.attention != "auto" else {}
        if device == "meta" or recipe.random_weights:  # `meta`: where only shapes are asked for
            with torch.device(device):
                config = AutoConfig.from_pretrained(folder, local_files_only=True)
                model: Any = AutoModelForCausalLM.from_config(config, **stored)
        else:
            if recipe.method == "qlora":
                stored |= four_bits()
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **stored)
        if recipe.context_length > (most := getattr(model.config, "max_position_embeddings", recipe.context_length)):
            raise RecipeError(f"context_length: {recipe.base_model} reads at most {most} tokens, not {recipe.context_length}.")
        if recipe.method != "full":
            model = adapted(model, recipe.lora, recipe.method == "dora", str(folder), "CAUSAL_LM")
        self.model: Any = model
        self._plain = head.plain(model)
        slope = speed.compiled(head.fusible_slope) if recipe.compile and device != "meta" else head.slope
        self._summed = partial(head.summed, slope=slope)
        self._casting = [module for module in model.modules() if hasattr(module, "cast_input_dtype_enabled")]
        if recipe.method != "qlora":  # four bits are where they are to stay
            self.model = ranks.place(model, device, recipe.launcher)

    @cached_property  # asked for at each step
    def lengths(self) -> Sequence[int]:
        return [sum(len(text.ids) for text in each) for each in self._packs]

    def groups(self) -> list[dict[str, Any]]:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        recipe = self.recipe
        decays = {True: recipe.weight_decay, False: 0.0}
        parts = {wide: [parameter for parameter in trained if (parameter.ndim > 1) == wide] for wide in decays}
        return [{"params": parts[w], "lr": recipe.learning_rate, "weight_decay": decays[w]} for w in decays if parts[w]]

    def targets(self, examples: Sequence[int]) -> int:
        return sum(text.targets for example in examples for text in self._packs[example])

    def loss(self, examples: Sequence[int]) -> torch.Tensor:
        return self._loss([self._packs[example] for example in examples])

    def evaluate(self) -> Mapping[str, float]:
        """`loss` (mean over the held-out tokens that are learnt, in nats), `perplexity`, and `score`, the loss negated."""
        import torch

        if not self._held_out:
            return {}
        was, total, size = self.model.training, 0.0, self.recipe.batch_size
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(self._held_out), size):
                total += float(self._loss(self._held_out[start : start + size]))
        self.model.train(was)
        mean = total / max(1, sum(text.targets for each in self._held_out for text in each))
        return {"loss": mean, "perplexity": math.exp(min(mean, 50.0)), "score": -mean}

    def samples(self) -> Sequence[str]:
        """The recipe's prompts, continued greedily."""
        import torch

        written = []
        self._cast(True)
        for prompt in self.recipe.eval_prompts:
            begin = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            ids = torch.tensor([[*begin, *self.tokenizer.encode(prompt, add_special_tokens=False)]], device=self.device)
            options = {"max_new_tokens": self.recipe.sample_tokens, "do_sample": False, "pad_token_id": self._pad}
            found = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
            written.append(self.tokenizer.decode(found[0], skip_special_tokens=True))
        return written

    def export(self, folder: Path, *, merged: bool = False) -> Path:
        """Write the model, or the adapter in PEFT's format, with its tokenizer; `merged` puts the adapter into the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        if merged:
            self.model = self.model.merge_and_unload()
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder

    def _loss(self, packs: Sequence[Pack]) -> torch.Tensor:
        return self._learnt(packs, self._summed)[0]

    def _learnt(self, packs: Sequence[Pack], make: Any) -> tuple[Any, torch.Tensor]:
        """What `make` (of `finetune.head`) gives for the tokens that are learnt, and the number of the pack of each of these."""
        import torch
        from torch.nn.functional import cross_entropy

        given = tensors(packs, self._pad, self._length)
        labels = given.pop("labels")[:, 1:]
        rows, places = (labels != IGNORED).nonzero(as_tuple=True)
        flat = rows * given["input_ids"].shape[1] + places
        *moved, labels, rows, flat = (self._there(each) for each in (*given.values(), labels[rows, places], rows, flat))
        # Without a mask and without a cache, or transformers would join the texts of a sequence.
        asked = dict(zip(given, moved, strict=True)) | {"attention_mask": None, "use_cache": False}

        self._cast(not torch.is_autocast_enabled(torch.device(self.device).type))

        def learnt(states: torch.Tensor) -> torch.Tensor:
            return states.flatten(0, 1).index_select(0, flat)

        if not self._plain:
            logits = learnt(self.model(**asked).logits).float()
            return cross_entropy(logits, labels, reduction="sum" if make is self._summed else "none"), rows
        with (
            speed.quickest_attention(self.device, "position_ids" not in given),
            head.instead_of_logits(self.model, lambda states, *weights: make(learnt(states), *weights, labels)),
        ):
            return self.model(**asked).logits, rows

    def _cast(self, own: bool) -> None:
        """Whether adapters put their inputs into their own precision; autocast would put them back, and both would be kept."""
        for module in self._casting:
            module.cast_input_dtype_enabled = own

    def _there(self, tensor: torch.Tensor) -> torch.Tensor:
        return speed.there(tensor, self.device)


def load_tokenizer(folder: Path, template: Path | None = None) -> Any:
    """The base model's tokenizer, with the recipe's chat template if it has one.

    Raises
    ------
    RecipeError: the template's file cannot be read.
    """
    from transformers import AutoTokenizer

    from finetune.recipe import find

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if template is not None:
        try:
            tokenizer.chat_template = find(template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"chat_template: {template} cannot be read ({error}). Give the path of a Jinja file.") from None
    return tokenizer


def vocabulary(folder: Path) -> int:
    """How many tokens the base model knows."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().vocab_size


def four_bits() -> dict[str, Any]:
    """How transformers is told to keep the base model's weights in four bits (NF4).

    Raises
    ------
    RecipeError: there is no GPU, or bitsandbytes is not installed.
    """
    import torch

    missing = [] if torch.cuda.is_available() else ["a GPU"]
    if importlib.util.find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes (pip install bitsandbytes)")
    if missing:
        raise RecipeError(f"method: qlora needs {' and '.join(missing)}; take lora, which needs neither.")
    from transformers import BitsAndBytesConfig

    precise = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=precise
    )
    return {"quantization_config": config, "device_map": {"": 0}, "dtype": precise}
