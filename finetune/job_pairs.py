"""Runs that train encoders of pairs of texts: embedding models, rerankers, readers; data, baselines, registered forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune import pairs
from finetune.data import DataError, sample
from finetune.problems import warnings_of
from finetune.publish import evaluation_lines
from finetune.recipe import find
from finetune.schema import EmbedRecipe, ReaderRecipe, RerankRecipe

if TYPE_CHECKING:
    from finetune.loop import Emit
    from finetune.publish import Registered

LIMITS = {
    "embed": "Vectors of one version are not to be compared with those of another: an index that uses it is embedded anew.",
    "rerank": "Its numbers put texts in order for one question; they are no probabilities, and not comparable between questions.",
    "reader": "It copies words; it does not reason, add up, or answer what several texts say together.",
}


class PairsJob:
    """Reads and checks the rows when it is made.

    Raises
    ------
    DataError: they cannot be trained on.
    """

    def __init__(self, recipe: EmbedRecipe | RerankRecipe | ReaderRecipe) -> None:
        from finetune.train import sha256

        self.recipe = recipe
        file, loss = find(recipe.data.train), getattr(recipe, "loss", "")
        rows, warnings = pairs.read(recipe.task, file, recipe.data, loss=loss)
        self.rows: list[Any] = sample(rows, recipe.data.max_rows, recipe.seed)
        self.evaluation: list[Any] = []
        self.hashes = {"data_sha256": sha256(file)}
        if recipe.data.eval is not None:
            held_out = find(recipe.data.eval)
            self.evaluation, more = pairs.read(recipe.task, held_out, recipe.data)
            if leaking := pairs.leaks(rows, file, self.evaluation, held_out):
                raise DataError(leaking)
            self.hashes["eval_sha256"], warnings = sha256(held_out), [*warnings, *more]
        self.warnings = warnings_of(warnings)
        self.facts = {"rows": len(self.rows), "evaluation_rows": len(self.evaluation)}
        self._before: Mapping[str, float] = {}

    def task(self, base: Path, device: str) -> Any:
        found = self._made(self.recipe, base, self.evaluation, device)
        if isinstance(self.recipe, EmbedRecipe):  # the base model's own, whatever checkpoint is gone on from
            self._before = {key: value for key, value in found.evaluate().items() if key != "score"}
        return found

    def shapes(self, recipe: Any, base: Path) -> Any:
        """The task without weights, for a recipe that may differ in its sizes."""
        return self._made(recipe, base, [], "meta")

    def _made(self, recipe: Any, base: Path, evaluation: Sequence[Any], device: str) -> Any:
        if recipe.task == "embed":
            from finetune.tasks.embed import EmbedTask as Task
        elif recipe.task == "rerank":
            from finetune.tasks.rerank import RerankTask as Task
        else:
            from finetune.tasks.reader import ReaderTask as Task
        return Task(recipe, base, self.rows, evaluation, device)

    def judge(self, task: Any, emit: Emit) -> dict[str, Any]:
        """The trained model's evaluation, and on the same rows that of what needs no training."""
        metrics = {key: value for key, value in task.evaluate().items() if key != "score"}
        if not metrics:
            return {"metrics": {}, "baseline": {}}
        emit("baseline", rows=len(self.evaluation))
        if self.recipe.task == "embed":
            return {"metrics": metrics, "baseline": dict(self._before), "baseline_name": "base model"}
        if self.recipe.task == "rerank":
            from finetune.tasks.rerank import by_words

            return {"metrics": metrics, "baseline": by_words(task.candidates), "baseline_name": "TF-IDF order"}
        from finetune.tasks.reader import by_words as sentences

        return {"metrics": metrics, "baseline": sentences(self.evaluation), "baseline_name": "best sentence"}

    def artifacts(self, result: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def register(self, task: Any, folder: Path, facts: Mapping[str, Any], result: Mapping[str, Any]) -> Registered:
        """Export and register; the alias moves if this model is better than the champion on the same rows."""
        from finetune.publish import register_text_model

        assert self.recipe.register_to is not None
        score = next(iter(result["metrics"].values()), None)
        signature, example = self._signature(int(task.model.encoder.config.hidden_size))
        about = {"task": "llm/v1/embeddings"} if self.recipe.task == "embed" else {}
        return register_text_model(
            task.export(folder),
            self.recipe.register_to,
            signature=signature,
            example=example,
            facts={**facts, **about, **{key: round(value, 4) for key, value in result["metrics"].items()}},
            card=self._card(facts, result),
            score=score,
            judge=(lambda incumbent: self._judge_incumbent(incumbent, task)) if score is not None else None,
            margin=self.recipe.promote_margin,
        )

    def _signature(self, dimension: int) -> tuple[Any, Any]:
        import pandas as pd
        from mlflow.models import ModelSignature
        from mlflow.types.schema import ColSpec, Schema, TensorSpec
        from mlflow.types.schema import DataType as T

        def text(*names: str) -> Any:
            return Schema([ColSpec(T.string, name) for name in names])

        first = self.rows[0]
        if self.recipe.task == "embed":
            vectors = Schema([TensorSpec(np.dtype(np.float32), (-1, dimension))])
            return ModelSignature(text("input"), vectors), pd.DataFrame({"input": [first.query]})
        if self.recipe.task == "rerank":
            numbers = Schema([TensorSpec(np.dtype(np.float64), (-1,))])
            return ModelSignature(text("query", "document"), numbers), pd.DataFrame(
                {"query": [first.query], "document": [first.positive]}
            )
        found: list[Any] = [ColSpec(T.string, "answer"), ColSpec(T.double, "score")]
        found += [ColSpec(T.long, "start"), ColSpec(T.long, "end")]
        given = pd.DataFrame({"question": [first.question], "context": [first.context]})
        return ModelSignature(text("question", "context"), Schema(found)), given

    def _judge_incumbent(self, incumbent: Any, task: Any) -> float:
        """What a registered version scores on this run's evaluation rows."""
        import mlflow
        import pandas as pd

        model = mlflow.pyfunc.load_model(f"models:/{incumbent.name}/{incumbent.version}")

        def embed(texts: Sequence[str]) -> np.ndarray:
            return np.array([row["embedding"] for row in model.predict(pd.DataFrame({"input": list(texts)}))["data"]])

        def asked(columns: tuple[str, str], given: Sequence[tuple[str, str]]) -> Any:
            return model.predict(pd.DataFrame(list(given), columns=list(columns)))

        if self.recipe.task == "embed":
            from finetune.tasks.embed import judged as embedded

            found = embedded(self.evaluation, embed)
        elif self.recipe.task == "rerank":
            from finetune.tasks.rerank import judged as reranked

            found = reranked(task.candidates, lambda given: np.asarray(asked(("query", "document"), given)))
        else:
            from finetune.tasks.reader import judged as read

            found = read(self.evaluation, lambda given: asked(("question", "context"), given)["answer"].tolist())
        return next(iter(found.values()))

    def _card(self, facts: Mapping[str, Any], result: Mapping[str, Any]) -> str:
        recipe = self.recipe
        lines = [f"# {recipe.register_to or recipe.name}", "", f"{type(self.recipe).__doc__}".strip(), "", "## Data", ""]
        lines += [f"{len(self.rows)} rows of `{recipe.data.train.name}` (SHA-256 {facts['data_sha256'][:16]}…).", ""]
        lines += [*evaluation_lines(recipe, result, len(self.evaluation)), "", "## Limits", ""]
        lines += [f"It reads {recipe.max_length} tokens at a time. Trained from {recipe.base_model} by the recipe in"]
        return "\n".join([*lines, f"`recipe.json`. {LIMITS[recipe.task]}"]) + "\n"
