"""What a recipe may say: one model for each task and method, strict, so that a wrong key is an error and not a surprise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from finetune.duration import Duration

THREE_PARTS = r"^[a-z0-9_]+\.[a-z0-9_]+\.[a-z0-9_]+$"


def _duration(text: str) -> str:
    Duration.parse(text)
    return text


Steps = Annotated[str, AfterValidator(_duration)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)  # what forms say of a field


class FilesRecipe(Strict):
    """Where the rows are. Relative paths count from the working folder, then from the folder the rooms lie in."""

    train: Path
    eval: Path | None = None
    max_rows: Annotated[int, Field(ge=2)] | None = None
    """Of the training rows, drawn by `seed`."""


class DataRecipe(FilesRecipe):
    """Files of labelled texts."""

    text_column: str = "text"
    label_column: str = "label"
    ignore_columns: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _two_columns(self) -> DataRecipe:
        if self.text_column == self.label_column:
            raise ValueError("text_column and label_column must differ")
        return self


class BaseRecipe(Strict):
    """What every task's recipe has."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.-]+$")]
    """Also the MLflow experiment."""
    seed: int = 0
    register_to: Annotated[str, Field(pattern=THREE_PARTS)] | None = None
    """Name in the model registry, `catalog.schema.model`."""


class ClassifyRecipe(BaseRecipe):
    """Text to one of some labels: a frozen encoder's embeddings and a calibrated logistic regression."""

    data: DataRecipe
    task: Literal["classify"] = "classify"
    method: Literal["linear"] = "linear"
    encoder: str = "all-MiniLM-L6-v2"
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """The labels there may be; without it, those that are in the data."""
    C: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    """Inverse strengths of regularisation to choose from by cross-validated log-loss."""
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    class_weight: Literal["none", "balanced"] = "none"
    calibration: Literal["none", "temperature"] = "temperature"


class TrainedRecipe(BaseRecipe):
    """What every recipe has whose weights are trained by gradient descent (AdamW, warm-up, then decay to zero)."""

    base_model: str
    """A folder with `config.json`, `tokenizer.json` and safetensors, `all-MiniLM-L6-v2`, or a name on the Hugging Face hub."""
    training_duration: Steps = "3ep"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows (packed sequences, for language models) of an optimizer step."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows at once; halved by itself when memory runs out. Default: `batch_size`."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Of the forward pass; weights and their sums stay fp32. `auto` takes bf16 where the processor has instructions for it."""
    ema: Share = 0.0
    """Decay of a moving average of the weights, which is what is then evaluated and kept; 0: none."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; by default what the machine's load leaves free when the run is made."""
    log_every: Annotated[int, Field(ge=1)] = 10
    eval_interval: Steps | None = None
    """How often to evaluate besides at the end."""
    checkpoint_interval: Steps = "100ba"
    early_stopping: Annotated[int, Field(ge=1)] | None = None
    """End after so many evaluations without a better one, keeping the best. They then chose the model: judge it elsewhere."""


class EncoderRecipe(TrainedRecipe):
    """Text to one of some labels: all of an encoder's weights are trained, with a head on the mean of its states."""

    data: DataRecipe
    task: Literal["classify"] = "classify"
    method: Literal["full"] = "full"
    base_model: str = "all-MiniLM-L6-v2"
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens of a text; the rest is cut off."""
    clean: tuple[Literal["html", "urls", "users", "repeats"], ...] = ()
    """What is made alike before reading, in training and in serving: HTML entities, links, user names, loooong words."""
    head_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Each layer learns this much slower than the one above it."""
    train_embeddings: bool = True
    """Off: the table of word vectors stays as it is, which halves the work of a step for small encoders."""
    dropout: Share = 0.1
    label_smoothing: Share = 0.0
    class_balance: Annotated[float, Field(ge=0, le=1)] = 1.0
    """1 trains for the mean of the classes' recalls, 0 for accuracy: logits are adjusted by the log of the classes' shares
    (https://arxiv.org/abs/2007.07314)."""
    promote_margin: Annotated[float, Field(ge=0)] = 0.0
    """How much macro-recall must exceed the champion's for the alias to move."""


class LoraRecipe(Strict):
    """Low-rank adapters beside every linear layer (https://arxiv.org/abs/2106.09685)."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The adapters' outputs are scaled by alpha / rank; default: twice the rank."""
    dropout: Share = 0.0
    targets: tuple[str, ...] | None = None
    """Names of layers; default: all linear ones but the head."""


class LanguageRecipe(TrainedRecipe):
    """A causal language model learns texts (`cpt`), answers to prompts (`sft-instruct`) or its turns in chats (`sft-chat`)."""

    data: FilesRecipe
    """cpt: text files, folders of them, or JSON lines of `text`; sft-instruct: `prompt` and `response`; sft-chat: `messages`."""
    task: Literal["cpt", "sft-chat", "sft-instruct"]
    method: Literal["full", "lora", "dora"] = "lora"
    lora: LoraRecipe = LoraRecipe()
    context_length: Annotated[int, Field(ge=8)] = 512
    """Tokens of a packed sequence. Texts share one, and see nothing of each other."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    chat_template: Path | None = None
    """A Jinja file, for a tokenizer that has none."""
    eval_prompts: tuple[str, ...] = ()
    """Continued at each evaluation, to be looked at."""
    sample_tokens: Annotated[int, Field(ge=1)] = 48
    promote_margin: Annotated[float, Field(ge=0)] = 0.0
    """How much the held-out loss must be under the champion's for the alias to move."""


Recipe = ClassifyRecipe | EncoderRecipe | LanguageRecipe
_LANGUAGE: Mapping[str, type[BaseRecipe]] = dict.fromkeys(("lora", "full", "dora"), LanguageRecipe)
RECIPES: Mapping[str, Mapping[str, type[BaseRecipe]]] = {
    "classify": {"linear": ClassifyRecipe, "full": EncoderRecipe},
    "cpt": _LANGUAGE,
    "sft-chat": _LANGUAGE,
    "sft-instruct": _LANGUAGE,
}
"""A recipe's `task` and `method` choose its model."""


def model_for(data: Mapping[str, Any]) -> type[BaseRecipe] | tuple[str, tuple[str, ...]]:
    """The model of a recipe's `task` and `method`; or the key that is wrong, with what it may be."""
    methods = RECIPES.get(task) if isinstance(task := data.get("task", "classify"), str) else None
    if methods is None:
        return "task", tuple(RECIPES)
    method = data.get("method", next(iter(methods)))
    found = methods.get(method) if isinstance(method, str) else None
    return found or ("method", tuple(methods))
