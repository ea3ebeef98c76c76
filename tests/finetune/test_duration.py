"""Durations are epochs, batches or tokens, and become steps."""

from __future__ import annotations

import pytest

from finetune.duration import Duration


@pytest.mark.parametrize(
    ("text", "steps"),
    [("3ep", 30), ("0.5ep", 5), ("200ba", 200), ("1ktok", 10), ("0.001Mtok", 10), ("1001 tok", 11)],
)
def test_steps_of_ten_batches_and_a_thousand_tokens_an_epoch(text: str, steps: int) -> None:
    assert Duration.parse(text).steps(10, 1000) == steps


@pytest.mark.parametrize("text", ["3", "ep", "0ep", "-1ba", "3 epochs", ""])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="3ep, 200ba or 10Mtok"):
        Duration.parse(text)
