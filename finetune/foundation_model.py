"""Runs from Python, in the words of Databricks' Foundation Model Fine-tuning: `create`, `get`, `list`, `cancel`, `get_events`.

    from finetune import foundation_model as fm
    run = fm.create(model="models/llama", train_data_path="chats.jsonl", register_to="main.default.support",
                    task_type="CHAT_COMPLETION", training_duration="3ep")

Source: https://docs.databricks.com/aws/en/large-language-models/foundation-model-training/create-fine-tune-run

Runs are those of the state folder, `SMALTI_HOME` or `.smalti`, as the command line shows them. `method` is this house's own.
"""

from __future__ import annotations

import builtins
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.recipe import RecipeError, load_recipe
from finetune.runs import ACTIVE, Runs, TrainingRun
from finetune.schema import TrainedRecipe

TASKS = {"CHAT_COMPLETION": "sft-chat", "INSTRUCTION_FINETUNE": "sft-instruct", "CONTINUED_PRETRAIN": "cpt"}


def create(
    model: str,
    train_data_path: str,
    register_to: str | None = None,
    *,
    experiment_path: str | None = None,
    task_type: str = "CHAT_COMPLETION",
    eval_data_path: str | None = None,
    eval_prompts: str | Sequence[str] | None = None,
    custom_weights_path: str | None = None,
    training_duration: str = "1ep",
    learning_rate: float | str = 5e-7,
    context_length: int | None = None,
    data_prep_cluster_id: str | None = None,
    method: str = "full",
    **keys: Any,
) -> TrainingRun:
    """Begin a run, and return at once.

    Parameters
    ----------
    model: a folder as `save_pretrained` writes it, or a name on the Hugging Face hub.
    train_data_path, eval_data_path: files, in the formats of `docs/finetuning.md`.
    register_to: `catalog.schema`, which takes the model's own name, or `catalog.schema.model`.
    experiment_path: its last part is the MLflow experiment; default: the registered name.
    task_type: CHAT_COMPLETION, INSTRUCTION_FINETUNE or CONTINUED_PRETRAIN.
    custom_weights_path: a folder to start from in the model's place.
    training_duration: `3ep`, `200ba`, `10Mtok`, or a number of epochs.
    data_prep_cluster_id: taken and not needed; there is no cluster here.
    method: full, lora or dora.
    keys: further keys of the recipe.

    Raises
    ------
    RecipeError: it cannot be run; the message says why.
    """
    from finetune.launch import check

    if task_type not in TASKS:
        raise RecipeError(f"task_type: {task_type!r} is not one of {', '.join(TASKS)}.")
    own = re.sub(r"[^A-Za-z0-9_]+", "_", Path(model).name).strip("_").lower() or "model"
    if register_to is not None and register_to.count(".") == 1:
        register_to = f"{register_to}.{own}"
    name = Path(experiment_path).name if experiment_path else (register_to or own).rpartition(".")[2]
    given: dict[str, Any] = {"task": TASKS[task_type], "method": method, "name": name, "register_to": register_to, **keys}
    given |= {"base_model": custom_weights_path or model, "data": {"train": train_data_path, "eval": eval_data_path}}
    given["training_duration"] = f"{training_duration}ep" if str(training_duration).isdigit() else training_duration
    given |= {
        "learning_rate": learning_rate,
        "eval_prompts": (eval_prompts,) if isinstance(eval_prompts, str) else eval_prompts or (),
    }
    recipe = load_recipe(given | ({"context_length": context_length} if context_length else {}))
    assert isinstance(recipe, TrainedRecipe)
    check(recipe)
    run = _runs().create(recipe, tracking_uri=_tracking_uri(), created_by="python")
    run.start()
    return run


def get(training_run: str | TrainingRun) -> TrainingRun:
    """A run by its id or name.

    Raises
    ------
    RunError: there is none.
    """
    return training_run if isinstance(training_run, TrainingRun) else _runs().get(training_run)


def list(training_runs: Sequence[str | TrainingRun] | None = None, *, limit: int | None = 50) -> builtins.list[TrainingRun]:
    """The runs, the newest first; or those that are named."""
    return _runs().list()[:limit] if training_runs is None else [get(run) for run in training_runs]


def cancel(training_runs: str | TrainingRun | Sequence[str | TrainingRun]) -> int:
    """Ask runs to end after their step; those that have ended are passed over. Returns how many were asked."""
    several = [training_runs] if isinstance(training_runs, (str, TrainingRun)) else training_runs
    going = [run for run in map(get, several) if run.state()["status"] in ACTIVE]
    for run in going:
        run.cancel()
    return len(going)


def get_events(training_run: str | TrainingRun, *, follow: bool = False) -> builtins.list[dict[str, Any]]:
    """What a run told; `follow` waits for its end."""
    return builtins.list(get(training_run).events(follow=follow))


def _tracking_uri() -> str:
    """Where a server that is configured by the environment as this process is keeps its models and runs."""
    url = os.environ.get("SMALTI_MLFLOW_URL")
    if url and "@" in url:
        raise RecipeError("Put the credentials of SMALTI_MLFLOW_URL into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.")
    return url or f"sqlite:///{_home() / 'mlflow.db'}"


def _home() -> Path:
    return Path(os.environ.get("SMALTI_HOME", ".smalti")).resolve()


def _runs() -> Runs:
    home = _home()
    home.mkdir(parents=True, exist_ok=True)
    return Runs(home / "finetune")
