"""One training loop for every task: plain PyTorch, read from top to bottom.

What a step does depends on (seed, step) alone: the order of the data is drawn from the seed and the epoch, and the random numbers
of a step (dropout) from the seed and the step. So a run that goes on from a checkpoint computes what an undisturbed one would
have computed, and one that repeats a step in smaller parts, because memory ran out, sees the same rows.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from finetune import checkpoint, ranks, speed
from finetune.duration import Duration
from finetune.optimizer import optimizer_of

if TYPE_CHECKING:
    import torch

    from finetune.schema import TrainedRecipe

_FREE = ("threads", "log_every", "register_to", "launcher", "sweep", "gradient_checkpointing", "compile", "attention")
"""Keys of a recipe that may change between a checkpoint and what goes on from it."""
SETTLED = 20
"""Steps over which the loss is averaged to see whether training diverges."""
OFTEN, SAVING = "100ba", 0.1
"""How often checkpoints are written where the recipe does not say, and the share of the time that this may take."""
DIVERGED = 2.0
"""Training has diverged when the average loss is so many times what it was at first."""
Emit = Callable[..., None]
"""`emit(kind, **what)`: told of progress."""


class TrainingError(Exception):
    """Training cannot go on; the message says at which step, why and what to change."""


class Canceled(Exception):
    """Someone asked the run to end; its last step is in a checkpoint."""


class Task(Protocol):
    """What the loop is handed: a model, its examples, and how good it is."""

    model: torch.nn.Module

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each example, asked for at each step."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """Parameters to train, in AdamW's groups, each with its highest learning rate."""
        ...

    def targets(self, examples: Sequence[int]) -> int:
        """How many losses these examples add up: rows, or tokens that are not masked."""
        ...

    def loss(self, examples: Sequence[int]) -> torch.Tensor:
        """The sum (not the mean) of the losses of these examples."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Metrics; `score` among them is higher for a better model. Nothing where there is no data to judge on."""
        ...

    def samples(self) -> Sequence[str]:
        """What the model writes now, for people to look at."""
        ...


