"""What a recipe will take before it is launched: memory, tokens, time and cost, and what would make it fit.

Memory is that of a step on tensors that have shapes and no content (`finetune.memory`), time that of a few real steps here.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune import speed, threads
from finetune.base_model import base_of
from finetune.jobs import job_of
from finetune.loop import Loop, Schedule, epoch_batches
from finetune.memory import Memory, memory_of
from finetune.recipe import Recipe, RecipeError
from finetune.schema import AutoRecipe, EncoderRecipe, LanguageRecipe, ReadingRecipe, TrainedRecipe

WARM, MEASURED = 2, 5
"""Steps that are not timed, and those after them that are, of which there are as many rounds as `ENOUGH` seconds hold."""
ENOUGH, ROUNDS = 4.0, 10
Clock = Callable[[], float]


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
    gradient_checkpointing: bool
    """Whether layers are computed again for their gradients: the recipe says so, or it fits no other way."""
    parameters: int
    trained_parameters: int
    steps: int
    rows: int
    tokens: int
    flops: float
    """Of all of training, by the convention of `finetune.speed.operations`."""
    seconds: float | None
    """Of training, from measured steps; None where it does not fit."""
    seconds_between: tuple[float, float] | None
    """The same by the quickest and by the slowest round of measured steps; far apart where others use the machine."""
    evaluation_seconds: float | None
    """Of all evaluations, with what is written for people to look at, from one that was made."""
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
        if self.gradient_checkpointing:
            lines.append(f"{'':12} with gradient checkpointing, which takes a third more operations")
        share = self.trained_parameters / self.parameters
        lines.append(f"parameters   {self.parameters:,}, of which {self.trained_parameters:,} ({share:.1%}) are trained")
        lines.append(f"training     {self.steps:,} steps, {self.tokens:,} tokens, {self.flops:.2e} operations")
        if self.seconds is not None:
            low, high = self.seconds_between or (self.seconds, self.seconds)
            between = f" ({low:,.0f} to {high:,.0f})" if round(low) < round(high) else ""
            lines.append(f"time         {self.seconds:,.0f} s of training{between} at {self.tokens_per_second:,.0f} tokens/s")
            if self.evaluation_seconds:
                lines.append(f"{'':12} {self.evaluation_seconds:,.0f} s of evaluation")
            lines.append(f"{'':12} measured here, by steps after {WARM} to warm up; starting and registering are not in it")
        if self.cost is not None:
            lines.append(f"cost         {self.cost:,.2f}")
        lines += [f"instead      {k.change}: {_bytes(k.total)}, {'fits' if k.fits else 'does not fit yet'}" for k in self.knobs]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def plan(
    recipe: Recipe,
    *,
    price_per_hour: float = 0.0,
    memory: float | None = None,
    measure: bool = True,
    clock: Clock = time.perf_counter,
) -> Plan:
    """Estimate what a recipe takes on this machine.

    Parameters
    ----------
    price_per_hour: of this machine; 0 gives no cost.
    memory: GB there are; default: what is free.
    measure: time a few steps where the run fits.
    clock: tells the seconds; `time.process_time` leaves out what others use of the machine.

    Raises
    ------
    RecipeError: the recipe is not trained by gradient descent, or its model is not there. DataError: it cannot be trained on.
    """
    if not isinstance(recipe, TrainedRecipe):
        takes = f"its time_budget, {recipe.time_budget:g} s," if isinstance(recipe, AutoRecipe) else "seconds"
        raise RecipeError(f"task {recipe.task}, method {recipe.method}: it takes {takes} and no memory worth a plan; run it.")
    job, base = job_of(recipe), base_of(recipe)
    available, device = (int(memory * 1e9) if memory else _free()), _device()
    size, shapes, checkpointing = _size(recipe, job, base, device, available)
    lengths, schedule = shapes.lengths, Schedule.of(recipe, shapes.lengths)
    tokens = round(sum(lengths) * schedule.steps / schedule.per_epoch)
    parameters = sum(p.numel() for p in shapes.model.parameters())
    trained = sum(p.numel() for group in shapes.groups() for p in group["params"])
    made = Plan(
        memory=size,
        available=available,
        gradient_checkpointing=checkpointing,
        parameters=parameters,
        trained_parameters=trained,
        steps=schedule.steps,
        rows=len(lengths),
        tokens=tokens,
        flops=float(speed.operations(shapes.model, trained)[0] * tokens),
        seconds=None,
        seconds_between=None,
        evaluation_seconds=None,
        tokens_per_second=None,
        cost=None,
        warnings=tuple(job.warnings),
    )
    if not made.fits:
        return replace(made, knobs=tuple(_knobs(recipe, job, base, device, available)))
    if not measure:
        return made
    runs, evaluation = _timed(recipe, job.task(base, device), schedule.steps, device, checkpointing, clock)
    whole = sum(runs) / len(runs)
    judged = evaluation * _evaluations(recipe, schedule)
    cost = price_per_hour * (whole + judged) / 3600 if price_per_hour else None
    between = (round(min(runs), 2), round(max(runs), 2)) if len(runs) > 1 else None
    told: dict[str, Any] = {"seconds": round(whole, 2), "seconds_between": between, "evaluation_seconds": round(judged, 2)}
    return replace(made, **told, tokens_per_second=round(tokens / whole, 1), cost=cost)


def checkpoints(recipe: TrainedRecipe, job: Any, base: Path, device: str) -> bool:
    """What `gradient_checkpointing` comes to here; memory is counted where a rough bound does not show that there is plenty."""
    if recipe.gradient_checkpointing != "auto":
        return recipe.gradient_checkpointing
    available = _free()
    if _bound(recipe, base) < available / 2:
        return False
    return _size(recipe, job, base, device, available)[2]


def _bound(recipe: TrainedRecipe, base: Path) -> int:
    """Bytes that no step exceeds, from the sizes that a model's configuration tells."""
    told = json.loads((base / "config.json").read_text(encoding="utf-8"))
    given = told.get("text_config") or told
    width, depth = int(given.get("hidden_size") or 8192), int(given.get("num_hidden_layers") or 80)
    inner, heads = int(given.get("intermediate_size") or 4 * width), int(given.get("num_attention_heads") or 64)
    words = int(given.get("vocab_size") or 256_000)
    length = recipe.context_length if isinstance(recipe, LanguageRecipe) else getattr(recipe, "max_length", 512)
    many = 1 if isinstance(recipe, EncoderRecipe) else 8  # pairs, negatives and candidates
    rows = min(recipe.micro_batch_size or recipe.batch_size, recipe.batch_size) * many
    logits = 4 * words if isinstance(recipe, LanguageRecipe) else 0
    weights = depth * (4 * width * width + 4 * width * inner) + 2 * words * width
    return 4 * (6 * weights + rows * length * (depth * (40 * width + 12 * inner + 6 * heads * length) + logits))


