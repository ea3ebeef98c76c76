"""Encoders of pairs learn from rows, are judged beside what needs no training, and are registered as what endpoints serve."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from finetune.recipe import load_recipe
from finetune.runs import TrainingRun
from tests.finetune.tiny import bert, pairs, questions, ranked, trained


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    bert(folder / "base")
    for name, rows, seed in (("train", 64, 1), ("eval", 16, 1)):
        every = pairs(folder / "every.jsonl", 80, seed).read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(every[:64] if name == "train" else every[64 : 64 + rows]))
    for name, rows, seed in (("ranked", 60, 3), ("ranked_eval", 20, 4)):
        ranked(folder / f"{name}.jsonl", rows, seed)
    questions(folder / "asked.jsonl", 160, 1)
    questions(folder / "asked_eval.jsonl", 40, 2)
    return folder


def recipe(made: Path, task: str, **more: Any) -> Any:
    name = {"reader": "asked", "rerank": "ranked"}.get(task)
    names = (f"{name}.jsonl", f"{name}_eval.jsonl") if name else ("train.jsonl", "eval.jsonl")
    given = {"task": task, "name": task, "base_model": str(made / "base"), "threads": 1, "batch_size": 16, "max_length": 32}
    given |= {"data": dict(zip(("train", "eval"), (str(made / name) for name in names), strict=True))}
    given |= {"learning_rate": 5e-3, "training_duration": "30ep", "layer_decay": 1.0, "register_to": f"main.default.{task}"}
    return load_recipe(given | more)


def loaded(run: TrainingRun, name: str) -> tuple[Any, Any]:
    """The champion and its version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(run.spec["tracking_uri"])
        version = mlflow.MlflowClient().get_model_version_by_alias(name, "champion")
        return mlflow.pyfunc.load_model(f"models:/{name}@champion"), version


@pytest.fixture(scope="module")
def embedded(made: Path) -> TrainingRun:
    return trained(recipe(made, "embed"), made / "home")


def test_an_encoder_finds_answers_better_than_the_one_it_began_as(made: Path, embedded: TrainingRun) -> None:
    result = embedded.state()["result"]
    assert result["metrics"]["ndcg_at_10"] > result["baseline"]["ndcg_at_10"] + 0.1
    model, version = loaded(embedded, "main.default.embed")
    found = model.predict({"input": ["was it good day", "day good"]})
    vectors = np.array([row["embedding"] for row in found["data"]])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert model.metadata.metadata["task"] == "llm/v1/embeddings"
    assert len(version.tags["data_sha256"]) == len(version.tags["base_sha256"]) == 64
    assert "base model" in version.description


def test_a_reranker_puts_the_right_text_first(made: Path) -> None:
    run = trained(recipe(made, "rerank", training_duration="10ep", candidates=2), made / "home")
    result = run.state()["result"]
    assert result["metrics"]["hit_at_1"] > result["baseline"]["hit_at_1"] + 0.2
    model, _ = loaded(run, "main.default.rerank")
    rows = pd.DataFrame({"query": ["was it day good"] * 2, "document": ["it is the good day 7", "it is the bad film 7"]})
    scores = model.predict(rows)
    assert 1 >= scores[0] > scores[1] >= 0


def test_a_reader_copies_the_answer_or_says_that_there_is_none(made: Path) -> None:
    run = trained(recipe(made, "reader", training_duration="10ep", stride=8), made / "home")
    result = run.state()["result"]
    assert result["metrics"]["f1"] > result["baseline"]["f1"] + 0.3
    model, _ = loaded(run, "main.default.reader")
    long = " ".join(["we saw the film"] * 20)
    rows = pd.DataFrame(
        {"question": ["was it so"] * 3, "context": ["we saw a great film 2", "we saw a film 2", f"{long} awful {long}"]}
    )
    frame = model.predict(rows)
    assert frame["answer"].tolist()[:2] == ["great", ""]
    row = frame.iloc[2]
    assert rows["context"][2][row["start"] : row["end"]] == row["answer"] == "awful"
