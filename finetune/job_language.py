"""A run that trains a language model: its texts, how much better it tells held-out ones, and its registered form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import texts
from finetune.base_model import base_of
from finetune.data import DataError, sample
from finetune.problems import warnings_of
from finetune.recipe import RecipeError, find
from finetune.schema import PreferenceRecipe

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
        from finetune.tasks.language import load_tokenizer, vocabulary

        self.recipe = recipe
        self._tokenizer = load_tokenizer(base_of(recipe), recipe.chat_template)
        if recipe.task == "sft-chat" and not self._tokenizer.chat_template:
            raise RecipeError(f"chat_template: the tokenizer of {recipe.base_model} has none; give one as a Jinja file.")
        file = find(recipe.data.train)
        rows, warnings = self._read(file)
        self._texts: list[Any] = sample(rows, recipe.data.max_rows, recipe.seed)
        self._held_out: list[Any] = []
        self.hashes = {"data_sha256": _sha256(file)}
        if recipe.data.eval is not None:
            held_out = find(recipe.data.eval)
            self._held_out, more = self._read(held_out)
            if leaking := texts.leaks(recipe.task, file, held_out, recipe.data):
                raise DataError(leaking)
            self.hashes["eval_sha256"], warnings = _sha256(held_out), [*warnings, *more]
        self.warnings = warnings_of(warnings)
        read = [text.ids for row in (*self._texts, *self._held_out) for text in (row if isinstance(row, tuple) else (row,))]
        if (largest := max((max(ids) for ids in read if len(ids)), default=0)) >= (known := vocabulary(base_of(recipe))):
            raise RecipeError(
                f"base_model: its tokenizer writes token {largest}, and the model knows {known}. "
                "Save it after model.resize_token_embeddings(len(tokenizer)), or take the tokenizer it came with."
            )
        tokens = sum(len(text.ids) for row in self._texts for text in (row if isinstance(row, tuple) else (row,)))
        self.facts = {"rows": len(self._texts), "evaluation_rows": len(self._held_out), "tokens": tokens}
        self._before: Mapping[str, float] = {}

    def _read(self, file: Path) -> tuple[list[Any], list[Any]]:
        if self.recipe.task == "dpo":
            return texts.read_preferences(file, self._tokenizer, self.recipe.context_length, self.recipe.data)
        return texts.read(self.recipe.task, file, self._tokenizer, self.recipe.context_length, self.recipe.data)

    def task(self, base: Path, device: str) -> LanguageTask:
        found = self._made(self.recipe, base, self._texts, self._held_out, device)
        self._before = found.evaluate()  # the base model's own, whatever checkpoint is gone on from
        return found

    def shapes(self, recipe: LanguageRecipe, base: Path) -> LanguageTask:
        """The task without weights, for a recipe that may differ in its sizes."""
        from finetune.packing import Tokens

        length = recipe.context_length  # shorter perhaps than what the texts were cut to

        def cut(text: Tokens) -> Tokens:
            return text if len(text.ids) <= length else Tokens(text.ids[:length], text.labels[:length])

        parts = [tuple(map(cut, row)) if isinstance(row, tuple) else cut(row) for row in self._texts]
        return self._made(recipe, base, parts, [], "meta")

    def _made(self, recipe: LanguageRecipe, base: Path, rows: Any, held_out: Any, device: str) -> LanguageTask:
        from finetune.tasks.dpo import PreferenceTask
        from finetune.tasks.language import LanguageTask

        if isinstance(recipe, PreferenceRecipe):
            return PreferenceTask(recipe, base, self._tokenizer, rows, held_out, device)
        return LanguageTask(recipe, base, self._tokenizer, rows, held_out, device)

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
        """Export and register, an adapter merged where vLLM would not take it; the alias moves if the held-out loss is under the
        champion's on the same texts."""
        from finetune.lora_rules import lint
        from finetune.publish_language import register_language_model

        assert self.recipe.register_to is not None
        adapter, about = self.recipe.method != "full", {}
        if adapter:
            verdict = lint(task.model.peft_config["default"].to_dict())
            about = {"vllm_arguments": " ".join(verdict.arguments)} if verdict.ok else {"merged": "; ".join(verdict.problems)}
            adapter = verdict.ok
        return register_language_model(
            task.export(folder, merged=bool(about.get("merged"))),
            self.recipe.register_to,
            adapter=adapter,
            facts={**facts, **about, **{key: round(value, 6) for key, value in result["metrics"].items()}},
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
