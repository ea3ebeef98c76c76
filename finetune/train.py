"""A recipe, run: data checked, model trained and judged, everything in MLflow, and, where the recipe says so, registered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from finetune.data import check_split, read_labelled, sample, scarce
from finetune.plots import draw_confusion, draw_reliability, panels
from finetune.problems import DataError, warnings_of
from finetune.publish import ALIAS, Registered, macro_recall, quiet, register, sign
from finetune.recipe import ClassifyRecipe, Recipe, RecipeError, find
from finetune.tasks.classify import Embed, Progress, Result, fit

SCORE = "macro_recall"

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

    from finetune.data import Row


@dataclass(frozen=True)
class Run:
    """What a run gave: its result, where MLflow has it, what was registered, and warnings about the data."""

    result: Result
    run_id: str
    experiment_id: str
    registered: Registered | None
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values for machines."""
        result = self.result
        return {
            "run_id": self.run_id,
            "experiment_id": self.experiment_id,
            "registered": asdict(self.registered) if self.registered else None,
            "judged_on": result.judged_on,
            "metrics": dict(result.metrics),
            "baseline": dict(result.baseline),
            "calibration": dict(result.calibration),
            "labels": list(result.classifier.labels),
            "confusion": [list(row) for row in result.confusion],
            "C": result.C,
            "temperature": result.classifier.temperature,
            "rows": result.rows,
            "converged": result.converged,
            "seconds": round(result.seconds, 2),
            "warnings": list(self.warnings),
        }

    def summary(self) -> str:
        """A few lines for people."""
        result, width = self.result, max(map(len, self.result.metrics))
        lines = [f"{result.rows} rows, {len(result.classifier.labels)} labels, judged on: {result.judged_on}"]
        lines.append(f"{'':{width}}   this model   TF-IDF baseline")
        lines += [f"{name:{width}} {value:12.3f} {result.baseline[name]:17.3f}" for name, value in result.metrics.items()]
        if self.registered:
            done = self.registered
            alias = f"alias {ALIAS}" if done.champion else "not promoted"
            lines.append(f"registered as {done.name} version {done.version}, {alias}: {done.reason}")
        return "\n".join([*lines, f"MLflow run {self.run_id}", *(f"warning: {warning}" for warning in self.warnings)])


def run(
    recipe: ClassifyRecipe,
    embed: Embed,
    tracking_uri: str,
    progress: Progress | None = None,
    *,
    encoder: str = "",
    artifact_location: str | None = None,
) -> Run:
    """Run a recipe and log it.

    Parameters
    ----------
    recipe: from `load_recipe`.
    embed: the recipe's encoder.
    tracking_uri: MLflow's, such as a running server's address (its key goes in MLFLOW_TRACKING_TOKEN).
    progress: told of each stage.
    encoder: fingerprint of the encoder, kept with the model.
    artifact_location: where a new experiment's artifacts lie; by default the server says so, and for an SQLite database it is
        the folder `mlartifacts` beside it.

    Raises
    ------
    DataError: the data cannot be trained on; nothing was logged.
    RecipeError: the experiment's artifacts can only be reached through its server, and `tracking_uri` is a database.
    """
    columns: dict[str, Any] = {"text": recipe.data.text_column, "label": recipe.data.label_column}
    columns |= {"labels": recipe.labels, "ignore": recipe.data.ignore_columns}
    train_file = find(recipe.data.train)
    data = read_labelled(train_file, **columns)
    rows, evaluation, warnings = sample(data.rows, recipe.data.max_rows, recipe.seed), (), warnings_of(data.warnings)
    if few := scarce(train_file, recipe.data.label_column, rows):
        raise DataError(few)
    hashes = {"data_sha256": sha256(train_file)}
    if recipe.data.eval is not None:
        eval_file = find(recipe.data.eval)
        judged = read_labelled(eval_file, **columns)
        check_split(data, train_file, judged, eval_file, recipe.data.text_column)
        evaluation, hashes["eval_sha256"] = judged.rows, sha256(eval_file)
        warnings += warnings_of(judged.warnings)
    facts = {**hashes, "encoder": recipe.encoder, "encoder_fingerprint": encoder, "task": recipe.task}
    result = fit(rows, embed, recipe, evaluation=evaluation, progress=progress, metadata=facts)

    with quiet():
        import mlflow

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(tracking_uri)
        try:
            with alone(tracking_uri):
                client = mlflow.MlflowClient()
                number = experiment(client, recipe.name, tracking_uri, artifact_location)
            with mlflow.start_run(experiment_id=number, run_name=recipe.name) as active:
                _log(recipe, result, facts, warnings)
                registered = _register(recipe, result, hashes["data_sha256"], evaluation, embed) if recipe.register_to else None
        finally:
            mlflow.set_tracking_uri(before)
    return Run(result, active.info.run_id, number, registered, tuple(warnings))


