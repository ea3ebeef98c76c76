"""What a recipe will take before it is launched: memory, tokens, time and cost, and what would make it fit.

Memory is counted on tensors that have shapes and no content: the model is built on PyTorch's meta device, and one forward pass of
the largest micro-batch tells what is kept for the backward pass. Time is that of a few real steps on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune import threads
from finetune.base_model import locate
from finetune.job import job_of
from finetune.loop import Loop, Schedule, epoch_batches
from finetune.recipe import Recipe, RecipeError
from finetune.schema import AutoRecipe, LanguageRecipe, ReadingRecipe, TrainedRecipe

FLOAT = 4
"""Bytes of a weight, a gradient and each of AdamW's two averages: all are kept in fp32."""
WARM, MEASURED = 2, 4
"""Steps that are not timed, and those after them that are."""
LAST = 4
"""Of the tensors that are kept the last so many belong to the loss."""
_ATTENTION = "smalti_shapes"


@dataclass(frozen=True)
class Memory:
    """Bytes by what holds them, at the moment of a step when there are most."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    """Copies of the trained weights: the moving average, the best evaluated."""
    activations: int
    """What the forward pass of a micro-batch keeps for the backward pass."""

    @property
    def total(self) -> int:
        """Gradients come as activations go, so the larger of the two counts."""
        return self.weights + self.optimizer + self.averages + max(self.gradients, self.activations)


@dataclass(frozen=True)
class Knob:
    """A change of the recipe that takes less memory."""

    change: str
    total: int
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What a run will take."""

    memory: Memory
    available: int
    parameters: int
    trained_parameters: int
    steps: int
    rows: int
    tokens: int
    flops: float
    """Of all of training: 6 a parameter and token, 4 where the base model's weights stay as they are."""
    seconds: float | None
    """Of training, from measured steps; None where it does not fit."""
    evaluation_seconds: float | None
    """Of all evaluations, from one that was made."""
    tokens_per_second: float | None
    cost: float | None
    knobs: tuple[Knob, ...] = field(default=())
    warnings: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.available

    def as_dict(self) -> dict[str, Any]:
        """JSON values for machines."""
        return {**asdict(self), "fits": self.fits, "memory": {**asdict(self.memory), "total": self.memory.total}}

    def summary(self) -> str:
        """Lines for people."""
        lines = [f"{name:12} {_bytes(size)}" for name, size in asdict(self.memory).items() if size]
        verdict = "fits" if self.fits else "does NOT fit"
        lines.append(f"{'at most':12} {_bytes(self.memory.total)} of {_bytes(self.available)}: {verdict}")
        share = self.trained_parameters / self.parameters
        lines.append(f"parameters   {self.parameters:,}, of which {self.trained_parameters:,} ({share:.1%}) are trained")
        lines.append(f"training     {self.steps:,} steps, {self.tokens:,} tokens, {self.flops:.2e} operations")
        if self.seconds is not None:
            lines.append(f"time         {self.seconds:,.0f} s of training at {self.tokens_per_second:,.0f} tokens/s")
            if self.evaluation_seconds:
                lines.append(f"{'':12} {self.evaluation_seconds:,.0f} s of evaluation")
            lines.append(
                f"{'':12} measured here: {MEASURED} steps after {WARM} to warm up; starting and registering are not in it"
            )
        if self.cost is not None:
            lines.append(f"cost         {self.cost:,.2f}")
        lines += [f"instead      {k.change}: {_bytes(k.total)}, {'fits' if k.fits else 'does not fit yet'}" for k in self.knobs]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def plan(recipe: Recipe, *, price_per_hour: float = 0.0, memory: float | None = None, measure: bool = True) -> Plan:
    """Estimate what a recipe takes on this machine.

    Parameters
    ----------
    price_per_hour: of this machine; 0 gives no cost.
    memory: GB there are; default: what is free.
    measure: time a few steps where the run fits.

    Raises
    ------
    RecipeError: the recipe is not trained by gradient descent, or its model is not there. DataError: it cannot be trained on.
    """
    if not isinstance(recipe, TrainedRecipe):
        takes = f"its time_budget, {recipe.time_budget:g} s," if isinstance(recipe, AutoRecipe) else "seconds"
        raise RecipeError(f"task {recipe.task}, method {recipe.method}: it takes {takes} and no memory worth a plan; run it.")
    job, base = job_of(recipe), locate(recipe.base_model)
    available, device = (int(memory * 1e9) if memory else _free()), _device()
    job_size, shapes = _size(recipe, job, base)
    lengths, schedule = shapes.lengths, Schedule.of(recipe, shapes.lengths)
    tokens = round(sum(lengths) * schedule.steps / schedule.per_epoch)
    parameters = sum(p.numel() for p in shapes.model.parameters())
    trained = sum(p.numel() for group in shapes.groups() for p in group["params"])
    each = 6 if trained > parameters / 2 else 4
    made = Plan(
        memory=job_size,
        available=available,
        parameters=parameters,
        trained_parameters=trained,
        steps=schedule.steps,
        rows=len(lengths),
        tokens=tokens,
        flops=float(each * parameters * tokens),
        seconds=None,
        evaluation_seconds=None,
        tokens_per_second=None,
        cost=None,
        warnings=tuple(job.warnings),
    )
    if not made.fits:
        return replace(made, knobs=tuple(_knobs(recipe, job, base, available)))
    if not measure:
        return made
    seconds, seen, evaluation = _timed(recipe, job.task(base, device), device)
    whole = seconds / seen * tokens
    judged = evaluation * (1 + (schedule.steps - 1) // (schedule.evaluate_every or schedule.steps))
    cost = price_per_hour * (whole + judged) / 3600 if price_per_hour else None
    rate = round(seen / seconds, 1)
    return replace(made, seconds=round(whole, 2), evaluation_seconds=round(judged, 2), tokens_per_second=rate, cost=cost)


def _size(recipe: TrainedRecipe, job: Any, base: Path) -> tuple[Memory, Any]:
    """Memory of a recipe, and its task on tensors without content."""
    shapes = job.shapes(recipe, base)
    whole, groups = sum(p.numel() for p in shapes.model.parameters()), shapes.groups()
    trained = FLOAT * sum(p.numel() for group in groups for p in group["params"])
    copies = bool(recipe.ema) + bool(recipe.early_stopping)
    size = min(recipe.micro_batch_size or recipe.batch_size, recipe.batch_size)
    largest = sorted(range(len(shapes.lengths)), key=lambda i: -shapes.lengths[i])[:size]
    kept = _kept(shapes, lambda: shapes.loss(largest))
    return Memory(FLOAT * whole, trained, 2 * trained, copies * trained, kept), shapes


def _kept(task: Any, forward: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the weights; and the first gradient of that, the logits'."""
    import torch

    _register_attention()
    owned = {parameter.untyped_storage()._cdata for parameter in task.model.parameters()}
    kept: dict[int, Any] = {}
    order: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            kept[storage._cdata] = storage  # held, so that its address is not given to another
            order.append(storage.nbytes())
        return tensor

    model = getattr(task.model, "encoder", task.model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    model.set_attn_implementation(_ATTENTION)
    task.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    total = sum(storage.nbytes() for storage in kept.values()) + max(order[-LAST:])
    del loss
    return total


def _register_attention() -> None:
    """An attention that computes nothing and keeps what PyTorch's own keeps: a fused one, or with dropout all weights."""
    import torch
    from transformers import AttentionInterface

    class Shapes(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            query, key, value, dropout = inputs
            result = torch.empty_like(query)
            rows, heads, tokens, _ = query.shape
            beside = [torch.empty(rows, heads, tokens, device=query.device)]
            if dropout:
                beside = [torch.empty(rows, heads, tokens, key.shape[2], device=query.device) for _ in range(3)]
            ctx.save_for_backward(query, key, value, result, *beside)
            return result

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            raise NotImplementedError("it has shapes only")

    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0, **more: Any
    ) -> tuple[Any, None]:
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        return Shapes.apply(query, key, value, dropout if module.training else 0.0).transpose(1, 2), None

    AttentionInterface.register(_ATTENTION, attention)


def _timed(recipe: TrainedRecipe, task: Any, device: str) -> tuple[float, int, float]:
    """Seconds and tokens of a few steps, from the shortest batches to the longest, and the seconds of an evaluation."""
    import torch

    torch.set_num_threads(recipe.threads or threads.free())
    batches = epoch_batches(task.lengths, recipe.batch_size, recipe.seed, 0)
    by_size = sorted(batches, key=lambda batch: sum(task.lengths[example] for example in batch))
    chosen: Sequence[list[int]] = [by_size[(2 * i + 1) * len(by_size) // (2 * MEASURED)] for i in range(MEASURED)]
    with TemporaryDirectory() as folder:
        loop = Loop(task, recipe, Path(folder), device=device)
        task.model.train()
        for _ in range(WARM):
            loop._step(by_size[-1])
        began = time.perf_counter()
        for batch in chosen:
            loop._step(batch)
        middle = time.perf_counter()
        task.model.eval()
        with torch.no_grad():
            task.evaluate()
        evaluation = time.perf_counter() - middle
    return middle - began, sum(task.lengths[example] for batch in chosen for example in batch), evaluation


def _knobs(recipe: TrainedRecipe, job: Any, base: Path, available: int) -> list[Knob]:
    """Changes, each on top of those before it, until the run fits."""
    found: list[Knob] = []
    changes: dict[str, Any] = {}
    for key, value in _smaller(recipe):
        changes[key] = value
        changed = recipe.model_copy(update=changes)
        memory, _ = _size(changed, job, base)
        told = " ".join(f"{name}={given}" for name, given in changes.items())
        found.append(Knob(told, memory.total, memory.total <= available))
        if found[-1].fits:
            break
    return found


def _smaller(recipe: TrainedRecipe) -> list[tuple[str, Any]]:
    size = min(recipe.micro_batch_size or recipe.batch_size, recipe.batch_size)
    found: list[tuple[str, Any]] = [("ema", 0.0)] if recipe.ema else []
    if isinstance(recipe, LanguageRecipe | ReadingRecipe) and recipe.method == "full":
        found.append(("method", "lora"))
    found += [("micro_batch_size", part) for part in dict.fromkeys((max(1, size // 4), 1)) if part < size]
    if isinstance(recipe, ReadingRecipe):
        if recipe.train_embeddings:
            found.append(("train_embeddings", False))
        return [*found, ("max_length", max(8, recipe.max_length // 2))]
    assert isinstance(recipe, LanguageRecipe)
    return [*found, ("context_length", max(8, recipe.context_length // 2))]


def _free() -> int:
    """Bytes that a run may take here."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
