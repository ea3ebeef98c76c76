"""Recipes: a training job as a YAML file that reads top to bottom, each key overridable as `key=value`."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from finetune.schema import RECIPES, BaseRecipe, ClassifyRecipe, EncoderRecipe, LanguageRecipe, Recipe, model_for

__all__ = ["BaseRecipe", "ClassifyRecipe", "EncoderRecipe", "LanguageRecipe", "Recipe", "RecipeError", "find", "load_recipe"]


class RecipeError(Exception):
    """A recipe that cannot be run; the message names file, line, key and what is accepted."""


def load_recipe(source: Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    source: a YAML file, or the same as a mapping.
    overrides: `key=value`, dotted (`data.max_rows=6000`); the value is YAML.

    Raises
    ------
    RecipeError: with the file's line, the key and the accepted values.
    """
    if isinstance(source, Path):
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{source}: the recipe cannot be read ({error}).") from error
        try:
            data, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise RecipeError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
        name = str(source)
    else:
        data, node, name = _copy(source), None, "recipe"
    if (twice := _twice(node)) is not None:
        raise RecipeError(f"{name}:{twice.start_mark.line + 1}: {twice.value} stands there twice; keep the right one.")
    if not isinstance(data, dict):
        raise RecipeError(f"{name}: a recipe is a mapping that begins with task: {' | '.join(RECIPES)}.")
    given = {}
    for override in overrides:
        key, value = _override(data, override)
        given[key] = value
    model = model_for(data)
    if isinstance(model, tuple):
        key, accepted = model
        raise RecipeError(f"{_place(name, node, (key,), given)}: {key}: {data.get(key)!r} is not one of {', '.join(accepted)}.")
    try:
        recipe = model.model_validate(data)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(name, node, given, model, problem) for problem in error.errors())) from error
    return typing.cast(Recipe, recipe)


def find(path: Path) -> Path:
    """A recipe's data file: as it stands, or beside the rooms (`agents/router.jsonl`)."""
    beside = Path(__file__).resolve().parent.parent / path
    return path if path.is_absolute() or path.exists() or not beside.exists() else beside


def _copy(source: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in source.items()}


def _twice(node: yaml.Node | None) -> Any:
    """A key that a mapping has twice, of which only the last would be read."""
    left = [node]
    for each in islice(left, 1000):  # which grows meanwhile; what refers to itself has an end
        if not isinstance(each, yaml.MappingNode):
            continue
        keys: set[Any] = set()
        for key, value in each.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                return key
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            left.append(value)
    return None


def _override(data: dict[str, Any], override: str) -> tuple[tuple[str, ...], str]:
    key, equals, value = override.partition("=")
    words = tuple(key.strip().split("."))
    if not equals or not all(words):
        raise RecipeError(f"{override!r} is no override; write key=value, such as data.max_rows=6000.")
    target: Any = data
    for word in words[:-1]:
        target = target.setdefault(word, {})
        if not isinstance(target, dict):
            raise RecipeError(f"{override}: {word!r} holds a value, not keys.")
    try:
        target[words[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"{override}: the value is not YAML.") from error
    return words, override


def _explain(
    name: str, node: yaml.Node | None, given: Mapping[tuple[str, ...], str], model: type[BaseModel], problem: Any
) -> str:
    path = tuple(str(word) for word in problem["loc"])
    place, key = _place(name, node, path, given), ".".join(path)
    owner = _owner(model, path[:-1])
    if problem["type"] == "extra_forbidden":
        accepted = list(owner.model_fields) if owner else []
        return f"{place}: {key} is not a key of it{_meant(path[-1], accepted)}; accepted: {', '.join(accepted)}."
    if problem["type"] == "missing":
        return f"{place}: {key} is missing."
    got = "" if isinstance(problem.get("input"), Mapping) else f" (got {problem.get('input')!r})"
    said = problem["msg"].removeprefix("Value error, ")
    said = "Input should be a list, such as [a, b]" if problem["type"] == "tuple_type" else said
    return f"{place}: {key}: {said}{got}." if key else f"{place}: {said}."


_ELSEWHERE = {
    "lr": "learning_rate",
    "epochs": "training_duration",
    "num_epochs": "training_duration",
    "num_train_epochs": "training_duration",
    "max_steps": "training_duration",
    "steps": "training_duration",
    "per_device_train_batch_size": "micro_batch_size",
    "warmup_ratio": "warmup",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "max_gradient_norm",
    "model": "base_model",
    "model_name": "base_model",
    "max_seq_length": "context_length",
    "r": "rank",
    "target_modules": "targets",
    "path": "train",
    "train_data_path": "data",
    "dataset": "data",
}
"""What other tools call a key."""


def _meant(word: str, accepted: Sequence[str]) -> str:
    """The key that a wrong one was meant to be, as a question; empty where none is like it."""
    names = [name for name in (_ELSEWHERE.get(word.lower()),) if name in accepted]
    near = names or difflib.get_close_matches(word.lower(), accepted, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _owner(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """The model that a path of keys leads to."""
    for word in path:
        field = model.model_fields.get(word)
        choices = [field.annotation, *typing.get_args(field.annotation)] if field else []
        inner = [choice for choice in choices if isinstance(choice, type) and not isinstance(choice, types.GenericAlias)]
        found = next((choice for choice in inner if issubclass(choice, BaseModel)), None)
        if found is None:
            return None
        model = found
    return model


def _place(name: str, node: yaml.Node | None, path: Sequence[str], given: Mapping[tuple[str, ...], str]) -> str:
    for depth in range(len(path), 0, -1):
        if (override := given.get(tuple(path[:depth]))) is not None:
            return f"override {override}"
    for key, override in given.items():
        if path and key[: len(path)] == tuple(path):  # it made the mapping that the key is in
            return f"override {override}"
    line: int | None = None
    for word in path:
        if not isinstance(node, yaml.MappingNode):
            break
        pair = next(((key, value) for key, value in node.value if key.value == word), None)
        if pair is None:
            break
        line, node = pair[0].start_mark.line + 1, pair[1]
    return f"{name}:{line}" if line else name