@dataclass
class Progress:
    """What of a run is neither a tensor nor computed anew: kept in its checkpoints."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    micro_batch: int = 0
    first_loss: float | None = None
    recent: list[float] = field(default_factory=list)
    best_score: float | None = None
    worse: int = 0
    """Evaluations since the best one."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """How many steps there are, and how often what happens."""

    steps: int
    per_epoch: int
    evaluate_every: int | None
    checkpoint_every: int

    @classmethod
    def of(cls, recipe: TrainedRecipe, lengths: Sequence[int]) -> Schedule:
        per_epoch = math.ceil(len(lengths) / recipe.batch_size)
        tokens = sum(lengths)

        def steps(text: str) -> int:
            return Duration.parse(text).steps(per_epoch, tokens)

        every = steps(recipe.eval_interval) if recipe.eval_interval else None
        return cls(steps(recipe.training_duration), per_epoch, every, steps(recipe.checkpoint_interval or OFTEN))


def epoch_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """The optimizer batches of an epoch: drawn at random, then alike in length, so that little is padded."""
    draw = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    draw.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), size * 20):
        pool = sorted(order[start : start + size * 20], key=lambda example: lengths[example])
        parts = [pool[at : at + size] for at in range(0, len(pool), size)]
        draw.shuffle(parts)
        batches += parts
    return batches


def learning_rate_share(recipe: TrainedRecipe, step: int, steps: int) -> float:
    """What share of its highest value the learning rate has in a step: rises, then falls to zero (unless `constant`)."""
    warm = int(steps * recipe.warmup)
    if step < warm:
        return (step + 1) / (warm + 1)
    at = (step - warm) / max(1, steps - warm)
    return {"linear": 1 - at, "cosine": (1 + math.cos(math.pi * at)) / 2, "constant": 1.0}[recipe.schedule]


class Loop:
    """Trains a task's model as its recipe says.

    Parameters
    ----------
    folder: holds the checkpoints; training goes on from the newest whole one.
    emit: told `progress` (step, loss, learning rate, tokens a second), `evaluation`, `sample`, `checkpoint`, `resumed`, `memory`.
    canceled: asked at each step whether to end.
    device: where to compute.
    checkpointing: what `gradient_checkpointing: auto` means here; None turns it on once memory runs out.
    """

    def __init__(
        self,
        task: Task,
        recipe: TrainedRecipe,
        folder: Path,
        emit: Emit = lambda *_, **__: None,
        canceled: Callable[[], bool] = lambda: False,
        device: str = "cpu",
        checkpointing: bool | None = None,
    ) -> None:
        self.task, self.recipe, self.folder, self.emit, self.canceled, self.device = task, recipe, folder, emit, canceled, device
        self.schedule, self.ranks = Schedule.of(recipe, task.lengths), ranks.current(recipe.launcher)
        self.progress = Progress(micro_batch=min(recipe.micro_batch_size or recipe.batch_size, recipe.batch_size))
        groups = task.groups()
        self.checkpointing = recipe.gradient_checkpointing is True or bool(checkpointing)
        speed.prepare(task.model, recipe, self.checkpointing)
        self.optimizer = optimizer_of(recipe, groups)
        self._highest = [float(group["lr"]) for group in self.optimizer.param_groups]
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        self._trained = {name: p for name, p in task.model.named_parameters() if id(p) in trained}
        # in fp32, or an average that moves by less than its last digit would stand still
        self._average = {n: p.detach().clone().float() for n, p in self._trained.items()} if recipe.ema else {}
        self._best: dict[str, torch.Tensor] = {}
        self._bf16 = recipe.precision.startswith("bf16") or (recipe.precision == "auto" and speed.has_bf16(device))
        self._took, self._since = 0.0, time.perf_counter()
        """Seconds that the last checkpoint took, and when it was there."""
        self._saved, self._trains = -1, sum(parameter.numel() for parameter in self._trained.values())
        self.operations = speed.operations(task.model, self._trains)[0]

    def run(self) -> Progress:
        """Train to the end; the task's model then holds the weights to keep (the average, or the best evaluated).

        Raises
        ------
        TrainingError: the loss is not a number or grows, or one row alone does not fit into memory. Canceled: asked to end.
        """
        self._resume()
        progress, schedule = self.progress, self.schedule
        self.task.model.train()
        batches: list[list[int]] = []
        logged, seen, epoch = time.perf_counter(), progress.tokens, -1
        while progress.step < schedule.steps and not self._stopped():
            if self.ranks.agree(self.canceled()):
                self._checkpoint()
                raise Canceled(f"canceled after step {progress.step} of {schedule.steps}")
            if progress.step // schedule.per_epoch != epoch:
                epoch = progress.step // schedule.per_epoch
                batches = epoch_batches(self.task.lengths, self.recipe.batch_size, self.recipe.seed, epoch)
            began = time.perf_counter()
            batch = batches[progress.step % schedule.per_epoch]
            loss, norm = self._step(batch)
            progress.seconds += time.perf_counter() - began
            progress.step += 1
            progress.tokens += sum(self.task.lengths[example] for example in batch)
            self._watch(loss)
            step, last = progress.step, progress.step == schedule.steps
            if step % self.recipe.log_every == 0 or last or step == 1:
                now = time.perf_counter()
                told = {"loss": loss, "gradient_norm": norm, "epoch": round(step / schedule.per_epoch, 3)}
                rate = self._highest[0] * learning_rate_share(self.recipe, step - 1, schedule.steps)
                told |= {"learning_rate": rate, "tokens_per_second": (progress.tokens - seen) / max(now - logged, 1e-9)}
                if promised := speed.peak(self.device):
                    told["mfu"] = round(told["tokens_per_second"] * self.operations / (promised * self.ranks.size), 4)
                self.emit("progress", step=step, steps=schedule.steps, tokens=progress.tokens, **told)
                logged, seen = now, progress.tokens
            if schedule.evaluate_every and step % schedule.evaluate_every == 0 and not last:
                self._evaluate()
            if step % schedule.checkpoint_every == 0 and not last and self._due():
                self._checkpoint()
        if progress.step != self._saved:
            if not self._stopped():
                self._evaluate()
            self._checkpoint()
        if self.recipe.early_stopping and self._best:
            self._load(self._best)
        elif self._average:
            self._load(self._average)
        self.task.model.eval()
        return progress

    # ---- a step

    def _step(self, batch: Sequence[int]) -> tuple[float, float]:
        """One optimizer step: the mean loss of its targets, and the gradient's norm before it was bounded."""
        import torch

        share = learning_rate_share(self.recipe, self.progress.step, self.schedule.steps)
        for group, highest in zip(self.optimizer.param_groups, self._highest, strict=True):
            group["lr"] = highest * share
        total, whole, batch = max(1, self.task.targets(batch)), batch, self.ranks.part(batch)
        while True:
            size = self.progress.micro_batch
            try:
                self.optimizer.zero_grad()
                # CPU and GPU draw from generators of their own; this seeds both
                torch.manual_seed((self.recipe.seed << 32) + self.progress.step + (self.ranks.rank << 24))
                summed: Any = 0.0
                for start in range(0, self.ranks.rows(whole), size):
                    rows = batch[start : start + size]
                    with torch.autocast(self.device, torch.bfloat16, enabled=self._bf16):
                        # a process without rows of its own keeps step with the others
                        loss = self.task.loss(rows or whole[:1]) * (len(rows) > 0) / total
                    (loss * self.ranks.weight).backward()
                    summed += loss.detach()  # not read yet: a GPU would be waited for
                break
            except RuntimeError as error:
                if not speed.out_of_memory(error):
                    raise
            loss = summed = None  # with them, and the error, goes what the passes kept; only then is there room for others
            self._shrink(size)
        summed = self.ranks.add(self._trained.values(), float(summed) if self.ranks.size > 1 else summed)
        norm = torch.nn.utils.clip_grad_norm_(list(self._trained.values()), self.recipe.max_gradient_norm)
        self.optimizer.step()
        if self._average:
            # a short memory at first, or the average would keep the untrained weights for long
            kept = min(self.recipe.ema, (1 + self.progress.step) / (10 + self.progress.step))
            with torch.no_grad():
                now = [ranks.held(self._trained[name]).float() for name in self._average]
                averages: Any = [ranks.held(average) for average in self._average.values()]
                getattr(torch, "_foreach_lerp_")(averages, now, 1 - kept)  # noqa: B009 - PyTorch's own optimizers call it
        summed, norm = float(summed), float(ranks.whole(norm))  # waits for a GPU: once a step, when all of it was asked for
        if not (math.isfinite(summed) and math.isfinite(norm)):
            raise TrainingError(
                f"Step {self.progress.step + 1}: the loss or its gradient is not a number. "
                "Lower learning_rate, or look at the rows."
            )
        return summed, norm

    def _shrink(self, size: int) -> None:
        import torch

        self.optimizer.zero_grad()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        auto = self.recipe.gradient_checkpointing == "auto" and not self.checkpointing and not self.ranks.sharded
        if auto and speed.checkpoint_layers(self.task.model):
            self.checkpointing = True
            self.emit("memory", step=self.progress.step + 1, gradient_checkpointing=True)
            return
        if size == 1:
            raise TrainingError(
                f"Step {self.progress.step + 1}: memory does not hold one row. Shorten the rows, or take a smaller model."
            )
        if self.ranks.sharded:  # the others are in the midst of the same pass, and cannot begin it again
            raise TrainingError(f"Step {self.progress.step + 1}: memory ran out. Set micro_batch_size: {size // 2}.")
        self.progress.micro_batch = size // 2
        self.emit("memory", step=self.progress.step + 1, micro_batch_size=size // 2)

    def _watch(self, loss: float) -> None:
        progress = self.progress
        progress.recent = [*progress.recent, loss][-SETTLED:]
        mean = sum(progress.recent) / len(progress.recent)
        if len(progress.recent) == SETTLED and progress.first_loss is None:
            progress.first_loss = mean
        elif progress.first_loss is not None and mean > DIVERGED * max(progress.first_loss, 0.1):
            raise TrainingError(
                f"Step {progress.step}: training diverges; the loss is {mean:.3g} and was {progress.first_loss:.3g} at first. "
                "Lower learning_rate, or raise warmup."
            )

    # ---- evaluation

    def _evaluate(self) -> None:
        import torch

        if self._average:
            now = {name: parameter.detach().clone() for name, parameter in self._trained.items()}
            self._load(self._average)
        self.task.model.eval()
        with torch.no_grad():
            metrics, samples = dict(self.task.evaluate()), list(self.task.samples())
        self.task.model.train()
        progress = self.progress
        if metrics:
            progress.metrics = metrics
            self.emit("evaluation", step=progress.step, **metrics)
            if progress.best_score is None or metrics["score"] > progress.best_score:
                progress.best_score, progress.worse = metrics["score"], 0
                if self.recipe.early_stopping:
                    self._best = {name: parameter.detach().clone() for name, parameter in self._trained.items()}
            else:
                progress.worse += 1
        if samples:
            self.emit("sample", step=progress.step, texts=samples)
        if self._average:
            self._load(now)  # pyright: ignore[reportPossiblyUnboundVariable]

    def _stopped(self) -> bool:
        return bool(self.recipe.early_stopping and self.progress.worse >= self.recipe.early_stopping)

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(ranks.like(tensors[name], parameter))

    # ---- checkpoints

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights, whole; where they are shared out, all processes ask for them together."""
        return {name: ranks.whole(parameter.detach()).cpu() for name, parameter in self._trained.items()}

    def _due(self) -> bool:
        """Whether a checkpoint is worth its time; the first process decides for all."""
        if self.recipe.checkpoint_interval:
            return True
        long_ago = (time.perf_counter() - self._since) * SAVING >= self._took
        return self.ranks.agree(not self.ranks.rank and long_ago)

    def _checkpoint(self) -> None:
        self._saved, began = self.progress.step, time.perf_counter()
        if not self.ranks.rank or self.ranks.sharded:
            self._save()
        self.ranks.wait()
        self._since = time.perf_counter()
        self._took = self._since - began

    def _save(self) -> None:
        tensors = {f"model/{name}": parameter.detach() for name, parameter in self._trained.items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self._average.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        for name, parameter in self._trained.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = value
        if self.ranks.sharded:  # one at a time, and kept by the process that writes
            for name, tensor in tensors.items():
                full = ranks.whole(tensor)
                tensors[name] = full.new_empty(0) if self.ranks.rank else full.cpu()
        if self.ranks.rank:
            return
        state = {"progress": asdict(self.progress), "recipe": _identity(self.recipe)}
        checkpoint.save(self.folder, self.progress.step, tensors, state)
        self.emit("checkpoint", step=self.progress.step)

    def _resume(self) -> None:

        found = checkpoint.newest(self.folder)
        if found is None:
            return
        asked, had = json.loads(_identity(self.recipe)), json.loads(found.state["recipe"])
        if any(asked.get(key) != value for key, value in had.items() if key not in _FREE):  # keys may have come since
            raise TrainingError("The checkpoints come from another recipe. Start a new run, or resume with the recipe it had.")
        self.progress = replace(self.progress, **found.state["progress"])
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in found.tensors.items():
            kind, _, name = key.partition("/")
            parts.setdefault(kind, {})[name] = tensor
        self._load(parts["model"])
        for name, tensor in self._average.items():
            tensor.copy_(ranks.like(parts["average"][name], tensor))
        self._best = {name: ranks.like(tensor, self._trained[name]) for name, tensor in parts.get("best", {}).items()}
        for key, tensor in parts.get("optimizer", {}).items():
            slot, _, name = key.partition("/")
            parameter = self._trained[name]
            self.optimizer.state[parameter][slot] = ranks.like(tensor, parameter)
        self._saved = found.step
        self.emit("resumed", step=found.step, steps=self.schedule.steps)


def _identity(recipe: TrainedRecipe) -> str:
    return json.dumps(recipe.model_dump(mode="json", exclude=set(_FREE)), sort_keys=True)
