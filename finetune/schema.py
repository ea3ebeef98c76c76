"""What a recipe may say: one model for each task and method, strict, so that a wrong key is an error and not a surprise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from finetune.duration import Duration

THREE_PARTS = r"^[a-z0-9_]+\.[a-z0-9_]+\.[a-z0-9_]+$"


def _duration(given: Any) -> Any:
    if isinstance(given, int | float) and not isinstance(given, bool):
        raise ValueError(f"it has no unit; write {given}ep for epochs, {given}ba for batches or {given}tok for tokens")
    if isinstance(given, str):
        Duration.parse(given)
    return given


Steps = Annotated[str, BeforeValidator(_duration)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    # docstrings are what forms say of a field
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class FilesRecipe(Strict):
    """Where the rows are. Relative paths count from the working folder, then from the folder the rooms lie in."""

    train: Path
    eval: Path | None = None
    max_rows: Annotated[int, Field(ge=2)] | None = None
    """Of the training rows, drawn by `seed`."""


class RowsRecipe(FilesRecipe):
    """Files of rows: JSON lines, a JSON array, CSV, TSV or Parquet."""

    columns: dict[str, str] = {}
    """What the files call a column, where it is another name: `{prompt: instruction, response: output}`."""
    ignore_columns: tuple[str, ...] = ()
    """Columns that are not read and not told of."""


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
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
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
    promote_margin: Annotated[float, Field(ge=0)] = 0.0
    """How much the macro-recall must exceed the champion's for the alias to move."""


class Range(Strict):
    """Numbers to choose from: whole ones where both ends are."""

    low: int | float
    high: int | float
    log: bool = False
    """Drawn evenly by order of magnitude."""
    step: int | float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high or (self.log and (self.low <= 0 or self.step is not None)):
            raise ValueError("low must be under high; with log, low must be above 0 and there is no step")
        return self


class SweepRecipe(Strict):
    """A search over keys of the recipe (`smalti finetune sweep`): Optuna proposes values, and ends trials that lag behind."""

    space: Annotated[dict[str, Range | tuple[Any, ...]], Field(min_length=1)]
    """Dotted keys, each with a list of values or `{low, high, log, step}`."""
    trials: Annotated[int, Field(ge=1)] = 20
    pruner: Literal["median", "none"] = "median"
    """`median` ends a trial that is worse than half of those before it were at the same step."""
    whole_trials: Annotated[int, Field(ge=1)] = 4
    """Trials that are never ended early: what the others are held against."""


class LauncherRecipe(Strict):
    """What starts the processes that train."""

    kind: Literal["process", "torchrun", "accelerate", "ray", "databricks"] = "process"
    processes: Annotated[int, Field(ge=1)] = 1
    """Each takes its part of every batch; what is learnt is what one process would learn. On GPUs one each."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: each holds the whole model; `fsdp`: weights, gradients and averages are shared out among them (FSDP2)."""
    accelerator: str = "GPU_1xH100"
    """Of `databricks`: type of machine, as `databricks air` names it."""
    environment: str = "4"
    """Of `databricks`: version of the base environment."""


def _launcher(given: Any) -> Any:
    return {"kind": given} if isinstance(given, str) else given


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
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Keep only what stands between the layers, and compute a layer again when its gradients are: less memory, a third more work,
    the same gradients. `auto`: where memory would not hold it otherwise."""
    compile: bool = False
    """Compile each layer (`torch.compile`): quicker steps on GPUs after a first one that takes a minute."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """`adamw-8bit` keeps its averages in 8 bits; it takes a GPU and bitsandbytes."""
    ema: Share = 0.0
    """Decay of a moving average of the weights, which is what is then evaluated and kept; 0: none."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; by default what the machine's load leaves free when the run is made."""
    launcher: Annotated[LauncherRecipe, BeforeValidator(_launcher)] = LauncherRecipe()
    """`torchrun`, or with how many: `{kind: torchrun, processes: 4}`."""
    sweep: SweepRecipe | None = None
    log_every: Annotated[int, Field(ge=1)] = 10
    eval_interval: Steps | None = None
    """How often to evaluate besides at the end."""
    checkpoint_interval: Steps | None = None
    """How often to save what a run goes on from; default: every 100 batches, or less often where that would take more than a
    tenth of the time."""
    early_stopping: Annotated[int, Field(ge=1)] | None = None
    """End after so many evaluations without a better one, keeping the best. They then chose the model: judge it elsewhere."""


class LoraRecipe(Strict):
    """Low-rank adapters beside every linear layer (https://arxiv.org/abs/2106.09685)."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The adapters' outputs are scaled by alpha / rank; default: twice the rank."""
    dropout: Share = 0.0
    targets: tuple[str, ...] | None = None
    """Names of layers; default: all linear ones but the head."""


