"""An extractive reader: of each token of a text whether an answer begins or ends there; at the first one, that there is none."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.tasks.network import Reading, in_parts
from finetune.text_model import bounded, read_span, windows

if TYPE_CHECKING:
    import torch

    from finetune.pairs import Question
    from finetune.schema import ReaderRecipe

EVAL_BATCH = 32
Read = Callable[[Sequence[tuple[str, str]]], Sequence[str]]
"""The answers to (question, context) pairs; empty where the context has none."""


class ReaderTask(Reading):
    """What `finetune.loop` trains for a `ReaderRecipe`. Its examples are windows of texts."""

    def __init__(
        self, recipe: ReaderRecipe, folder: Path, rows: Sequence[Question], evaluation: Sequence[Question], device: str = "cpu"
    ) -> None:
        import torch

        self.recipe: ReaderRecipe
        super().__init__(recipe, folder, "span", device=device)
        self.tokenizer.enable_truncation(recipe.max_length, stride=recipe.stride, strategy="only_second")
        # bytes of a question, and no token is shorter than one: the rest is for windows
        self._most = recipe.max_length - recipe.stride - 8
        self._held_out = list(evaluation)
        self._windows: list[Any] = []
        spans: list[tuple[int, int]] = []
        for row, encoded in zip(rows, self._encode([(row.question, row.context) for row in rows]), strict=True):
            for window in windows(encoded):
                self._windows.append(window)
                spans.append(span_in(window, row.start, row.start + len(row.answer)) if row.answer else (0, 0))
        self._spans = torch.tensor(spans, dtype=torch.long, device=device).reshape(-1, 2)

    @cached_property  # asked for at each step
    def lengths(self) -> Sequence[int]:
        return [len(window.ids) for window in self._windows]

    def targets(self, examples: Sequence[int]) -> int:
        return len(examples)

    def loss(self, examples: Sequence[int]) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        given = self.padded([self._windows[i] for i in examples])
        logits = self.model(*given).float().masked_fill(given[1][..., None] == 0, -1e4)
        spans = self._spans[list(examples)]
        return sum(cross_entropy(logits[..., end], spans[:, end], reduction="sum") for end in (0, 1)) / 2  # type: ignore[return-value]

    def read(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        import torch

        groups = [windows(each) for each in self._encode(pairs)]
        every = [window for group in groups for window in group]
        logits: list[Any] = [None] * len(every)
        with torch.no_grad():
            for part in in_parts([len(window.ids) for window in every], EVAL_BATCH):
                for i, row in zip(part, self.model(*self.padded([every[i] for i in part])).float().cpu().numpy(), strict=True):
                    logits[i] = row
        left = iter(logits)
        longest = self.recipe.max_answer
        return [
            read_span(group, [next(left) for _ in group], context, longest)["answer"]
            for group, (_, context) in zip(groups, pairs, strict=True)
        ]

    def evaluate(self) -> Mapping[str, float]:
        if not self._held_out:
            return {}
        found = judged(self._held_out, self.read)
        return {**found, "score": found["f1"]}

    def export(self, folder: Path) -> Path:
        super().export(folder)
        about = {"kind": "reader", "max_answer": self.recipe.max_answer, "question_bytes": self._most}
        (folder / "model.json").write_text(json.dumps(about), encoding="utf-8")
        return folder

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> list[Any]:
        return self.tokenizer.encode_batch([(bounded(asked, self._most), context) for asked, context in pairs])


def span_in(window: Any, start: int, end: int) -> tuple[int, int]:
    """First and last token of the characters `start` to `end` in a window, or the first token where it has not all of them."""
    inside = [i for i, sequence in enumerate(window.sequence_ids) if sequence == 1]
    if not inside or window.offsets[inside[0]][0] > start or window.offsets[inside[-1]][1] < end:
        return 0, 0
    first = next((i for i in inside if window.offsets[i][1] > start), 0)
    last = next((i for i in reversed(inside) if window.offsets[i][0] < end), 0)
    return (first, last) if first <= last else (0, 0)


def judged(rows: Sequence[Question], read: Read) -> dict[str, float]:
    """`f1` and `exact` as SQuAD has them (https://arxiv.org/abs/1806.03822), means over the rows; a right "none" counts 1."""
    found = read([(row.question, row.context) for row in rows])
    given = list(zip(found, (row.answer for row in rows), strict=True))
    exact = float(np.mean([_words(a) == _words(b) for a, b in given]))
    return {"f1": float(np.mean([_overlap(a, b) for a, b in given])), "exact": exact}


def by_words(rows: Sequence[Question]) -> dict[str, float]:
    """The baseline: the sentence that is most like the question, by TF-IDF."""
    from finetune.ranking import Words

    def read(pairs: Sequence[tuple[str, str]]) -> list[str]:
        split = [[part for part in re.split(r"(?<=[.!?])\s+", context) if part.strip()] or [context] for _, context in pairs]
        return [
            parts[int(Words(parts).scores([question])[0].argmax())] for (question, _), parts in zip(pairs, split, strict=True)
        ]

    return judged(rows, read)


def _words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def _overlap(one: str, other: str) -> float:
    a, b = _words(one), _words(other)
    if not a or not b:
        return float(a == b)
    same = sum((Counter(a) & Counter(b)).values())
    return 2 * same / (len(a) + len(b))
