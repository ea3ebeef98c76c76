"""What starts the processes of a run: the recipe's `launcher` line. What they do is the same in each.

Sources: https://docs.pytorch.org/docs/stable/elastic/run.html, https://huggingface.co/docs/accelerate/package_reference/cli,
https://docs.ray.io/en/latest/train/getting-started-pytorch.html and
https://docs.databricks.com/aws/en/machine-learning/ai-runtime/connecting/cli/
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from importlib.metadata import requires
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.recipe import RecipeError, find
from finetune.schema import AutoRecipe, LanguageRecipe, LauncherRecipe, TrainedRecipe

if TYPE_CHECKING:
    from finetune.runs import TrainingRun

ENDED = ("COMPLETED", "FAILED", "CANCELED")
_EXTRAS = ("local", "finetune")


def check(recipe: TrainedRecipe | AutoRecipe, files: Collection[str] = ()) -> None:
    """Whether the recipe can be begun here: its base model and files are there, and what its method and launcher need.

    Parameters
    ----------
    files: names of those that come with the recipe.

    Raises
    ------
    RecipeError: it cannot; the message says why, and what to do.
    """
    from finetune.base_model import base_of, locate

    if isinstance(recipe, AutoRecipe):
        if recipe.data.text_column:
            locate(recipe.base_model)
        if importlib.util.find_spec("flaml") is None:
            raise RecipeError("model: auto needs the packages of the extra auto: pip install 'smalti[auto]'.")
        _check_files(recipe, files)
        return
    base_of(recipe)
    if isinstance(recipe, LanguageRecipe):
        _check_language(recipe)
    if recipe.optimizer == "adamw-8bit":
        from finetune.optimizer import check_8bit

        check_8bit()
    if recipe.compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise RecipeError("compile: it takes a C++ compiler (g++ or clang++), and there is none here; leave it out.")
    kind = recipe.launcher.kind
    if kind == "databricks":
        raise RecipeError(
            "launcher: databricks runs elsewhere: `smalti finetune export RECIPE` writes what `databricks air run` reads."
        )
    if kind == "ray" and importlib.util.find_spec("ray") is None:
        raise RecipeError("launcher: ray needs the package ray (pip install 'ray[train]'); torchrun needs nothing more.")
    if kind == "accelerate" and importlib.util.find_spec("accelerate") is None:
        raise RecipeError("launcher: accelerate needs the package accelerate; torchrun needs nothing more.")
    if kind == "process" and recipe.launcher.processes > 1:
        raise RecipeError("launcher.processes: several processes take kind: torchrun, accelerate or ray.")
    if recipe.launcher.strategy == "fsdp":
        if kind == "process":
            raise RecipeError("launcher.strategy: fsdp takes several processes: {kind: torchrun, processes: 2, strategy: fsdp}.")
        if isinstance(recipe, LanguageRecipe) and recipe.method == "qlora":
            raise RecipeError("launcher.strategy: weights of four bits are not shared out; take ddp, or method: lora.")
    _check_files(recipe, files)


def _check_files(recipe: TrainedRecipe | AutoRecipe, files: Collection[str]) -> None:
    data: Any = recipe.data  # type: ignore[union-attr]
    for key, file in (("train", data.train), ("eval", data.eval)):
        if file is not None and str(file) not in files and not find(file).exists():
            raise RecipeError(f"data.{key}: there is no {file}, neither in this folder nor beside the rooms.")


def _check_language(recipe: LanguageRecipe) -> None:
    """What language models may be asked for that not all of them, and not all machines, have."""
    import torch

    from finetune.base_model import base_of

    told = json.loads((base_of(recipe) / "config.json").read_text(encoding="utf-8"))
    most = (told.get("text_config") or told).get("max_position_embeddings") or recipe.context_length
    if recipe.context_length > most:
        raise RecipeError(f"context_length: {recipe.base_model} reads at most {most} tokens, not {recipe.context_length}.")
    if recipe.method == "qlora":
        from finetune.tasks.language import four_bits

        four_bits()
    if recipe.attention.startswith("flash"):
        package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}[recipe.attention]
        missing = [] if torch.cuda.is_available() else ["a GPU"]
        missing += [] if importlib.util.find_spec(package) else [f"the package {package.replace('_', '-')}"]
        if missing:
            raise RecipeError(f"attention: {recipe.attention} needs {' and '.join(missing)}; take sdpa, which needs neither.")
        if not recipe.precision.startswith("bf16"):
            raise RecipeError(f"attention: {recipe.attention} computes in bf16: set precision: bf16.")


def launch(run: TrainingRun) -> str:
    """Start the processes of a run and wait until they have ended; gives the run's status.

    Raises
    ------
    RecipeError: the launcher cannot be had here.
    """
    from finetune.perform import end_with

    recipe = run.recipe
    assert isinstance(recipe, TrainedRecipe)
    try:
        check(recipe)
        code = _ray(run, recipe.launcher) if recipe.launcher.kind == "ray" else _processes(run, recipe.launcher)
    except RecipeError as error:
        return end_with(run, "failed", str(error))
    status = run.state()["status"]
    if status in ENDED:
        return status
    log = run.folder / "log.txt"
    return end_with(run, "failed", f"A process of {recipe.launcher.kind} ended with {code} before the run did (see {log}).")


def command(launcher: LauncherRecipe, folder: Path) -> list[str]:
    """The command line that starts the processes on this machine."""
    import torch

    count = str(launcher.processes)
    ours = ["-m", "finetune.rank", str(folder)]
    if launcher.kind == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, *ours]
    given = ["--num_processes", count, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    several = ["--multi_gpu"] if launcher.processes > 1 and torch.cuda.is_available() else []
    if launcher.processes > 1 and not several:
        raise RecipeError("launcher: accelerate starts several processes on GPUs only; on processors take torchrun.")
    return [sys.executable, "-m", "accelerate.commands.launch", *given, *several, *ours]


def _processes(run: TrainingRun, launcher: LauncherRecipe) -> int:
    process = subprocess.Popen(command(launcher, run.folder), env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"})
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise


def _ray(run: TrainingRun, launcher: LauncherRecipe) -> int:
    """Ray Train sets the processes up, and PyTorch's group with them."""
    import torch
    from ray.train import ScalingConfig  # pyright: ignore[reportMissingImports] - an installation of its own
    from ray.train.torch import TorchTrainer  # pyright: ignore[reportMissingImports]

    scaling = ScalingConfig(num_workers=launcher.processes, use_gpu=torch.cuda.is_available())
    TorchTrainer(_ray_worker, train_loop_config={"folder": str(run.folder)}, scaling_config=scaling).fit()
    return 0


