"""What a run's process does: check the data, train, judge beside a baseline, log to MLflow all the while, register, promote."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from finetune import ranks
from finetune.base_model import base_of, fingerprint
from finetune.jobs import job_of
from finetune.loop import Emit, Loop, TrainingError
from finetune.publish import quiet, sign
from finetune.schema import (
    AutoRecipe,
    LauncherRecipe,
    TrainedRecipe,
)
from finetune.tracker import Tracker

if TYPE_CHECKING:
    from pathlib import Path

    from finetune.runs import TrainingRun


Watch = Callable[[str, Mapping[str, Any]], bool]
"""`watch(kind, what)`: told of an event, says whether the run is to end."""


def execute(run: TrainingRun, watch: Watch | None = None) -> dict[str, Any]:
    """Do all of a run; goes on from its newest checkpoint, in the MLflow run it began.

    Parameters
    ----------
    watch: told of every event; the run is cancelled once it says so. A sweep's trial, which has a parent in MLflow, is neither
        judged beside a baseline nor registered: its evaluations are what counts.

    Raises
    ------
    DataError, RecipeError, TrainingError: it cannot be done; the message says why. Canceled: asked to end.
    """
    recipe, spec = run.recipe, run.spec
    if isinstance(recipe, AutoRecipe):
        from finetune.job_auto import execute_auto

        return execute_auto(run, recipe)
    began = time.perf_counter()
    job = job_of(recipe)
    assert isinstance(recipe, TrainedRecipe)
    if not ranks.current().rank:
        run.emit("validated", **job.facts, warnings=len(job.warnings))
    base = base_of(recipe)
    facts = {**job.hashes, "base_model": recipe.base_model, "base_sha256": fingerprint(base)}
    _same_data(run, facts)
    facts |= {"recipe_task": recipe.task, "method": recipe.method}  # `task` alone is serving's word in a model's metadata
    together = ranks.current(recipe.launcher)
    device = _device()
    _use_threads(max(1, spec["threads"] // together.size), device)
    less = together.agree(_checkpoints(recipe, job, base, device))
    if together.rank:  # the first process tells, judges and registers; the others train with it
        given: dict[str, Any] = {"canceled": run.canceled, "device": device, "checkpointing": less}
        loop = Loop(job.task(base, device), recipe, run.folder / "checkpoints", **given)
        loop.run()
        if together.sharded:
            loop.weights()
        return {}
    with quiet():
        tracker = Tracker(run, job, facts)
    status = "FAILED"
    try:
        task = job.task(base, device)
        ended = False

        def emit(kind: str, **what: Any) -> None:
            nonlocal ended
            tracker.emit(kind, **what)
            ended = ended or (watch is not None and watch(kind, what))

        loop = Loop(task, recipe, run.folder / "checkpoints", emit, lambda: ended or run.canceled(), device, less)
        run.set_state(steps=loop.schedule.steps, device=device)
        tracker.emit("started", steps=loop.schedule.steps, threads=spec["threads"], device=device, **_sizes(task, loop))
        progress = loop.run()
        if together.sharded:
            task = _whole(job, task, loop, base, device)
        trial = "parent_run_id" in spec
        judged = {"metrics": dict(progress.metrics)} if trial else job.judge(task, tracker.emit)
        result = {**judged, "steps": progress.step, "tokens": progress.tokens}
        result |= {"training_seconds": round(progress.seconds, 2), "warnings": list(job.warnings)}
        with quiet():
            tracker.log(result, {} if trial else job.artifacts(result))
            if recipe.register_to and not trial:
                run.emit("registering", name=recipe.register_to)
                made = job.register(task, run.folder / "model", facts, result)
                result["registered"] = dataclasses.asdict(sign(made, spec["created_by"]))
            elif not trial:
                task.export(run.folder / "model")
        status = "FINISHED"
    finally:
        with quiet():
            tracker.end("KILLED" if run.canceled() else status)
    return {**result, "seconds": round(time.perf_counter() - began, 2), "mlflow_run_id": tracker.run_id}


def _same_data(run: TrainingRun, facts: Mapping[str, str]) -> None:
    """A run goes on from a checkpoint with the files that it began with, or what it learnt is not what its hashes say.

    Raises
    ------
    TrainingError: one of them is another one now.
    """
    hashes = {key: value for key, value in facts.items() if key.endswith("_sha256")}
    began = run.state().get("hashes") or hashes
    names = {"data_sha256": "data.train", "eval_sha256": "data.eval", "base_sha256": "base_model"}
    changed = [name for key, name in names.items() if began.get(key) != hashes.get(key)]
    if changed and any((run.folder / "checkpoints").glob("step-*")):
        raise TrainingError(
            f"{', '.join(changed)}: changed since the run began, and its checkpoints come from what was there. Put it back, or "
            "run the recipe again."
        )
    if not ranks.current().rank:
        run.set_state(hashes=hashes)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _checkpoints(recipe: TrainedRecipe, job: Any, base: Path, device: str) -> bool:
    from finetune.plan import checkpoints

    return checkpoints(recipe, job, base, device)


def _use_threads(count: int, device: str) -> None:
    import torch

    torch.set_num_threads(count)
    if device == "cpu":  # where it costs nothing; a GPU would fill all memory it takes with numbers first
        torch.set_deterministic_debug_mode("warn")  # as use_deterministic_algorithms, which imports a compiler besides


def _whole(job: Any, task: Any, loop: Loop, base: Path, device: str) -> Any:
    """The task with all of its weights here: what comes after training is done by the first process alone."""
    import torch

    weights, task.model = loop.weights(), None
    job.recipe = job.recipe.model_copy(update={"launcher": LauncherRecipe()})
    found = job.task(base, device)
    with torch.no_grad():
        for name, parameter in found.model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    found.model.eval()
    return found


def _sizes(task: Any, loop: Loop) -> dict[str, Any]:
    """Parameters in all, those that are trained, and those that this process holds; and whether layers are computed again."""
    parameters = list(task.model.parameters())
    trained = sum(p.numel() for group in task.groups() for p in group["params"])
    here = sum(ranks.held(p).numel() for p in parameters)
    return {"parameters": sum(p.numel() for p in parameters), "trained_parameters": trained, "held_parameters": here} | (
        {"gradient_checkpointing": True} if loop.checkpointing else {}
    )


__all__ = ["Emit", "Watch", "execute"]