def _size(recipe: TrainedRecipe, job: Any, base: Path, device: str, available: int) -> tuple[Memory, Any, bool]:
    """Memory of a recipe, its task without content, and whether it checkpoints: where it must and is free to."""
    wished = recipe.gradient_checkpointing
    memory, task = memory_of(recipe, job, base, device, checkpointing=wished is True)
    if wished == "auto" and memory.total > available:
        less, other = memory_of(recipe, job, base, device, checkpointing=True)
        if less.total < memory.total:
            return less, other, True
    return memory, task, wished is True


def _timed(
    recipe: TrainedRecipe, task: Any, steps: int, device: str, checkpointing: bool, clock: Clock
) -> tuple[list[float], float]:
    """Seconds of all of a run's steps, by each of some rounds of a few; and those of an evaluation."""
    import torch

    torch.set_num_threads(recipe.threads or threads.free())
    batches = epoch_batches(task.lengths, recipe.batch_size, recipe.seed, 0)
    sizes = [_places(task.lengths, batch, recipe.micro_batch_size or recipe.batch_size) for batch in batches]
    chosen = picked(sizes)
    counts = [steps // len(batches) + (number < steps % len(batches)) for number in range(len(batches))]
    runs: list[float] = []
    with TemporaryDirectory() as folder:
        loop = Loop(task, recipe, Path(folder), device=device, checkpointing=checkpointing)
        task.model.train()

        def seconds(number: int) -> float:
            began = clock()
            loop._step(batches[number])
            return clock() - began

        warming = [seconds(chosen[-1]) for _ in range(WARM)]
        first, taken = max(0.0, warming[0] - warming[-1]), 0.0
        while not runs or (len(runs) < ROUNDS and taken < ENOUGH):
            times = [seconds(number) for number in chosen]
            taken += sum(times)
            runs.append(first + expected(sizes, counts, chosen, times))
        task.model.eval()
        began = clock()
        with torch.no_grad():
            task.evaluate()
            task.samples()
        return runs, clock() - began


def _places(lengths: Sequence[int], batch: Sequence[int], size: int) -> int:
    """The tokens that a batch is computed on, with those that pad its micro-batches of `size`."""
    parts = [[lengths[example] for example in batch[at : at + size]] for at in range(0, len(batch), size)]
    return sum(len(part) * max(part) for part in parts)


def picked(sizes: Sequence[int]) -> list[int]:
    """The batches to time, by number, the smallest first: it, the largest, and between them those at equal shares of all tokens,
    so that a few large ones, which may take most of the time, are among them."""
    order = sorted(range(len(sizes)), key=lambda number: sizes[number])
    upto, total = list(accumulate(sizes[number] for number in order)), sum(sizes)
    places = (bisect_left(upto, total * share / (MEASURED - 1)) for share in range(MEASURED))
    return [order[place] for place in sorted(set(places))]


def expected(sizes: Sequence[int], counts: Sequence[int], chosen: Sequence[int], times: Sequence[float]) -> float:
    """Seconds of batches of those sizes, each computed so many times, from the times of the chosen ones: between two of them on
    the line that joins them, as a step takes some time whatever its size, and more than its share where it is large."""
    import numpy as np

    known, which = np.unique([sizes[number] for number in chosen], return_inverse=True)
    means = np.bincount(which, times) / np.bincount(which)
    return float(np.dot(np.interp(sizes, known, means), counts))


def _evaluations(recipe: TrainedRecipe, schedule: Schedule) -> int:
    """How often a run evaluates: while it trains, at its end, what it keeps, and but for classifiers what it began with."""
    within = (schedule.steps - 1) // (schedule.evaluate_every or schedule.steps)
    return within + 2 + (not isinstance(recipe, EncoderRecipe))


def _knobs(recipe: TrainedRecipe, job: Any, base: Path, device: str, available: int) -> list[Knob]:
    """Changes, each on top of those before it, until the run fits."""
    found: list[Knob] = []
    changes: dict[str, Any] = {}
    for key, value in _smaller(recipe):
        changes[key] = value
        changed = recipe.model_copy(update=changes)
        memory, *_ = _size(changed, job, base, device, available)
        told = " ".join(f"{name}={given}" for name, given in changes.items())
        found.append(Knob(told, memory.total, memory.total <= available))
        if found[-1].fits:
            break
    return found


def _smaller(recipe: TrainedRecipe) -> list[tuple[str, Any]]:
    size = min(recipe.micro_batch_size or recipe.batch_size, recipe.batch_size)
    found: list[tuple[str, Any]] = [("ema", 0.0)] if recipe.ema else []
    if recipe.gradient_checkpointing is False:
        found.append(("gradient_checkpointing", True))
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