def _ray_worker(given: dict[str, Any]) -> None:
    from finetune.rank import train

    train(Path(given["folder"]))


def job(recipe: TrainedRecipe, file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The workload of `databricks air run` for a recipe in a file, which is read from the snapshot of the folder it is run in.

    Parameters
    ----------
    overrides: keys of the recipe that were set besides, and are set there too.

    Raises
    ------
    RecipeError: the launcher is another one, one machine of its type has fewer accelerators, or the file is not in the folder.
    """
    launcher = recipe.launcher
    if launcher.kind != "databricks":
        raise RecipeError("launcher: write `launcher: {kind: databricks, processes: 1, accelerator: GPU_1xH100}`.")
    each = int("".join(c for c in launcher.accelerator.partition("x")[0] if c.isdigit()) or 1)
    if launcher.processes != each:
        raise RecipeError(
            f"launcher: {launcher.accelerator} is a machine of {each}: set processes: {each}, or another accelerator."
        )
    strategy = f", strategy: {launcher.strategy}" if launcher.strategy != "ddp" else ""
    local = "process" if each == 1 else f"{{kind: torchrun, processes: {each}{strategy}}}"
    if not file.resolve().is_relative_to(here := Path.cwd().resolve()):
        raise RecipeError(
            f"{file} is not in {here}, of which the job gets a snapshot. Export from a folder that holds the recipe."
        )
    kept = [each for each in overrides if each.partition("=")[0].strip().partition(".")[0] != "launcher"]
    words = ["python", "-m", "app", "finetune", "run", file.resolve().relative_to(here).as_posix(), *kept]
    words += [f"launcher={local}", "--tracking-uri", "databricks"]
    return {
        "experiment_name": recipe.name,
        "environment": {"version": launcher.environment, "dependencies": _dependencies()},
        "compute": {"num_accelerators": each, "accelerator_type": launcher.accelerator},
        "code_source": {"type": "snapshot", "snapshot": {"root_path": "."}},
        "env_variables": {"SMALTI_HOME": "/tmp/smalti"},
        "command": f"cd $CODE_SOURCE_PATH && {shlex.join(words)}",
    }


def _dependencies() -> list[str]:
    """What training needs of Smalti's own requirements; the rooms come with the snapshot."""
    from packaging.requirements import Requirement

    found = []
    for line in requires("smalti") or ():
        need = Requirement(line)
        if need.name == "smalti" or not (need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *_EXTRAS))):
            continue
        extras = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
        found.append(f"{need.name}{extras}{need.specifier}")
    return found
