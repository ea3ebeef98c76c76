"""From labelled data to a model: data checks, recipes, training, registration. Importing this imports none of it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.classifier import LinearClassifier
    from finetune.data import DataError, Problem, Row, read_labelled
    from finetune.publish import register
    from finetune.recipe import ClassifyRecipe, RecipeError, load_recipe
    from finetune.tasks.classify import Result, fit, fit_cached
    from finetune.train import run

_HOME = {
    "LinearClassifier": "finetune.classifier",
    "DataError": "finetune.data",
    "Problem": "finetune.data",
    "Row": "finetune.data",
    "read_labelled": "finetune.data",
    "ClassifyRecipe": "finetune.recipe",
    "RecipeError": "finetune.recipe",
    "load_recipe": "finetune.recipe",
    "Result": "finetune.tasks.classify",
    "fit": "finetune.tasks.classify",
    "fit_cached": "finetune.tasks.classify",
    "register": "finetune.publish",
    "run": "finetune.train",
}

__all__ = [
    "ClassifyRecipe",
    "DataError",
    "LinearClassifier",
    "Problem",
    "RecipeError",
    "Result",
    "Row",
    "fit",
    "fit_cached",
    "load_recipe",
    "read_labelled",
    "register",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'finetune' has no attribute {name!r}")
