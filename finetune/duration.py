"""How long to train: `3ep` (epochs), `200ba` (batches, that is optimizer steps) or `10Mtok` (tokens seen; `k`, `M`, `B`).

The words of Databricks' `training_duration` and of Composer's `max_duration`
(https://docs.databricks.com/aws/en/large-language-models/foundation-model-training/create-fine-tune-run).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

PATTERN = r"^\s*(\d+(?:\.\d+)?)\s*(k|M|B)?\s*(ep|ba|tok)\s*$"
_SCALE = {None: 1, "k": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True, slots=True)
class Duration:
    """An amount of epochs, batches or tokens."""

    amount: float
    unit: Literal["ep", "ba", "tok"]

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read `3ep`, `200ba`, `10Mtok`.

        Raises
        ------
        ValueError: it is none of them, or nothing at all.
        """
        found = re.match(PATTERN, text)
        if found is None or not float(found[1]):
            raise ValueError(f"{text!r} is no duration; write epochs, batches or tokens, such as 3ep, 200ba or 10Mtok")
        return cls(float(found[1]) * _SCALE[found[2]], found[3])  # pyright: ignore[reportArgumentType] - the pattern's own units

    def steps(self, steps_per_epoch: int, tokens_per_epoch: int) -> int:
        """Optimizer steps it takes, at least 1."""
        epochs = {"ep": self.amount, "ba": self.amount / steps_per_epoch, "tok": self.amount / max(tokens_per_epoch, 1)}
        return max(1, math.ceil(round(epochs[self.unit] * steps_per_epoch, 6)))

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"
