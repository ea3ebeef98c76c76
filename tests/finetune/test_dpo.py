"""Preferences: the loss is the paper's, the better answer becomes the likelier one, and rows at fault are named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.data import DataError
from finetune.packing import IGNORED
from finetune.recipe import load_recipe
from finetune.schema import PreferenceRecipe
from finetune.tasks.dpo import PreferenceTask
from finetune.tasks.language import load_tokenizer
from finetune.texts import read_preferences
from finetune.validate import validate
from tests.finetune.tiny import llama, trained

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("dpo") / "base", template=True)


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def preferences(file: Path, begin: int, end: int) -> Path:
    return write(file, [{"prompt": f"q{i} ", "chosen": "yes", "rejected": "no!"} for i in range(begin, end)])


def recipe(base: Path, train: Path, **more: Any) -> PreferenceRecipe:
    given = {"task": "dpo", "name": "polite", "base_model": str(base), "data": {"train": str(train)}, "context_length": 64}
    loaded = load_recipe(given | {"batch_size": 4, "learning_rate": 1e-2, "threads": 1, "lora": {"rank": 4}} | more)
    assert isinstance(loaded, PreferenceRecipe)
    return loaded


def test_the_loss_is_that_of_the_paper(base: Path, tmp_path: Path) -> None:
    asked = recipe(base, preferences(tmp_path / "t.jsonl", 0, 3), beta=0.3)
    tokenizer = load_tokenizer(base)
    rows, _ = read_preferences(Path(asked.data.train), tokenizer, 64)
    assert tokenizer.decode([label for label in rows[0][0].labels if label != IGNORED]) == "yes</s>"
    task = PreferenceTask(asked, base, tokenizer, rows, rows)
    assert float(task.loss([0, 1, 2]).detach()) == pytest.approx(3 * math.log(2), rel=1e-5)  # it still is what it began as
    with torch.no_grad():
        for name, parameter in task.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)

    def likely(model: Any, text: Any) -> float:
        ids = torch.tensor([list(text.ids)])
        told = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        return sum(float(told[i, t]) for i, t in enumerate(text.ids[1:]) if text.labels[i + 1] != IGNORED)

    with torch.no_grad():
        now = [[likely(task.model, text) for text in row] for row in rows]
        with task.model.disable_adapter():
            before = [[likely(task.model, text) for text in row] for row in rows]
    margins = [0.3 * ((a[0] - b[0]) - (a[1] - b[1])) for a, b in zip(now, before, strict=True)]
    wanted = sum(-math.log(1 / (1 + math.exp(-margin))) for margin in margins)
    assert float(task.loss([0, 1, 2]).detach()) == pytest.approx(wanted, rel=1e-3)
    assert task.evaluate()["margin"] == pytest.approx(sum(margins) / 3, rel=1e-3)


def test_the_better_answer_becomes_the_likelier_one(base: Path, tmp_path: Path) -> None:
    data = {"train": str(preferences(tmp_path / "t.jsonl", 0, 16)), "eval": str(preferences(tmp_path / "e.jsonl", 20, 26))}
    run = trained(recipe(base, tmp_path, data=data, training_duration="6ep", register_to="main.default.polite"), tmp_path)
    result = run.state()["result"]
    assert result["baseline"]["margin"] == 0
    assert result["baseline"]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert result["metrics"]["preferred"] == 1
    assert result["metrics"]["margin"] > 0.1
    assert result["registered"]["champion"]
    assert (run.folder / "model" / "adapter_config.json").exists()


def test_chats_are_prompts_too(base: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "so?"}]
    file = write(tmp_path / "c.jsonl", [{"prompt": turns, "chosen": "bye", "rejected": "no"}])
    tokenizer = load_tokenizer(base)
    [(chosen, rejected)], _ = read_preferences(file, tokenizer, 64)
    assert tokenizer.decode(chosen.ids) == "<s>U:hi\nA:yo</s>U:so?\nA:bye</s>"
    assert tokenizer.decode([label for label in chosen.labels if label != IGNORED]) == "bye</s>"
    assert tokenizer.decode([label for label in rejected.labels if label != IGNORED]) == "no</s>"


@pytest.mark.parametrize(
    ("row", "code", "column"),
    [
        ({"prompt": "a", "chosen": "b"}, "missing_key", "rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": " b"}, "same_answers", "rejected"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "empty_prompt", "prompt"),
        ({"prompt": [{"role": "bot", "content": "a"}], "chosen": "b", "rejected": "c"}, "unknown_role", "prompt[0].role"),
        ({"prompt": "a" * 80, "chosen": "b", "rejected": "c"}, "all_masked", None),
    ],
)
def test_rows_at_fault_are_named(base: Path, tmp_path: Path, row: Any, code: str, column: str | None) -> None:
    file = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError) as caught:
        read_preferences(file, load_tokenizer(base), 64)
    assert [(p.code, p.column, p.line) for p in caught.value.problems if p.severity == "error"] == [(code, column, 1)]
    found = validate(recipe(base, file)).problems
    assert [(p.code, p.column, p.line) for p in found if p.severity == "error"] == [(code, column, 1)]


def test_answers_that_are_nearly_the_same_are_told(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a b", "chosen": "Yes", "rejected": "yes "}, {"prompt": "a c", "chosen": "A  C", "rejected": "no"}]
    _, problems = read_preferences(write(tmp_path / "d.jsonl", rows), load_tokenizer(base), 64)
    assert [(each.code, each.column, each.line) for each in problems] == [
        ("same_answers", "rejected", 1),
        ("same_text", "chosen", 2),
    ]
