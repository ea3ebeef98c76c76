"""A model's signature as its `MLmodel` file has it, read without MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes, gives and can be told, in MLflow's words: columns and parameters by `name` and `type`, tensors by
    `tensor-spec`. All are empty where nothing is known.

    Source: https://mlflow.org/docs/latest/ml/model/signatures/
    """

    inputs: Sequence[Mapping[str, Any]] = ()
    outputs: Sequence[Mapping[str, Any]] = ()
    params: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, given: Any) -> Signature:
        """From the `signature` of an `MLmodel` file; what of it cannot be read is empty."""
        return cls(*(_read(given, name) for name in ("inputs", "outputs", "params")))


def _read(given: Any, name: str) -> tuple[Mapping[str, Any], ...]:
    text = given.get(name) if isinstance(given, Mapping) else None
    try:
        found = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError:
        found = None
    return tuple(each for each in found if isinstance(each, Mapping)) if isinstance(found, list) else ()
