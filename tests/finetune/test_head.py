"""The loss of chunks of tokens is the loss of all of them, with its gradients, at any precision and for any head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from finetune import head
from finetune.packing import IGNORED, Tokens
from finetune.recipe import load_recipe
from finetune.tasks.language import LanguageTask, load_tokenizer
from tests.finetune.tiny import llama

TOKENS, WIDE, WORDS = 37, 16, 50


def given(dtype: torch.dtype = torch.float32, *, frozen: bool = False, bias: bool = False) -> tuple[Any, ...]:
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(TOKENS, WIDE, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(WORDS, WIDE, generator=draw).to(dtype).requires_grad_(not frozen)
    shift = torch.randn(WORDS, generator=draw).to(dtype).requires_grad_() if bias else None
    return states, weight, shift, torch.randint(0, WORDS, (TOKENS,), generator=draw)


def gradients(loss: torch.Tensor, parts: tuple[Any, ...]) -> list[torch.Tensor]:
    (loss / 7).backward()
    return [part.grad for part in parts[:3] if part is not None and part.grad is not None]


@pytest.mark.parametrize("chunk", [4, 10, 1000])
@pytest.mark.parametrize(("frozen", "bias"), [(False, False), (True, False), (False, True)])
def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch, chunk: int, frozen: bool, bias: bool) -> None:
    monkeypatch.setattr(head, "CHUNK", chunk * 4 * WORDS)
    one, two, three = (given(frozen=frozen, bias=bias) for _ in range(3))
    whole = cross_entropy(linear(*one[:3]), one[3], reduction="sum")
    wanted = gradients(whole, one)
    loss = head.summed(*two)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(gradients(loss, two), wanted)
    assert len(wanted) == 1 + (not frozen) + bias
    each = head.each(*three)
    torch.testing.assert_close(each, cross_entropy(linear(*one[:3]), one[3], reduction="none"))
    torch.testing.assert_close(gradients(each.sum(), three), wanted)


def test_no_more_logits_than_a_chunk_are_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            seen.append(found.numel() if isinstance(found, torch.Tensor) else 0)
            return found

    monkeypatch.setattr(head, "CHUNK", 5 * 4 * WORDS)
    with Sizes():
        head.summed(*given()).backward()
        head.each(*given()).sum().backward()
    assert max(seen) <= max(5 * WORDS, TOKENS * WIDE, WORDS * WIDE) < TOKENS * WORDS


def test_bf16_rounds_as_the_plain_way_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 10 * 4 * WORDS)
    for dtype in (torch.float32, torch.bfloat16):
        one, two = given(dtype), given(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            whole = cross_entropy(linear(one[0], one[1]).float(), one[3], reduction="sum")
            loss = head.summed(*two)
        torch.testing.assert_close(loss, whole, rtol=1e-3, atol=0)
        for ours, theirs in zip(gradients(loss, two), gradients(whole, one), strict=True):
            assert ours.dtype == theirs.dtype == dtype
            assert (ours.float() - theirs.float()).norm() < 0.02 * theirs.float().norm()


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma2", "qwen2"])
def test_a_models_loss_is_that_of_its_logits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its head is called; where its logits are reshaped behind the head, they are asked for in full."""
    from transformers import AutoConfig

    monkeypatch.setattr(head, "CHUNK", 9 * 4 * 99)
    base = llama(tmp_path / "base")
    tokenizer = load_tokenizer(base)
    sizes: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8} if kind != "gpt_neox" else {}
    AutoConfig.for_model(kind, **sizes).save_pretrained(base)
    recipe: Any = load_recipe({"task": "cpt", "method": "full", "name": "x", "base_model": str(base), "data": {"train": "x"},
                               "context_length": 64, "random_weights": True})  # fmt: skip
    texts = [Tokens(ids := [5 + i] * (5 + 9 * i), [IGNORED] * i + ids[i:]) for i in range(5)]
    task = LanguageTask(recipe, base, tokenizer, texts, [])
    assert task._plain == (kind != "gemma2")
    task.model.eval()
    loss, wanted = task.loss(range(len(task.lengths))), 0.0
    for text in texts:
        ids = torch.tensor([list(text.ids)])
        told = task.model(input_ids=ids, use_cache=False).logits[0, :-1]
        wanted += cross_entropy(told, torch.tensor(text.labels[1:]), ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-4)
    assert task.model(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2, 99), "the head is itself again"
