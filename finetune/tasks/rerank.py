"""A cross-encoder: question and text are read together, and one logit says whether the one answers the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.ranking import Words, mined, ranking_metrics, ranks_of
from finetune.tasks.network import Reading, in_parts

if TYPE_CHECKING:
    import torch

    from finetune.pairs import Pair
    from finetune.schema import RerankRecipe

EVAL_BATCH = 64
Score = Callable[[Sequence[tuple[str, str]]], np.ndarray]
"""How well the second text of each pair answers the first; higher is better."""


class RerankTask(Reading):
    """What `finetune.loop` trains for a `RerankRecipe`. Its examples are pairs, right ones and wrong ones."""

    def __init__(
        self, recipe: RerankRecipe, folder: Path, rows: Sequence[Pair], evaluation: Sequence[Pair], device: str = "cpu"
    ) -> None:
        import torch

        self.recipe: RerankRecipe
        super().__init__(recipe, folder, "labels", 1, device)
        pairs, labels = examples_of(rows, recipe)
        self._pairs: list[Any] = self.tokenizer.encode_batch(pairs)
        self._y = torch.tensor(labels, dtype=torch.float32, device=device)
        self.candidates = candidates_of(evaluation, recipe)

    @cached_property  # asked for at each step
    def lengths(self) -> Sequence[int]:
        return [len(pair.ids) for pair in self._pairs]

    def targets(self, examples: Sequence[int]) -> int:
        return len(examples)

    def loss(self, examples: Sequence[int]) -> torch.Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        logits = self.model(*self.padded([self._pairs[i] for i in examples])).float().squeeze(-1)
        return binary_cross_entropy_with_logits(logits, self._y[list(examples)], reduction="sum")

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        import torch

        encoded, found = self.tokenizer.encode_batch(list(pairs)), np.zeros(len(pairs), np.float32)
        with torch.no_grad():
            for part in in_parts([len(each.ids) for each in encoded], EVAL_BATCH):
                found[part] = self.model(*self.padded([encoded[i] for i in part])).float().cpu().numpy()[:, 0]
        return found

    def evaluate(self) -> Mapping[str, float]:
        if not self.candidates:
            return {}
        found = judged(self.candidates, self.score)
        return {**found, "score": found["ndcg_at_10"]}

    def export(self, folder: Path) -> Path:
        super().export(folder)
        (folder / "model.json").write_text(json.dumps({"kind": "rerank"}), encoding="utf-8")
        return folder


def examples_of(rows: Sequence[Pair], recipe: RerankRecipe) -> tuple[list[tuple[str, str]], list[float]]:
    """Pairs with what they are worth. Rows that name no wrong answer are given some of other rows'."""
    texts = sorted({row.positive for row in rows})
    place = {text: i for i, text in enumerate(texts)}
    bare = [row for row in rows if not row.negatives and row.score is None]
    found = mined([row.query for row in bare], [place[r.positive] for r in bare], texts, recipe.negatives, recipe.seed)
    wrong = {id(row): [texts[i] for i in numbers] for row, numbers in zip(bare, found, strict=True)}
    pairs: list[tuple[str, str]] = []
    labels: list[float] = []
    for row in rows:
        negatives = wrong.get(id(row)) or list(row.negatives)
        pairs += [(row.query, row.positive), *((row.query, text) for text in negatives)]
        labels += [1.0 if row.score is None else row.score, *(0.0 for _ in negatives)]
    return pairs, labels


def candidates_of(rows: Sequence[Pair], recipe: RerankRecipe) -> list[tuple[str, list[str]]]:
    """For each question of the evaluation the texts that are put in order, the right one first."""
    rows = [row for row in rows if row.score is None or row.score >= 0.5]
    texts = sorted({text for row in rows for text in row.texts[1:]})
    if len(texts) < 2:
        return []
    words, place = Words(texts), {text: i for i, text in enumerate(texts)}
    right: dict[str, set[int]] = {}
    for row in rows:
        right.setdefault(row.query, set()).add(place[row.positive])
    found = []
    for row, scores in zip(rows, words.scores([row.query for row in rows]), strict=True):
        given = [place[text] for text in row.negatives]
        like = [int(i) for i in np.argsort(-scores, kind="stable") if int(i) not in right[row.query]]
        others = dict.fromkeys([*given, *like])
        found.append((row.query, [row.positive, *(texts[i] for i in list(others)[: recipe.candidates - 1])]))
    return found


def judged(candidates: Sequence[tuple[str, list[str]]], score: Score) -> dict[str, float]:
    """How the right text stands among the candidates."""
    scores = iter(score([(query, text) for query, texts in candidates for text in texts]))
    width = max(len(texts) for _, texts in candidates)
    table = np.full((len(candidates), width), -np.inf)
    for row, (_, texts) in enumerate(candidates):
        table[row, : len(texts)] = [next(scores) for _ in texts]
    return ranking_metrics(ranks_of(table, np.zeros(len(candidates), int)))


def by_words(candidates: Sequence[tuple[str, list[str]]]) -> dict[str, float]:
    """The baseline: the same candidates by TF-IDF."""
    words = {text for _, texts in candidates for text in texts}
    order = sorted(words)
    place, table = {text: i for i, text in enumerate(order)}, Words(order)

    def score(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        queries = list(dict.fromkeys(query for query, _ in pairs))
        rows, number = table.scores(queries), {query: i for i, query in enumerate(queries)}
        return np.array([rows[number[query], place[text]] for query, text in pairs])

    return judged(candidates, score)