def _register(recipe: ClassifyRecipe, result: Result, data: str, evaluation: Sequence[Row], embed: Embed) -> Registered:
    """Register; the alias moves if this model is better than the champion on the same rows."""
    assert recipe.register_to is not None

    def judge(incumbent: Any) -> float:
        if evaluation:
            return macro_recall(incumbent, evaluation, lambda model: _input(model, [row.text for row in evaluation], embed))
        if (incumbent.tags.get("data_sha256"), incumbent.tags.get("judged_on")) != (data, result.judged_on):
            raise LookupError("it was judged on other rows. Name data.eval, on which both can be judged.")
        return float(incumbent.tags[SCORE])

    scores = {"judged_on": result.judged_on, **{k: round(v, 4) for k, v in result.metrics.items()}}
    made = register(
        result.classifier,
        recipe.register_to,
        metadata=scores,
        score=scores[SCORE],
        judge=judge,
        margin=recipe.promote_margin,
    )
    return sign(made)


def _input(model: Any, texts: Sequence[str], embed: Embed) -> Any:
    """What a registered version takes: embeddings, or texts."""
    import pandas as pd

    if (schema := model.metadata.get_input_schema()) is None:
        raise LookupError("it has no signature.")
    return embed(texts) if schema.is_tensor_spec() else pd.DataFrame({schema.input_names()[0]: texts})


def alone(uri: str) -> AbstractContextManager[Any]:
    """A lock for the first look into an SQLite database, by which MLflow's client makes its tables: two at once break them. The
    server and all runs take it."""
    database = uri.removeprefix("sqlite:///")
    if database == uri:
        return nullcontext()
    Path(database).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{database}.lock")


def experiment(client: MlflowClient, name: str, tracking_uri: str, artifact_location: str | None) -> str:
    """The id of MLflow's experiment, made when it is not there.

    Raises
    ------
    RecipeError: its artifacts can only be reached through its server, and `tracking_uri` is a database.
    """
    if tracking_uri.startswith("databricks"):  # names there are paths of the workspace; a job is given its experiment
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = f"/Shared/{name}"
    database = tracking_uri.removeprefix("sqlite:///") if tracking_uri.startswith("sqlite:///") else None
    if (found := client.get_experiment_by_name(name)) is None:
        if artifact_location is None and database:
            artifact_location = (Path(database).resolve().parent / "mlartifacts" / name).as_uri()
        return client.create_experiment(name, artifact_location)
    if database and found.artifact_location.startswith("mlflow-artifacts:"):
        raise RecipeError(
            f"The experiment {name!r} keeps its artifacts behind the tracking server: start the server and give its address, "
            f"or give the recipe another name (name=…)."
        )
    return found.experiment_id


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flat(recipe: Recipe) -> dict[str, Any]:
    """A recipe's values by dotted keys, as MLflow's parameters."""
    settings = json.loads(recipe.model_dump_json())
    values = {**{k: v for k, v in settings.items() if k != "data"}, **{f"data.{k}": v for k, v in settings["data"].items()}}
    return {key: value for key, value in values.items() if value is not None}


def _log(recipe: ClassifyRecipe, result: Result, facts: Mapping[str, str], warnings: list[str]) -> None:
    import mlflow

    settings = json.loads(recipe.model_dump_json())
    mlflow.log_params(flat(recipe))
    mlflow.log_params({"rows": result.rows, "chosen_C": result.C, "temperature": round(result.classifier.temperature, 4)})
    mlflow.set_tags({**facts, "judged_on": result.judged_on, "converged": str(result.converged).lower()})
    mlflow.log_metrics({**result.metrics, **{f"baseline_{k}": v for k, v in result.baseline.items()}})
    mlflow.log_metrics({**{f"cv_{k}": v for k, v in result.calibration.items()}, "seconds": result.seconds})
    for step, (_, loss) in enumerate(result.curve):
        mlflow.log_metric("cv_log_loss", loss, step=step)
    mlflow.log_dict(settings, "recipe.json")
    mlflow.log_dict(
        {"labels": list(result.classifier.labels), "confusion": [list(row) for row in result.confusion]}, "confusion.json"
    )
    if warnings:
        mlflow.log_text("\n".join(warnings), "data_warnings.txt")
    mlflow.log_figure(_plots(result), "evaluation.png")


def _plots(result: Result) -> Figure:
    """Confusion matrix, reliability and the choice of C."""
    figure, (left, middle, right) = panels(3)
    draw_confusion(left, result.classifier.labels, result.confusion)
    draw_reliability(middle, result.reliability, result.metrics["ece"])
    right.semilogx([C for C, _ in result.curve], [loss for _, loss in result.curve], marker="o")
    right.set(title="Choice of C", xlabel="C", ylabel="cross-validated log-loss")
    return figure
