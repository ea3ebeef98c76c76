"""A run that trains a language model: its texts, how much better it tells held-out ones, and its registered form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import texts
from finetune.base_model import locate
from finetune.data import sample
from finetune.recipe import RecipeError, find

if TYPE_CHECKING:
    from finetune.loop import Emit
    from finetune.publish import Registered
    from finetune.schema import LanguageRecipe
    from finetune.tasks.language import LanguageTask


class LanguageJob:
    """Reads and checks the texts when it is made.

    Raises
    ------
    DataError, RecipeError: they, or the model with them, cannot be trained on.
    """

    def __init__(self, recipe: LanguageRecipe) -> None:
        from finetune.tasks.language import load_tokenizer

        self.recipe = recipe
        self._tokenizer = load_tokenizer(locate(recipe.base_model), recipe.chat_template)
        if recipe.task == "sft-chat" and not self._tokenizer.chat_template:
            raise RecipeError(f"chat_template: the tokenizer of {recipe.base_model} has none; give one as a Jinja file.")
        file = find(recipe.data.train)
        rows, warnings = texts.read(recipe.task, file, self._tokenizer, recipe.context_length)
        self._texts = sample(rows, recipe.data.max_rows, recipe.seed)
        self.hashes, self._held_out = {"data_sha256": _sha256(file)}, []
        if recipe.data.eval is not None:
            held_out = find(recipe.data.eval)
            self._held_out, more = texts.read(recipe.task, held_out, self._tokenizer, recipe.context_length)
            self.hashes["eval_sha256"], warnings = _sha256(held_out), [*warnings, *more]
        self.warnings = [str(warning) for warning in warnings]
        tokens = sum(len(text.ids) for text in self._texts)
        self.facts = {"rows": len(self._texts), "evaluation_rows": len(self._held_out), "tokens": tokens}
        self._before: Mapping[str, float] = {}

    def task(self, base: Path, device: str) -> LanguageTask:
        from finetune.tasks.language import LanguageTask

        found = LanguageTask(self.recipe, base, self._tokenizer, self._texts, self._held_out, device)
        self._before = found.evaluate()  # the base model's own, whatever checkpoint is gone on from
        return found

    def judge(self, task: LanguageTask, emit: Emit) -> dict[str, Any]:
        """The held-out loss after training, and before it."""
        after, before = task.evaluate(), self._before
        return {
            "metrics": _shown(after),
            "baseline": _shown(before),
            "baseline_name": "base model",
            "samples": list(task.samples()),
        }

    def artifacts(self, result: Mapping[str, Any]) -> dict[str, Any]:
        return {"samples.txt": "\n\n".join(result["samples"])} if result["samples"] else {}

    def register(self, task: LanguageTask, folder: Path, facts: Mapping[str, Any], result: Mapping[str, Any]) -> Registered:
        """Export and register; the alias moves if the held-out loss is under the champion's on the same texts."""
        from finetune.publish_language import register_language_model

        assert self.recipe.register_to is not None
        return register_language_model(
            task.export(folder),
            self.recipe.register_to,
            adapter=self.recipe.method != "full",
            facts={**facts, **{key: round(value, 6) for key, value in result["metrics"].items()}},
            card=self._card(facts, result),
            score=-result["metrics"]["loss"] if result["metrics"] else None,
            margin=self.recipe.promote_margin,
        )

    def _card(self, facts: Mapping[str, Any], result: Mapping[str, Any]) -> str:
        recipe, metrics, before = self.recipe, result["metrics"], result["baseline"]
        lines = [
            f"# {recipe.register_to or recipe.name}",
            "",
            f"{recipe.base_model}, trained by `{recipe.task}`, {recipe.method}.",
            "",
        ]
        lines += [
            "## Data",
            "",
            f"{self.facts['rows']} texts, {self.facts['tokens']} tokens, SHA-256 {facts['data_sha256'][:16]}….",
            "",
        ]
        lines += ["## Evaluation", ""]
        if metrics:
            lines += ["| on held-out texts | before | after |", "|---|---|---|"]
            lines += [f"| {key} | {before[key]:.4f} | {value:.4f} |" for key, value in metrics.items()]
        else:
            lines += ["It was not evaluated: the recipe names no `data.eval`."]
        lines += [
            "",
            "## Limits",
            "",
            f"Trained on {recipe.context_length} tokens at a time. It may repeat what it was trained on.",
        ]
        return "\n".join(lines) + "\n"


def _shown(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key != "score"}


def _sha256(path: Path) -> str:
    """Of a file, or of all files of a folder with their names."""
    import hashlib

    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    total = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        total.update(f"{file.relative_to(path)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return total.hexdigest()
