"""Batched decoding gives each sequence what it gets alone, token for token, whoever comes and goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from serving.engines.llm.batch import Batch  # noqa: E402
from tests.serving.tiny import make_model  # noqa: E402

PROMPTS = [[0, 5, 9], [0, 40, 41, 42, 43, 44, 45, 46], [0], [0, 77, 12, 300, 8]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    folder: Path = make_model(tmp_path_factory.mktemp("model"))
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def alone(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


def begin(model: Any, names: list[int], tokens: dict[int, list[int]], piece: int = 2) -> Batch:
    batch = Batch(model)
    batch.start(names, [PROMPTS[name] for name in names])
    while (logits := batch.feed(piece)) is None:
        pass
    note(batch, logits, tokens)
    return batch


def note(batch: Batch, logits: Any, tokens: dict[int, list[int]]) -> None:
    for name, token in zip(batch.rows, logits.argmax(-1).tolist(), strict=True):
        tokens.setdefault(name, []).append(token)


def test_rows_come_and_go_and_each_is_as_if_alone(model: Any) -> None:
    tokens: dict[int, list[int]] = {}
    batch = begin(model, [0, 1], tokens)
    for step in range(40):
        if step == 5:
            batch.join(begin(model, [2], tokens))
        if step == 12:
            batch.keep([position for position, name in enumerate(batch.rows) if name != 1])
        if step == 20:
            batch.join(begin(model, [3], tokens, piece=100))
        note(batch, batch.step([tokens[name][-1] for name in batch.rows]), tokens)
    assert [len(tokens[name]) for name in range(4)] == [41, 13, 36, 21]
    for name, prompt in enumerate(PROMPTS):
        assert tokens[name] == alone(model, prompt, len(tokens[name]))


def test_columns_that_no_row_needs_are_given_back(model: Any) -> None:
    tokens: dict[int, list[int]] = {}
    batch = begin(model, [1, 2], tokens)
    assert batch.columns == 8
    batch.keep([1])
    assert batch.columns == 1
    batch.keep([])
    assert (batch.columns, batch.rows) == (0, [])
