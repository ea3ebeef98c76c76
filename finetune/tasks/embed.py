"""An encoder of texts, trained by the losses of sentence-transformers: what belongs together comes to lie together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.ranking import ranking_metrics, ranks_of
from finetune.tasks.network import Reading, in_parts

if TYPE_CHECKING:
    import torch

    from finetune.pairs import Pair
    from finetune.schema import EmbedRecipe

EVAL_BATCH = 64


class EmbedTask(Reading):
    """What `finetune.loop` trains for an `EmbedRecipe`."""

    def __init__(
        self, recipe: EmbedRecipe, folder: Path, rows: Sequence[Pair], evaluation: Sequence[Pair], device: str = "cpu"
    ) -> None:
        self.recipe: EmbedRecipe
        super().__init__(recipe, folder, "vector", device=device)
        self.pairs = False
        self._held_out = list(evaluation)
        least = min((len(row.negatives) for row in rows), default=0)
        negatives = {"triplet": 1, "multiple_negatives": least}.get(recipe.loss, 0)
        columns = [[row.query for row in rows], [row.positive for row in rows]]
        columns += [[row.negatives[number] for row in rows] for number in range(negatives)]
        self._columns = [self.tokenizer.encode_batch(texts) for texts in columns]
        self._scores = [1.0 if row.score is None else row.score for row in rows]
        self._loss = loss_of(recipe)

    @cached_property  # asked for at each step
    def lengths(self) -> Sequence[int]:
        return [sum(len(text.ids) for text in texts) for texts in zip(*self._columns, strict=True)]

    def targets(self, examples: Sequence[int]) -> int:
        return len(examples)

    def loss(self, examples: Sequence[int]) -> torch.Tensor:
        import torch

        vectors = [self.model(*self.padded([texts[i] for i in examples])) for texts in self._columns]
        scores = torch.tensor([self._scores[i] for i in examples], device=self.device)
        return self._loss(vectors, scores) * len(examples)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, dimension) vectors of unit length."""
        import torch

        was, encoded = self.model.training, self.tokenizer.encode_batch(list(texts))
        self.model.eval()
        found = np.zeros((len(texts), int(self.model.encoder.config.hidden_size)), np.float32)
        with torch.no_grad():
            for part in in_parts([len(text.ids) for text in encoded], EVAL_BATCH):
                found[part] = self.model(*self.padded([encoded[i] for i in part])).float().cpu().numpy()
        self.model.train(was)
        return found

    def evaluate(self) -> Mapping[str, float]:
        if not self._held_out:
            return {}
        found = judged(self._held_out, self.embed)
        return {**found, "score": next(iter(found.values()))}

    def export(self, folder: Path) -> Path:
        super().export(folder)
        (folder / "model.json").write_text(json.dumps({"kind": "embed"}), encoding="utf-8")
        return folder


def judged(rows: Sequence[Pair], embed: Callable[[Sequence[str]], np.ndarray]) -> dict[str, float]:
    """How an encoder finds the answers among all texts of the rows; where rows have scores, how these go with the cosines."""
    if all(row.score is not None for row in rows):
        from scipy.stats import spearmanr

        one, other = embed([row.query for row in rows]), embed([row.positive for row in rows])
        found = float(spearmanr((one * other).sum(1), [row.score for row in rows])[0])  # pyright: ignore[reportArgumentType]
        return {"spearman": 0.0 if np.isnan(found) else found}
    texts = sorted({text for row in rows for text in row.texts[1:]})
    place = {text: i for i, text in enumerate(texts)}
    questions, answers = embed([row.query for row in rows]), embed(texts)
    return ranking_metrics(ranks_of(questions @ answers.T, np.array([place[row.positive] for row in rows])))


def loss_of(recipe: EmbedRecipe) -> Any:
    """`loss(vectors, scores)`: vectors of queries, positives and negatives; the mean over the rows."""
    import torch
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer import losses

    none: Any = None  # the vectors are handed over, so no model is needed
    if recipe.loss == "cosine":
        return lambda vectors, scores: torch.nn.functional.mse_loss(util.pairwise_cos_sim(vectors[0], vectors[1]), scores)
    if recipe.loss == "cosent":
        return losses.CoSENTLoss(none, scale=recipe.scale).compute_loss_from_embeddings
    if recipe.loss == "triplet":
        metric = losses.TripletDistanceMetric.COSINE
        return losses.TripletLoss(none, metric, 0.5).compute_loss_from_embeddings
    return losses.MultipleNegativesRankingLoss(none, scale=recipe.scale).compute_loss_from_embeddings
