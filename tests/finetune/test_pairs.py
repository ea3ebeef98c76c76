"""Rows of pairs and of questions: what is wrong is named by line and column, in a run and before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune import plan as planning
from finetune.data import DataError
from finetune.pairs import read
from finetune.ranking import mined, ranking_metrics, ranks_of
from finetune.recipe import RecipeError, load_recipe
from finetune.tasks.embed import loss_of
from finetune.text_model import best_span
from finetune.validate import validate
from tests.finetune.tiny import bert, pairs, questions

pytestmark = pytest.mark.timeout(400)

PAIR, QUESTION = {"query": "a", "positive": "b"}, {"question": "a", "context": "b c", "answer": "c"}


@pytest.mark.parametrize(
    ("task", "row", "code", "column"),
    [
        ("embed", {"query": "a"}, "missing_key", "positive"),
        ("embed", {"query": "a", "positve": "b"}, "missing_key", "positive"),
        ("embed", PAIR | {"query": " "}, "empty_query", "query"),
        ("embed", PAIR | {"positive": 5}, "wrong_type", "positive"),
        ("embed", PAIR | {"id": 5}, "unknown_key", "id"),
        ("embed", PAIR | {"score": 2}, "wrong_type", "score"),
        ("rerank", PAIR | {"negative": [""]}, "wrong_type", "negative"),
        ("rerank", PAIR | {"negative": ["B "]}, "conflicting_label", "negative"),
        ("reader", QUESTION | {"answer": None}, "missing_key", "answer"),
        ("reader", QUESTION | {"answer": "d"}, "no_such_answer", "answer"),
        ("reader", QUESTION | {"start": 0}, "no_such_answer", "answer"),
        ("reader", QUESTION | {"start": "0"}, "wrong_type", "start"),
        ("reader", QUESTION | {"context": ""}, "empty_context", "context"),
    ],
)
def test_rows_at_fault_are_named(tmp_path: Path, task: str, row: Any, code: str, column: str) -> None:
    file = tmp_path / "rows.jsonl"
    good = {"reader": QUESTION}.get(task, PAIR)
    file.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n{json.dumps(good)}\n")
    with pytest.raises(DataError) as caught:
        read(task, file)
    assert [(p.code, p.column, p.line) for p in caught.value.problems if p.severity == "error"] == [(code, column, 2)]
    found = validate(load_recipe({"task": task, "name": "x", "data": {"train": str(file)}}), lambda text: [])
    assert {(p.code, p.line) for p in found.problems} == {(code, 2), ("duplicate_row", 3)}


@pytest.mark.parametrize(
    ("task", "rows", "told"),
    [
        ("embed", [PAIR, PAIR | {"query": "A", "positive": "c", "negative": "B"}], {("conflicting_label", "negative", 2)}),
        ("rerank", [PAIR, PAIR | {"query": "d", "negative": "nan", "positive": "null"}], {("missing_value", "positive", 2)}),
        ("reader", [QUESTION, QUESTION | {"answer": ""}], {("conflicting_label", "answer", 2)}),
        ("reader", [QUESTION | {"answer": ""}], {("one_class", "answer", 1)}),
    ],
)
def test_rows_that_contradict_each_other_are_told(tmp_path: Path, task: str, rows: list[Any], told: set[Any]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, problems = read(task, file)
    assert len(kept) == len(rows)
    assert {(p.code, p.column, p.line) for p in problems} == told
    assert {p.severity for p in problems} == {"warning"}


def test_a_loss_asks_for_its_columns_and_an_evaluation_for_other_questions(tmp_path: Path) -> None:
    file, held_out = tmp_path / "rows.jsonl", tmp_path / "held.jsonl"
    file.write_text(json.dumps(PAIR))
    held_out.write_text(json.dumps({"query": "A", "positive": "other " * 200}))
    given = {"task": "embed", "name": "x", "data": {"train": str(file), "eval": str(held_out)}}

    def codes(**more: Any) -> set[str]:
        return {problem.code for problem in validate(load_recipe(given | more)).problems}

    assert codes() == {"leakage", "truncated"}
    assert codes(loss="cosent") == {"missing_key", "truncated"}
    assert codes(loss="triplet") == {"missing_key", "truncated"}
    with pytest.raises(RecipeError, match="a quarter of max_length"):
        load_recipe({"task": "reader", "name": "x", "data": {"train": str(file)}, "stride": 100})


@pytest.mark.parametrize("loss", ["multiple_negatives", "triplet", "cosent", "cosine"])
def test_losses_fall_as_pairs_come_together(loss: str) -> None:
    import torch

    recipe: Any = load_recipe({"task": "embed", "name": "x", "loss": loss, "data": {"train": "x"}})
    measure = loss_of(recipe)
    one, other = torch.eye(4), torch.roll(torch.eye(4), 1, 0)
    scores = torch.tensor([1.0, 1.0, 1.0, 1.0] if loss == "cosine" else [1.0, 0.8, 0.2, 0.0])
    apart = torch.cat([one[:2], other[2:]]) if loss == "cosent" else one
    wrong = torch.cat([other[:2], one[2:]]) if loss == "cosent" else other
    more = [other] if loss == "triplet" else []
    worse = [one] if loss == "triplet" else []
    assert measure([one, apart, *more], scores) < measure([one, wrong, *worse], scores)


def test_places_and_hard_negatives() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 5.0, 6.0]])
    assert ranks_of(scores, np.array([0, 0, 0])).tolist() == [1, 3, 3]
    assert ranking_metrics(np.array([1, 2, 11])) == pytest.approx(
        {"ndcg_at_10": (1 + 1 / np.log2(3)) / 3, "mrr_at_10": 0.5, "hit_at_1": 1 / 3, "recall_at_10": 2 / 3}
    )
    texts = ["red car", "red bus", "blue sky", "green sea", "old book"]
    [found] = mined(["a red car"], [0], texts, 2, 0)
    assert found[0] == 1, "the other red one"
    assert len(set(found) | {0}) == 3
    assert sorted(mined(["x"], [0], texts, 9, 0)[0]) == [1, 2, 3, 4]


def test_the_best_span_is_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        size, longest = int(draw.integers(3, 15)), int(draw.integers(1, 5))
        start, end, first = draw.normal(size=size), draw.normal(size=size), int(draw.integers(1, size - 1))
        every = [(start[i] + end[j], i, j) for i in range(first, size) for j in range(i, min(size, i + longest))]
        score, one, other = best_span(start, end, first, size, longest)
        assert (one, other) == max(every)[1:]
        assert score == pytest.approx(max(every)[0] - start[0] - end[0])


def test_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "ENOUGH", 0.0)  # one round of steps
    base = bert(tmp_path / "base")
    pairs(tmp_path / "pairs.jsonl", 40, 1)
    questions(tmp_path / "questions.jsonl", 40, 1)
    for task, more in (("embed", {}), ("rerank", {"method": "lora"}), ("reader", {"stride": 8})):
        file = tmp_path / ("questions.jsonl" if task == "reader" else "pairs.jsonl")
        given = {"task": task, "name": "x", "base_model": str(base), "data": {"train": str(file)}, "max_length": 32, "threads": 1}
        recipe = load_recipe(given | {"batch_size": 8, "gradient_checkpointing": False} | more)
        made = planning.plan(recipe)
        assert made.fits
        assert made.seconds
        assert made.memory.activations
    small = planning.plan(recipe, memory=made.memory.total / 1.2e9)
    assert not small.fits
    assert [knob.fits for knob in small.knobs] == [False] * (len(small.knobs) - 1) + [True]
