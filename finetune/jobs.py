"""Which job does a recipe's task."""

from __future__ import annotations

from typing import Any

from finetune.schema import EmbedRecipe, EncoderRecipe, LanguageRecipe, ReaderRecipe, Recipe, RerankRecipe


def job_of(recipe: Recipe) -> Any:
    """What knows a task's data, its evaluation and its registered form."""
    if isinstance(recipe, EncoderRecipe):
        from finetune.job_classify import ClassifyJob

        return ClassifyJob(recipe)
    if isinstance(recipe, EmbedRecipe | RerankRecipe | ReaderRecipe):
        from finetune.job_pairs import PairsJob

        return PairsJob(recipe)
    assert isinstance(recipe, LanguageRecipe)
    from finetune.job_language import LanguageJob

    return LanguageJob(recipe)
