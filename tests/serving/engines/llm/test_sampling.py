from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from serving.engines.llm.sampling import Sampling, choose  # noqa: E402


@dataclass
class Row:
    sampling: Sampling
    matcher: Any = None
    prompt: list[int] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)


LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def draw(count: int, **options: Any) -> list[int]:
    row = Row(Sampling(**options))
    return [choose(LOGITS[None], [row])[0][0] for _ in range(count)]


def test_temperature_zero_is_the_likeliest() -> None:
    assert draw(5, temperature=0.0) == [0] * 5


def test_shares_follow_the_probabilities() -> None:
    drawn = draw(2000, seed=3)
    shares = torch.bincount(torch.tensor(drawn), minlength=5) / 2000
    assert torch.allclose(shares, LOGITS.softmax(-1), atol=0.04)


def test_top_k_and_top_p_cut_the_tail() -> None:
    assert set(draw(300, seed=1, top_k=2)) == {0, 1}
    assert set(draw(300, seed=1, top_p=0.7)) == {0, 1}
    assert set(draw(50, seed=1, top_p=0.0)) == {0}


def test_a_seed_gives_the_same_tokens_in_any_company() -> None:
    alone = draw(20, seed=9, temperature=1.5)
    row, other = Row(Sampling(seed=9, temperature=1.5)), Row(Sampling(seed=4, top_p=0.5))
    greedy = Row(Sampling(temperature=0))
    together = [choose(LOGITS.expand(3, -1), [greedy, row, other])[0] for _ in range(20)]
    assert [tokens[1] for tokens in together] == alone
    assert {tokens[0] for tokens in together} == {0}


def test_a_bias_makes_tokens_likelier_and_bans_them() -> None:
    assert draw(1, temperature=0, bias={3: 100.0}) == [3]
    assert 0 not in draw(100, seed=2, bias={0: -100.0, 999: 5.0})
    assert Sampling.of({"logit_bias": {"3": 100}}, None).bias == {3: 100.0}


def test_penalties_make_what_was_said_less_likely() -> None:
    row = Row(Sampling(temperature=0, frequency=0.6), generated=[0, 0])
    assert choose(LOGITS[None], [row])[0] == [1]
    row = Row(Sampling(temperature=0, presence=1.5), generated=[0, 0, 0])
    assert choose(LOGITS[None], [row])[0] == [1]
    row = Row(Sampling(temperature=0, repetition=3.0), prompt=[0])
    assert choose(LOGITS[None], [row])[0] == [1]
    assert LOGITS[0] == 2.0  # the model's own scores are left as they are


def test_log_probabilities_are_the_models_own() -> None:
    row = Row(Sampling(temperature=0, logprobs=2, presence=2.0), generated=[0])
    tokens, told = choose(LOGITS[None], [row])
    expected = LOGITS.log_softmax(-1)
    assert tokens == [1]
    assert told[0] is not None
    assert told[0][0] == pytest.approx(expected[1].item())
    assert [token for token, _ in told[0][1]] == [0, 1]


def test_defaults_are_the_models_generation_config() -> None:
    class Config:
        do_sample, temperature, top_p, top_k, repetition_penalty = True, 0.6, 0.9, 20, 1.1

    chosen = Sampling.of({"top_p": 0.5}, Config())
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.repetition) == (0.6, 0.5, 20, 1.1)
