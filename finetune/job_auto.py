"""A run of `model: auto`: FLAML searches kinds of models and their settings for a budget of time.

Source: https://microsoft.github.io/FLAML/docs/Use-Cases/Task-Oriented-AutoML
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune import tables
from finetune.data import DataError, sample
from finetune.metrics import log_loss, metrics, reliability
from finetune.problems import warnings_of
from finetune.publish import Registered, evaluation_lines, labels_facts, labels_signature, quiet, register_code, sign
from finetune.recipe import find

if TYPE_CHECKING:
    from finetune.runs import TrainingRun
    from finetune.schema import AutoRecipe

SCORE = "macro_recall"
TOLD_EVERY = 1.0
"""Seconds between two events while it searches."""
_CODE = Path(__file__).with_name("text_model.py")
_PACKAGES = {"lightgbm": "lightgbm", "xgboost": "xgboost-cpu"}


def execute_auto(run: TrainingRun, recipe: AutoRecipe) -> dict[str, Any]:
    """Do all of a run. One that was ended before its search was over searches anew.

    Raises
    ------
    DataError: the rows cannot be trained on. Canceled: asked to end.
    """
    from finetune.tracker import Tracker

    began = time.perf_counter()
    job = AutoJob(recipe, run.folder / "model")
    run.emit("validated", **job.facts, warnings=len(job.warnings))
    facts = {**job.hashes, "recipe_task": recipe.task, "method": recipe.method}
    with quiet():
        tracker = Tracker(run, job, facts)
    status = "FAILED"
    try:
        tracker.emit("started", **job.facts)
        job.fit(tracker.emit, run.canceled, run.spec["threads"])
        result = {**job.judge(), "training_seconds": round(time.perf_counter() - began, 2), "warnings": job.warnings}
        with quiet():
            tracker.log(result, job.artifacts(result))
            if recipe.register_to:
                run.emit("registering", name=recipe.register_to)
                made = job.register(facts, result)
                result["registered"] = dataclasses.asdict(sign(made, run.spec["created_by"]))
        status = "FINISHED"
    finally:
        with quiet():
            tracker.end("KILLED" if run.canceled() else status)
    return {**result, "seconds": round(time.perf_counter() - began, 2), "mlflow_run_id": tracker.run_id}


class AutoJob:
    """Reads and checks the rows when it is made.

    Parameters
    ----------
    folder: gets what is registered.

    Raises
    ------
    DataError: they cannot be trained on.
    """

    def __init__(self, recipe: AutoRecipe, folder: Path) -> None:
        from finetune.train import sha256

        self.recipe, self.folder = recipe, folder
        data, file = recipe.data, find(recipe.data.train)
        table: Any
        judged: Any
        table, warnings = tables.read(file, data)
        table = table.loc[sample(list(table.index), data.max_rows, recipe.seed)]
        self.hashes = {"data_sha256": sha256(file)}
        if data.eval is not None:
            held_out = find(data.eval)
            judged, more = tables.read(held_out, data)
            if wrong := list(tables.split_problems(table, file, judged, held_out, data)):
                raise DataError(wrong)
            self.hashes["eval_sha256"], warnings = sha256(held_out), [*warnings, *more]
        else:
            table, judged = tables.held_out_of(table, recipe, file)
        self.table: Any = table
        self.judged: Any = judged
        self.warnings = warnings_of(warnings)
        self.labels = tuple(sorted(set(table[data.label_column])))
        number = {label: i for i, label in enumerate(self.labels)}
        self.y, self.truth = (np.array([number[label] for label in each[data.label_column]]) for each in (table, judged))
        self.numbers, self.kinds = tables.columns_of(table, data)
        self.facts = {"rows": len(table), "evaluation_rows": len(judged), "labels": list(self.labels)}
        self.facts |= {"columns": len(self.numbers) + len(self.kinds)}
        self.about: dict[str, Any] = {"kind": "auto", "labels": self.labels, "columns": [*self.numbers, *self.kinds]}
        self.about["text_column"] = data.text_column
        self._fitted: dict[str, Any] = {}
        self._run: Any = None
        self.trials = 0

    def fit(self, emit: Any, canceled: Any, threads: int) -> None:
        """Search. Raises `Canceled`."""
        from flaml.automl.automl import AutoML

        recipe = self.recipe
        if recipe.data.text_column:
            self._run = self._encoder()
        if self.about["columns"]:
            self._fitted["columns_pipeline"] = tables.numbers_of(self.numbers, self.kinds).fit(self.table[self.about["columns"]])
        self._matrix = self._read(self.table)
        found = AutoML()
        with quiet():
            found.fit(
                self._matrix,
                self.y,
                task="classification",
                time_budget=recipe.time_budget,
                max_iter=recipe.max_trials or 1_000_000,
                estimator_list=list(recipe.estimators),
                metric=self._metric(emit, canceled),
                eval_method="cv",
                n_splits=min(recipe.folds, int(np.bincount(self.y).min())),
                n_jobs=threads,
                seed=recipe.seed,
                verbose=0,
                mlflow_logging=False,
            )
        self.estimator, self.config = str(found.best_estimator), dict(found.best_config or {})
        self._fitted["estimator"] = found.model.estimator  # type: ignore[union-attr]

    def _metric(self, emit: Any, canceled: Any) -> Any:
        """What FLAML makes smaller, on the rows of a fold that were held out; asked so often that it also tells, and ends."""
        from finetune.loop import Canceled

        best, told = float("inf"), time.monotonic()

        def measure(X: Any, y: Any, estimator: Any, labels: Any, *more: Any, **config: Any) -> tuple[float, dict[str, float]]:
            nonlocal best, told
            if canceled():
                raise Canceled(f"canceled after {self.trials} models")
            p = np.asarray(estimator.predict_proba(X), float)
            y = np.asarray(y, int)
            lost = log_loss(p, y) if self.recipe.metric == "log_loss" else 1 - metrics(p, y)[SCORE]
            self.trials, best = self.trials + 1, min(best, lost)
            if time.monotonic() - told > TOLD_EVERY or self.trials == 1:
                told = time.monotonic()
                emit("trial", step=self.trials, loss=lost, best=best)
            return lost, {}

        return measure

    def _encoder(self) -> Any:
        """The base model as ONNX, beside what else is registered."""
        from finetune.base_model import locate
        from finetune.recipe import load_recipe
        from finetune.schema import ReadingRecipe
        from finetune.tasks.network import Reading
        from finetune.text_model import Runner

        recipe = self.recipe
        given = {"task": "embed", "name": recipe.name, "base_model": recipe.base_model, "max_length": recipe.max_length}
        wanted = load_recipe({**given, "data": {"train": str(recipe.data.train)}, "dropout": 0})
        assert isinstance(wanted, ReadingRecipe)
        reading = Reading(wanted, locate(recipe.base_model), "vector")
        reading.pairs = False
        reading.export(self.folder)
        return Runner(str(self.folder / "model.onnx"), str(self.folder / "tokenizer.json"))

    def _read(self, table: Any) -> np.ndarray:
        """Rows as a matrix: columns first, then the text's vectors."""
        parts = []
        if self.about["columns"]:
            parts.append(self._fitted["columns_pipeline"].transform(table[self.about["columns"]]))
        if self._run is not None:
            texts = [str(text) for text in table[self.recipe.data.text_column]]
            parts.append(np.array(self._run(self._run.tokenizer.encode_batch(texts)), np.float32))
        return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)

    def judge(self) -> dict[str, Any]:
        """The evaluation, and on the same rows that of logistic regression: on the same columns, or on the text's words."""
        matrix = self._read(self.judged)
        found = np.asarray(self._fitted["estimator"].predict_proba(matrix), float)
        confusion = np.zeros((len(self.labels), len(self.labels)), int)
        np.add.at(confusion, (self.truth, found.argmax(1)), 1)
        name, base = self._baseline(matrix)
        told = {"metrics": metrics(found, self.truth), "baseline": metrics(base, self.truth), "baseline_name": name}
        told |= {"steps": self.trials, "estimator": self.estimator, "config": {k: str(v) for k, v in self.config.items()}}
        return told | {
            "confusion": confusion.tolist(),
            "labels": list(self.labels),
            "reliability": reliability(found, self.truth),
        }

    def _baseline(self, matrix: np.ndarray) -> tuple[str, np.ndarray]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if self.recipe.data.text_column and not self.about["columns"]:
            from finetune.recipe import ClassifyRecipe
            from finetune.schema import DataRecipe
            from finetune.tasks.classify import baseline

            settings = ClassifyRecipe(name="baseline", data=DataRecipe(train=self.recipe.data.train), folds=3)
            column = self.recipe.data.text_column
            given: Sequence[Any] = [[str(text) for text in table[column]] for table in (self.table, self.judged)]
            return "TF-IDF baseline", baseline(given[0], self.y, given[1], settings, None)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(self._matrix, self.y)
        return "logistic", np.asarray(model.predict_proba(matrix), float)

    def artifacts(self, result: Mapping[str, Any]) -> dict[str, Any]:
        from finetune.plots import draw_confusion, draw_reliability, panels

        figure, (left, right) = panels(2)
        draw_confusion(left, result["labels"], result["confusion"])
        draw_reliability(right, result["reliability"], result["metrics"]["ece"])
        return {"evaluation.png": figure, "best_config.json": {"estimator": result["estimator"], **result["config"]}}

    def register(self, facts: Mapping[str, Any], result: Mapping[str, Any]) -> Registered:
        """Register; the alias moves if this model is better than the champion on the same rows."""
        import joblib
        from mlflow.models import infer_signature

        assert self.recipe.register_to is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        joblib.dump(self._fitted, self.folder / "fitted.joblib")
        (self.folder / "model.json").write_text(json.dumps(self.about), encoding="utf-8")
        files = {"about": "model.json", "fitted": "fitted.joblib"}
        packages = ["mlflow", "numpy", "pandas", "scikit-learn", "joblib"]
        if self._run is not None:
            files |= {"model": "model.onnx", "tokenizer": "tokenizer.json"}
            packages += ["onnxruntime", "tokenizers"]
        if needed := _PACKAGES.get(type(self._fitted["estimator"]).__module__.partition(".")[0]):
            packages.append(needed)
        text = [self.recipe.data.text_column] if self.recipe.data.text_column else []
        rows = self.table[[*self.about["columns"], *text]]
        rows = rows.astype(dict.fromkeys(self.numbers, float))  # what is whole now may have gaps later
        return register_code(
            _CODE,
            self.folder,
            self.recipe.register_to,
            files,
            packages,
            labels_signature(infer_signature(rows).inputs, self.labels),
            rows.head(2),
            {**facts, **labels_facts(self.labels), "estimator": self.estimator}
            | {key: round(value, 4) for key, value in result["metrics"].items()},
            self._card(facts, result),
            score=result["metrics"][SCORE],
            judge=lambda incumbent: self._judge_incumbent(incumbent, [*self.about["columns"], *text]),
            margin=self.recipe.promote_margin,
        )

    def _judge_incumbent(self, incumbent: Any, columns: Sequence[str]) -> float:
        import mlflow

        model = mlflow.pyfunc.load_model(f"models:/{incumbent.name}/{incumbent.version}")
        rows = self.judged[list(columns)].astype(dict.fromkeys(self.numbers, float))
        said, true = np.array(model.predict(rows)["label"]), np.array(self.labels)[self.truth]
        return float(np.mean([(said[true == label] == label).mean() for label in sorted(set(true))]))

    def _card(self, facts: Mapping[str, Any], result: Mapping[str, Any]) -> str:
        recipe = self.recipe
        lines = [f"# {recipe.register_to or recipe.name}", "", f"Rows to one of: {', '.join(self.labels)}.", "", "## Data", ""]
        lines += [f"{len(self.table)} rows of `{recipe.data.train.name}` (SHA-256 {facts['data_sha256'][:16]}…).", ""]
        lines += [*evaluation_lines(recipe, result, len(self.judged)), "", "## Limits", ""]
        lines += [f"A {self.estimator} found among {self.trials} models by the recipe in `recipe.json`. It knows the columns and"]
        return "\n".join([*lines, "the values of its data, and no others."]) + "\n"