class ReadingRecipe(TrainedRecipe):
    """What every recipe has that trains a text encoder: all its weights, or adapters that are merged when it is kept."""

    method: Literal["full", "lora", "dora"] = "full"
    lora: LoraRecipe = LoraRecipe()
    base_model: str = "all-MiniLM-L6-v2"
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens of a text, or of a pair of texts; the rest is cut off."""
    head_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Each layer learns this much slower than the one above it."""
    train_embeddings: bool = True
    """Off: the table of word vectors stays as it is, which halves the work of a step for small encoders."""
    dropout: Share = 0.1
    promote_margin: Annotated[float, Field(ge=0)] = 0.0
    """How much the evaluation's first metric must exceed the champion's for the alias to move."""


class EncoderRecipe(ReadingRecipe):
    """Text to one of some labels: an encoder with a head on the mean of its states."""

    data: DataRecipe
    task: Literal["classify"] = "classify"
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    clean: tuple[Literal["html", "urls", "users", "repeats"], ...] = ()
    """What is made alike before reading, in training and in serving: HTML entities, links, user names, loooong words."""
    label_smoothing: Share = 0.0
    class_balance: Annotated[float, Field(ge=0, le=1)] = 1.0
    """1 trains for the mean of the classes' recalls, 0 for accuracy: logits are adjusted by the log of the classes' shares
    (https://arxiv.org/abs/2007.07314)."""


class TableRecipe(FilesRecipe):
    """Files of rows: CSV, Parquet or JSON lines."""

    label_column: str = "label"
    text_column: str | None = None
    """A column of texts, which become an encoder's vectors; the others are read as numbers and kinds."""
    ignore_columns: tuple[str, ...] = ()
    repeated: Literal["auto", "keep", "drop"] = "auto"
    """Rows that are alike in all columns. Where there are columns alone they are kept, as two customers may be alike, and lie all
    in the training or all in the evaluation; with a text column they are copies, and all but the first are left out."""

    @property
    def drops(self) -> bool:
        return self.repeated == "drop" or (self.repeated == "auto" and self.text_column is not None)


