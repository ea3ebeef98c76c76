"""A run that classifies text: its data, its baseline, its plots, and its registered form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data import check_split, read_labelled, sample
from finetune.metrics import metrics
from finetune.problems import warnings_of
from finetune.publish import evaluation_lines
from finetune.recipe import ClassifyRecipe, find

if TYPE_CHECKING:
    from finetune.loop import Emit
    from finetune.publish import Registered
    from finetune.schema import EncoderRecipe
    from finetune.tasks.encoder import EncoderTask

SCORE = "macro_recall"
"""What decides which model is the better one."""


class ClassifyJob:
    """Reads and checks the rows when it is made.

    Raises
    ------
    DataError: they cannot be trained on.
    """

    def __init__(self, recipe: EncoderRecipe) -> None:
        from finetune.train import sha256

        self.recipe = recipe
        columns: dict[str, Any] = {"text": recipe.data.text_column, "label": recipe.data.label_column}
        columns |= {"labels": recipe.labels, "ignore": recipe.data.ignore_columns}
        file = find(recipe.data.train)
        data = read_labelled(file, **columns)
        self.rows, self.evaluation = sample(data.rows, recipe.data.max_rows, recipe.seed), ()
        self.warnings, self.hashes = warnings_of(data.warnings), {"data_sha256": sha256(file)}
        if recipe.data.eval is not None:
            eval_file = find(recipe.data.eval)
            judged = read_labelled(eval_file, **columns)
            check_split(data, file, judged, eval_file, recipe.data.text_column)
            self.evaluation, self.hashes["eval_sha256"] = judged.rows, sha256(eval_file)
            self.warnings += warnings_of(judged.warnings)
        self.labels = tuple(sorted({row.label for row in self.rows}))
        self.facts = {"rows": len(self.rows), "evaluation_rows": len(self.evaluation), "labels": list(self.labels)}

    def task(self, base: Path, device: str) -> EncoderTask:
        from finetune.tasks.encoder import EncoderTask

        return EncoderTask(self.recipe, base, self.rows, self.evaluation, device)

    def shapes(self, recipe: EncoderRecipe, base: Path) -> EncoderTask:
        """The task without weights, for a recipe that may differ in its sizes."""
        from finetune.tasks.encoder import EncoderTask

        return EncoderTask(recipe, base, self.rows, (), "meta")

    def judge(self, task: EncoderTask, emit: Emit) -> dict[str, Any]:
        """The trained model's evaluation and, on the same rows, that of TF-IDF with logistic regression."""
        if not self.evaluation:
            return {"metrics": {}, "baseline": {}}
        found = task.result()
        emit("baseline", rows=len(self.rows))
        return {**found, "baseline_name": "TF-IDF baseline", "baseline": metrics(self._baseline(), task.truth)}

    def _baseline(self) -> np.ndarray:
        import torch

        from finetune.tasks.classify import baseline

        number = {label: i for i, label in enumerate(self.labels)}
        y = np.array([number[row.label] for row in self.rows])
        balance = "balanced" if self.recipe.class_balance else "none"  # told to aim at what the model aims at
        settings = ClassifyRecipe(name="baseline", data=self.recipe.data, folds=3, class_weight=balance, seed=self.recipe.seed)
        texts, judged = ([row.text for row in rows] for rows in (self.rows, self.evaluation))
        return baseline(texts, y, judged, settings, None, torch.get_num_threads())  # what training took is free now

    def artifacts(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Files for MLflow's run: the confusion matrix, and a picture of it beside the reliability."""
        if not self.evaluation:
            return {}
        from finetune.plots import draw_confusion, draw_reliability, panels

        figure, (left, right) = panels(2)
        draw_confusion(left, result["labels"], result["confusion"])
        draw_reliability(right, result["reliability"], result["metrics"]["ece"])
        return {"evaluation.png": figure, "confusion.json": {key: result[key] for key in ("labels", "confusion")}}

    def register(self, task: EncoderTask, folder: Path, facts: Mapping[str, Any], result: Mapping[str, Any]) -> Registered:
        """Export and register; the alias moves if this model is better than the champion on the same rows."""
        import pandas as pd
        from mlflow.types.schema import ColSpec, DataType, Schema

        from finetune.publish import labels_facts, labels_signature, register_text_model

        assert self.recipe.register_to is not None
        score, column = result["metrics"].get(SCORE), self.recipe.data.text_column
        metrics = {key: round(value, 4) for key, value in result["metrics"].items()}
        return register_text_model(
            task.export(folder),
            self.recipe.register_to,
            signature=labels_signature(Schema([ColSpec(DataType.string, column)]), self.labels),
            example=pd.DataFrame({column: [row.text for row in self.rows[:2]]}),
            facts={**facts, **metrics, **labels_facts(self.labels)},
            card=self._card(facts, result),
            score=score,
            judge=self._judge_incumbent if score is not None else None,
            margin=self.recipe.promote_margin,
        )

    def _judge_incumbent(self, incumbent: Any) -> float:
        """The macro-recall of a registered version on this run's evaluation rows."""
        import pandas as pd

        from finetune.publish import macro_recall

        texts = pd.DataFrame({self.recipe.data.text_column: [row.text for row in self.evaluation]})
        return macro_recall(incumbent, self.evaluation, lambda model: texts)

    def _card(self, facts: Mapping[str, Any], result: Mapping[str, Any]) -> str:
        recipe = self.recipe
        lines = [f"# {recipe.register_to or recipe.name}", "", f"Text to one of: {', '.join(self.labels)}.", "", "## Data", ""]
        counts = {label: sum(row.label == label for row in self.rows) for label in self.labels}
        lines += [f"{len(self.rows)} rows of `{recipe.data.train.name}` (SHA-256 {facts['data_sha256'][:16]}…): {counts}."]
        lines += ["", *evaluation_lines(recipe, result, len(self.evaluation))]
        lines += [
            "",
            "## Limits",
            "",
            f"It reads the first {recipe.max_length} tokens. Trained from {recipe.base_model} by the recipe in",
        ]
        lines += ["`recipe.json`; it knows the languages and the kinds of text of its data, and no others."]
        return "\n".join(lines) + "\n"
