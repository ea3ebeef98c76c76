"""The next token of every sequence of a batch: penalties, grammars, temperature, top-k and top-p, each sequence its own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

GREEDY = 1e-5
"""Temperatures below this one mean the most likely token."""


class Matcher(Protocol):
    """A grammar and how far a sequence has come in it."""

    def allow(self, logits: torch.Tensor) -> None:
        """Set what may not follow to minus infinity, in place; `logits` is one sequence's row."""
        ...

    def take(self, token: int) -> bool:
        """Go on by a token; True when nothing may follow it."""
        ...


@dataclass(slots=True)
class Sampling:
    """How one sequence's tokens are chosen.

    Parameters
    ----------
    temperature, top_p, top_k: as in the OpenAI API; `top_k` 0 takes all tokens.
    frequency, presence: penalties on tokens of the answer (https://platform.openai.com/docs/api-reference/chat).
    repetition: divides (multiplies, below zero) the scores of tokens of prompt and answer.
    bias: what is added to the scores of tokens, by their numbers; ones that the vocabulary does not have count for nothing.
    seed: makes the answer repeatable, whatever else is in the batch.
    logprobs: how many alternatives are told with each token; None tells none, and not the token's own either.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @classmethod
    def of(cls, body: Mapping[str, Any], defaults: Any) -> Sampling:
        """The request's choice; the model's own generation config where it says nothing."""

        def choose(name: str, other: Any) -> Any:
            given = body.get(name)
            own = getattr(defaults, name, None) if getattr(defaults, "do_sample", None) else None
            return given if given is not None else own if own is not None else other

        return cls(
            temperature=choose("temperature", 1.0),
            top_p=choose("top_p", 1.0),
            top_k=choose("top_k", 0),
            frequency=body.get("frequency_penalty") or 0.0,
            presence=body.get("presence_penalty") or 0.0,
            repetition=getattr(defaults, "repetition_penalty", None) or 1.0,
            bias={int(token): float(added) for token, added in (body.get("logit_bias") or {}).items()},
            seed=body.get("seed"),
            logprobs=(body.get("top_logprobs") or 0) if body.get("logprobs") else None,
        )

    @property
    def penalized(self) -> bool:
        return bool(self.frequency or self.presence or self.repetition != 1.0 or self.bias)


class Sampled(Protocol):
    """What sampling needs to know of a sequence."""

    sampling: Sampling
    matcher: Matcher | None
    prompt: Sequence[int]
    generated: list[int]


Logprobs = tuple[float, list[tuple[int, float]]]
"""Log probability of the token, and of the likeliest ones."""


def choose(logits: torch.Tensor, rows: Sequence[Sampled]) -> tuple[list[int], list[Logprobs | None]]:
    """The next token of each row of `logits` [rows, vocabulary], and its log probability where it is wanted.

    Log probabilities are the model's own, before penalties, grammar and temperature.
    """
    wanted = [position for position, row in enumerate(rows) if row.sampling.logprobs is not None]
    raw = logits[wanted].float().log_softmax(-1) if wanted else None
    changed = False
    for position, row in enumerate(rows):
        if row.sampling.penalized or row.matcher is not None:
            if not changed:
                logits, changed = logits.float().clone(), True
            if row.sampling.penalized:
                _penalize(logits[position], row)
            if row.matcher is not None:
                row.matcher.allow(logits[position])
    best = logits.argmax(-1)
    drawn = [position for position, row in enumerate(rows) if row.sampling.temperature >= GREEDY]
    if drawn:
        best[drawn] = _draw(logits[drawn].float(), [rows[position].sampling for position in drawn])
    tokens: list[int] = best.tolist()
    told: list[Logprobs | None] = [None] * len(rows)
    for place, position in enumerate(wanted):
        assert raw is not None
        count = rows[position].sampling.logprobs or 0
        top = raw[place].topk(min(count, raw.shape[-1])) if count else None
        others = list(zip(top.indices.tolist(), top.values.tolist(), strict=True)) if top is not None else []
        told[position] = (raw[place, tokens[position]].item(), others)
    return tokens, told


def _penalize(scores: torch.Tensor, row: Sampled) -> None:
    sampling = row.sampling
    if sampling.repetition != 1.0:
        seen = torch.tensor(sorted({*row.prompt, *row.generated}), device=scores.device)
        values = scores[seen]
        scores[seen] = torch.where(values > 0, values / sampling.repetition, values * sampling.repetition)
    if (sampling.frequency or sampling.presence) and row.generated:
        counts = Counter(row.generated)
        tokens = torch.tensor(list(counts), device=scores.device)
        times = torch.tensor(list(counts.values()), device=scores.device, dtype=scores.dtype)
        scores[tokens] -= sampling.frequency * times + sampling.presence
    for token, added in sampling.bias.items():
        if token < len(scores):
            scores[token] += added


def _draw(scores: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """One token a row by its own random number, so that a seed gives the same answer in every batch."""
    device = scores.device

    def column(read: Callable[[Sampling], float]) -> torch.Tensor:
        return torch.tensor([read(each) for each in samplings], device=device, dtype=torch.float32)[:, None]

    probabilities = (scores / column(lambda each: each.temperature)).softmax(-1)
    tokens = None
    if any(each.top_p < 1 or each.top_k for each in samplings):
        probabilities, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= column(lambda each: each.top_p).clamp(min=1e-6), 0)
        ranks = torch.arange(probabilities.shape[-1], device=device)[None]
        probabilities = probabilities.masked_fill(ranks >= column(lambda each: each.top_k or probabilities.shape[-1]), 0)
    sums = probabilities.double().cumsum(-1)
    at = torch.tensor([each.random.random() for each in samplings], device=device, dtype=torch.float64)[:, None] * sums[:, -1:]
    picked = torch.searchsorted(sums, at, right=True).clamp(max=sums.shape[-1] - 1)
    return (tokens.gather(-1, picked) if tokens is not None else picked)[:, 0]
