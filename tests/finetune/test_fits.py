"""Rows looked at together are found what each is found alone: what is too long, and what is in their texts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from app import _find_pii
from finetune import fits, texts
from finetune.findings import Findings, Looks
from finetune.packing import IGNORED
from finetune.problems import Problem
from finetune.recipe import load_recipe
from finetune.tasks.language import load_tokenizer
from finetune.validate import validate
from tests.finetune.tiny import llama

LENGTH = 90


def rows_of(task: str, draw: random.Random) -> list[dict[str, Any]]:
    """Rows whose prompts and answers are of all lengths around the bound."""

    def said(most: int) -> str:
        return " ".join(draw.choices(("why", "the", "fox", "sees", "hills", "stone", "ünder", "it"), k=draw.randint(1, most)))

    found = []
    for number in range(150):
        prompt, answer = f"{said(20)} {number}", said(20)
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        more = [{"role": "user", "content": said(9)}, {"role": "assistant", "content": said(9)}]
        found.append(
            {
                "sft-instruct": {"prompt": prompt, "response": answer},
                "sft-chat": {"messages": messages + (more if number % 3 == 0 else [])},
                "dpo": {"prompt": prompt if number % 3 else messages[:1], "chosen": answer, "rejected": said(20) + " no"},
            }[task]
        )
    return found


@pytest.mark.parametrize("task", ["sft-instruct", "sft-chat", "dpo"])
def test_rows_are_too_long_where_a_run_would_find_them_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    file, base = tmp_path / "rows.jsonl", llama(tmp_path / "base", template=True)
    rows = rows_of(task, random.Random(3))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer: Any = load_tokenizer(base)
    masked, long = set(), []
    for line, row in enumerate(rows, 1):
        if task == "dpo":
            made = [texts.answered(tokenizer, row["prompt"], row[key], print) for key in ("chosen", "rejected")]
        else:
            made = [texts.ENCODERS[task](tokenizer, row, print)]
        given = [each for each in made if each is not None]
        long += [line] if max(len(each.ids) for each in given) > LENGTH else []
        masked |= {line} if any(set(each.labels[1:LENGTH]) == {IGNORED} for each in given) else set()
    assert 10 < len(masked) < len(long) < 140
    recipe = load_recipe(
        {"task": task, "name": "x", "base_model": str(base), "data": {"train": str(file)}, "context_length": LENGTH}
    )
    monkeypatch.setattr(fits, "BATCH", 16)
    report = validate(recipe)
    assert {each.line for each in report.problems if each.code == "all_masked"} == masked
    told = [each.message for each in report.problems if each.code == "truncated"]
    assert [each.split(" (")[0] for each in told] == [f"{len(long)} of 150 rows"]
    monkeypatch.setattr(fits, "COUNTED", 5)
    told = [each.message for each in validate(recipe).problems if each.code == "truncated"]
    assert told[0].startswith("At least ")


def test_texts_that_are_looked_at_together_stay_apart() -> None:
    """What one ends with and the next begins with makes nothing of the two, and what one has hides nothing of another."""
    halves = ["my card is 4111 1111", "1111 1111", "tel", "5551234", "anna@", "example.org", "DE89 3704 0044", "x 532 0130 00"]
    whole = [
        "a@b.org",
        "-----BEGIN PRIVATE KEY-----",
        "call me at +49 30 1234567",
        "card 4111 1111 1111 1111",
        "é b@c.org",
        "x\0",
    ]
    given = [*halves, "plain", *whole, *(f"row {number}" for number in range(100)), "caf\u00c3\u00a9", "</s>", "c@d.org"]
    problems = Findings()
    looks = Looks(problems, _find_pii, ["</s>", ""])
    for line, text in enumerate(given, 1):
        looks.add("f", line, (text,), lambda _: "text")
    looks.done()
    alone: list[Problem] = []
    for line, text in enumerate(given, 1):
        one = Findings()
        each = Looks(one, _find_pii, ["</s>"])
        each.add("f", line, (text,), lambda _: "text")
        each.done()
        alone += one
    assert sorted(map(str, problems)) == sorted(map(str, alone))
    assert len(problems) == len(whole) + 3
    assert {each.line for each in problems if each.code == "pii"} == {10, 11, 12, 13, 14, len(given)}
