"""Direct preference optimisation: of two answers the better one becomes likelier than the model it began as would have it.

Source: https://arxiv.org/abs/2305.18290, equation 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import head
from finetune.packing import Tokens
from finetune.tasks.language import LanguageTask

if TYPE_CHECKING:
    import torch

    from finetune.schema import PreferenceRecipe

Preference = tuple[Tokens, Tokens]
"""The answer that was chosen and the one that was rejected, each behind the prompt."""


class PreferenceTask(LanguageTask):
    """What `finetune.loop` trains for a `PreferenceRecipe`. Its examples are preferences.

    What the untrained model makes of each answer is computed once, when the task is made, so no second model is held.
    """

    def __init__(
        self,
        recipe: PreferenceRecipe,
        folder: Path,
        tokenizer: Any,
        rows: Sequence[Preference],
        evaluation: Sequence[Preference],
        device: str = "cpu",
    ) -> None:
        super().__init__(recipe, folder, tokenizer, [], [], device)
        self.recipe: PreferenceRecipe
        self._rows, self._judged = list(rows), list(evaluation)
        self._reference = self._before(self._rows)
        self._judged_reference = self._before(self._judged)

    @cached_property  # asked for at each step
    def lengths(self) -> Sequence[int]:
        return [len(chosen.ids) + len(rejected.ids) for chosen, rejected in self._rows]

    def targets(self, examples: Sequence[int]) -> int:
        return len(examples)

    def loss(self, examples: Sequence[int]) -> torch.Tensor:
        likely = self._likelihoods([self._rows[i] for i in examples])
        return self._losses(likely, self._reference[list(examples)]).sum()

    def evaluate(self) -> Mapping[str, float]:
        """`loss`; `preferred`, how often the chosen answer is the likelier one; `margin`, by how much its reward is higher."""
        import torch

        if not self._judged:
            return {}
        was, size = self.model.training, self.recipe.batch_size
        self.model.eval()
        with torch.no_grad():
            likely = torch.cat([self._likelihoods(self._judged[at : at + size]) for at in range(0, len(self._judged), size)])
        self.model.train(was)
        reward = self.recipe.beta * (likely - self._judged_reference)
        loss = float(self._losses(likely, self._judged_reference).mean())
        found = {"loss": loss, "preferred": float((likely[:, 0] > likely[:, 1]).float().mean())}
        return {**found, "margin": float((reward[:, 0] - reward[:, 1]).mean()), "score": -loss}

    def _losses(self, likely: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import logsigmoid

        gain = likely - reference
        return -logsigmoid(self.recipe.beta * (gain[:, 0] - gain[:, 1]))

    def _before(self, rows: Sequence[Preference]) -> torch.Tensor:
        """Log-likelihoods by the model as it is before training; adapters change nothing yet."""
        import torch

        if self.device == "meta":
            return torch.empty(len(rows), 2, device="meta")
        size = self.recipe.batch_size
        self.model.eval()
        with torch.no_grad():
            parts = [self._likelihoods(rows[at : at + size]) for at in range(0, len(rows), size)]
        return torch.cat(parts) if parts else torch.empty(0, 2, device=self.device)

    def _likelihoods(self, rows: Sequence[Preference]) -> torch.Tensor:
        """(rows, 2) sums of the answers' log-probabilities."""
        losses, numbers = self._learnt([(text,) for both in rows for text in both], head.each)
        return -losses.new_zeros(2 * len(rows)).index_add(0, numbers, losses).reshape(len(rows), 2)