class AutoRecipe(BaseRecipe):
    """Rows to one of some labels: FLAML tries kinds of models and their settings for as long as it is given."""

    data: TableRecipe
    task: Literal["classify"] = "classify"
    model: Literal["auto"] = "auto"
    method: Literal["auto"] = "auto"
    base_model: str = "all-MiniLM-L6-v2"
    """The encoder of the text column."""
    max_length: Annotated[int, Field(ge=8)] = 128
    time_budget: Annotated[float, Field(gt=0)] = 60
    """Seconds of search."""
    max_trials: Annotated[int, Field(ge=1)] | None = None
    estimators: tuple[Literal["lgbm", "xgboost", "rf", "extra_tree", "lrl1"], ...] = (
        "lgbm",
        "xgboost",
        "rf",
        "extra_tree",
        "lrl1",
    )
    metric: Literal["log_loss", "macro_recall"] = "log_loss"
    """What the search makes better, by cross-validation."""
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the rows that judges the model where there is no `data.eval`."""
    threads: Annotated[int, Field(ge=1)] | None = None
    promote_margin: Annotated[float, Field(ge=0)] = 0.0


class EmbedRecipe(ReadingRecipe):
    """Texts to vectors of unit length: a question comes to lie near what answers it."""

    data: RowsRecipe
    """`query` and `positive`; perhaps `negative`, a text or several; `score` (0 to 1) where the loss compares scores."""
    task: Literal["embed"]
    loss: Literal["multiple_negatives", "triplet", "cosent", "cosine"] = "multiple_negatives"
    """Of sentence-transformers (https://sbert.net/docs/package_reference/sentence_transformer/losses.html). The first takes the
    other rows of a micro-batch for negatives, so the larger that is the better."""
    scale: Annotated[float, Field(gt=0)] = 20.0
    """Cosines are multiplied by it, in `multiple_negatives` and `cosent`."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    dropout: Share = 0.0


class RerankRecipe(ReadingRecipe):
    """A cross-encoder: reads a question together with a text and says how well the one answers the other, from 0 to 1."""

    data: RowsRecipe
    """As for `embed`, so an index's pairs serve both."""
    task: Literal["rerank"]
    negatives: Annotated[int, Field(ge=1)] = 4
    """Texts of other rows that are taken for wrong answers, where a row names none: half of them those most like the question."""
    candidates: Annotated[int, Field(ge=2)] = 20
    """Texts that are put in order for each question of the evaluation: those most like it by their words, and the right one."""
    max_length: Annotated[int, Field(ge=8)] = 256


class ReaderRecipe(ReadingRecipe):
    """Finds the words of a text that answer a question, or that there are none (https://arxiv.org/abs/1810.04805)."""

    data: RowsRecipe
    """`question`, `context` and `answer`, which the context has verbatim, or which is empty; `start` tells which of several."""
    task: Literal["reader"]
    max_length: Annotated[int, Field(ge=32)] = 256
    stride: Annotated[int, Field(ge=0)] = 64
    """Tokens that two windows of a long text share; default: 64, or a quarter of max_length where that is less."""
    max_answer: Annotated[int, Field(ge=1)] = 30
    """Tokens of an answer."""

    @model_validator(mode="before")
    @classmethod
    def _suits(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "stride" in given or not isinstance(length := given.get("max_length"), int):
            return given
        return given | {"stride": min(64, length // 4)}

    @model_validator(mode="after")
    def _room(self) -> ReaderRecipe:
        if self.stride > self.max_length // 4:
            raise ValueError("stride must be a quarter of max_length at most")
        return self


class LanguageRecipe(TrainedRecipe):
    """A causal language model learns texts (`cpt`), answers to prompts (`sft-instruct`) or its turns in chats (`sft-chat`)."""

    data: RowsRecipe
    """cpt: text files, folders of them, or JSON lines of `text`; sft-instruct: `prompt` and `response`; sft-chat: `messages`."""
    task: Literal["cpt", "sft-chat", "sft-instruct", "dpo"]
    precision: Literal["fp32", "bf16", "bf16-true", "auto"] = "fp32"  # pyright: ignore[reportIncompatibleVariableOverride]
    """As elsewhere; `bf16-true` keeps the weights in bf16 too. Adapters beside them stay fp32; where all weights are trained,
    they are rounded at random, up or down, so that steps smaller than their last digit add up (https://arxiv.org/abs/2010.06192)."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "eager"] = "auto"
    """What computes attention, by transformers' names; `auto` is PyTorch's own (`sdpa`) for models that it serves. That is flash
    attention where a sequence is one text; where several share one, flash_attention_2 (package flash-attn, GPUs) and
    flex_attention skip what texts do not see of each other."""
    random_weights: bool = False
    """Begin with the base model's architecture alone: its `config.json` and tokenizer, and weights that are drawn anew."""
    method: Literal["full", "lora", "dora", "qlora"] = "lora"
    """`qlora`: adapters beside weights of four bits (https://arxiv.org/abs/2305.14314); it takes a GPU and bitsandbytes."""
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

    @model_validator(mode="after")
    def _kept(self) -> LanguageRecipe:
        if self.random_weights and self.method == "qlora":
            raise ValueError("qlora quantises weights that are there; with random_weights take another method")
        if self.random_weights and self.method != "full" and self.register_to:
            raise ValueError("adapters of random_weights, which are kept nowhere, cannot be registered: take method: full")
        if self.precision == "bf16-true" and self.method == "qlora":
            raise ValueError("with qlora the weights have four bits: set precision: bf16")
        return self


class PreferenceRecipe(LanguageRecipe):
    """A language model learns which of two answers is the better one (https://arxiv.org/abs/2305.18290)."""

    data: RowsRecipe
    """`prompt`, `chosen` and `rejected`; a prompt is a text, or the messages of a chat."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How dear it is to move away from the model that training began with."""


Recipe = (
    ClassifyRecipe | AutoRecipe | EncoderRecipe | EmbedRecipe | RerankRecipe | ReaderRecipe | LanguageRecipe | PreferenceRecipe
)


def _methods(model: type[BaseRecipe], *names: str) -> Mapping[str, type[BaseRecipe]]:
    return dict.fromkeys(names, model)


STARTED = (TrainedRecipe, AutoRecipe)
"""What runs in a process of its own."""
_ADAPTED = ("lora", "full", "dora", "qlora")
RECIPES: Mapping[str, Mapping[str, type[BaseRecipe]]] = {
    "classify": {"linear": ClassifyRecipe, **_methods(EncoderRecipe, "full", "lora", "dora"), "auto": AutoRecipe},
    "embed": _methods(EmbedRecipe, "full", "lora", "dora"),
    "rerank": _methods(RerankRecipe, "full", "lora", "dora"),
    "reader": _methods(ReaderRecipe, "full", "lora", "dora"),
    "cpt": _methods(LanguageRecipe, *_ADAPTED),
    "sft-chat": _methods(LanguageRecipe, *_ADAPTED),
    "sft-instruct": _methods(LanguageRecipe, *_ADAPTED),
    "dpo": _methods(PreferenceRecipe, *_ADAPTED),
}
"""A recipe's `task` and `method` choose its model."""


def model_for(data: Mapping[str, Any]) -> type[BaseRecipe] | tuple[str, tuple[str, ...]]:
    """The model of a recipe's `task` and `method`; or the key that is wrong, with what it may be."""
    methods = RECIPES.get(task) if isinstance(task := data.get("task", "classify"), str) else None
    if methods is None:
        return "task", tuple(RECIPES)
    auto = "auto" in methods and data.get("model") == "auto"
    method = data.get("method", "auto" if auto else next(iter(methods)))
    if auto and method != "auto":
        return "method", ("auto (it goes with model: auto)",)
    found = methods.get(method) if isinstance(method, str) else None
    return found or ("method", tuple(methods))
