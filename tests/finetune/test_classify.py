"""Training on embeddings: better than the baseline where embeddings say more, calibrated, repeatable, kept."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from finetune.classifier import LinearClassifier
from finetune.data import DataError, Row
from finetune.recipe import ClassifyRecipe, load_recipe
from finetune.tasks import classify
from finetune.tasks.classify import fit, fit_cached

ANIMALS, TOOLS = ("cat", "dog", "cow", "hen"), ("saw", "axe", "nut", "rod")
VECTORS = {
    word: np.random.default_rng(i).normal(size=16) + (3 if word in ANIMALS else -3) for i, word in enumerate(ANIMALS + TOOLS)
}


def embed(texts: Sequence[str]) -> np.ndarray:
    """An encoder that knows words: the mean of the vectors of those in the text."""
    rows = [np.mean([VECTORS.get(word, np.zeros(16)) for word in text.split()], axis=0) for text in texts]
    return (np.array(rows) / 5).astype(np.float32)


def rows_of(n: int, words: int = 4, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        label = ("animal", "tool")[i % 2]
        mostly, rest = (ANIMALS, TOOLS) if label == "animal" else (TOOLS, ANIMALS)
        picked = [*rng.choice(mostly, words), *rng.choice(rest, words - 1), *rng.choice(["the", "a", "of"], 2)]
        found.append(Row(" ".join(rng.permutation(picked)) + f" {i}", label, i + 1))
    return found


def mislabelled(rows: Sequence[Row]) -> list[Row]:
    """Every seventh with the other label, so that nothing can be sure."""
    return [Row(row.text, ("animal", "tool")[(i % 2) ^ (i % 7 == 0)], row.line) for i, row in enumerate(rows)]


def recipe(*overrides: str):
    return load_recipe({"name": "t", "data": {"train": "x"}}, overrides)


def test_it_learns_and_reports_beside_a_baseline() -> None:
    told: list[tuple[str, int, int]] = []
    result = fit(rows_of(200), embed, recipe(), evaluation=rows_of(100, seed=1), progress=lambda *news: told.append(news))
    assert result.metrics["macro_recall"] > 0.7
    assert set(result.baseline) == set(result.metrics) == {"accuracy", "macro_recall", "macro_f1", "log_loss", "ece"}
    assert result.judged_on == "evaluation file"
    assert sum(map(sum, result.confusion)) == 100
    assert {C for C, _ in result.curve} == {0.3, 1, 3, 10, 30, 100, 300}
    assert min(result.curve, key=lambda point: point[1])[0] == result.C
    assert {"embed", "embed evaluation", "choose C", "baseline"} == {stage for stage, _, _ in told}


def test_metrics_are_scikit_learns() -> None:
    from sklearn.metrics import f1_score, log_loss, recall_score

    held_out = mislabelled(rows_of(100, seed=1))
    result = fit(mislabelled(rows_of(60)), embed, recipe(), evaluation=held_out)
    p = result.classifier.predict_proba(embed([row.text for row in held_out])).astype(float)
    p /= p.sum(axis=1, keepdims=True)
    truth, said = [row.label for row in held_out], result.classifier.predict(embed([row.text for row in held_out]))
    assert result.metrics["macro_recall"] == pytest.approx(recall_score(truth, said, average="macro"))
    assert result.metrics["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro"))
    assert result.metrics["log_loss"] == pytest.approx(log_loss(truth, p), rel=1e-3)


def test_the_temperature_never_hurts_log_loss_and_mends_overconfidence() -> None:
    rows = mislabelled(rows_of(80))
    result = fit(rows, embed, recipe("C=[100000]"))
    assert result.judged_on == "cross-validation"
    assert result.calibration["log_loss_after"] < result.calibration["log_loss_before"]
    assert result.classifier.temperature > 1
    assert fit(rows, embed, recipe("calibration=none")).classifier.temperature == 1


def test_two_and_three_classes_agree_with_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    rows = rows_of(90, words=2)
    three = [Row(row.text, row.label if i % 3 else "other", row.line) for i, row in enumerate(rows)]
    for some in (rows, three):
        X, y = embed([row.text for row in some]), [row.label for row in some]
        ours = fit(some, embed, recipe("C=[1]", "calibration=none")).classifier
        np.testing.assert_allclose(
            ours.predict_proba(X), LogisticRegression(C=1, max_iter=1000).fit(X, y).predict_proba(X), atol=1e-4
        )


def test_it_is_the_same_each_time() -> None:
    one, other = (fit(rows_of(60), embed, recipe()).classifier for _ in range(2))
    np.testing.assert_array_equal(one.weights, other.weights)
    assert one.temperature == other.temperature


def test_no_warning_leaks_when_the_solver_gives_up() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(rows_of(60), lambda texts: embed(texts) * np.float32(1e4), recipe("C=[1000000000]"))
    assert not caught
    assert result.metrics["accuracy"] > 0


def test_a_label_with_one_row_is_named() -> None:
    with pytest.raises(ValueError, match="'rare' 1"):
        fit([*rows_of(10), Row("x", "rare", 11)], embed, recipe())


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    import json

    path = tmp_path / "router.jsonl"
    path.write_text("\n".join(json.dumps({"text": row.text, "label": row.label}) for row in rows_of(60)))
    return path


def test_a_kept_classifier_is_used_until_something_changes(train_file: Path, tmp_path: Path) -> None:
    calls = 0

    def counting(texts: Sequence[str]) -> np.ndarray:
        nonlocal calls
        calls += 1
        return embed(texts)

    cache = tmp_path / "cache"
    first = fit_cached(train_file, counting, cache, encoder="e1")
    assert calls == 1
    again = fit_cached(train_file, counting, cache, encoder="e1")
    assert calls == 1
    np.testing.assert_array_equal(first.weights, again.weights)
    fit_cached(train_file, counting, cache, encoder="e2")
    assert calls == 2
    train_file.write_text(train_file.read_text() + '\n{"text": "a new one", "label": "tool"}')
    fit_cached(train_file, counting, cache, encoder="e1")
    assert calls == 3
    for kept in cache.iterdir():
        kept.write_text(kept.read_text()[:100])  # torn
    assert isinstance(fit_cached(train_file, counting, cache, encoder="e1"), LinearClassifier)
    assert calls == 4
    assert not [file for file in cache.iterdir() if file.suffix != ".json"]


def test_reading_a_kept_classifier_imports_no_training_code(train_file: Path, tmp_path: Path) -> None:
    fit_cached(train_file, embed, tmp_path / "cache", encoder="e")
    code = (
        "import sys, pathlib; from finetune.tasks.classify import fit_cached\n"
        f"fit_cached(pathlib.Path({str(train_file)!r}), None, pathlib.Path({str(tmp_path / 'cache')!r}), encoder='e')\n"
        "assert not {'sklearn', 'scipy', 'pydantic', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=100, env={**os.environ})


def test_a_bad_file_trains_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}')
    with pytest.raises(DataError, match="missing_key"):
        fit_cached(tmp_path / "bad.jsonl", embed, tmp_path / "cache", encoder="e")
    assert not (tmp_path / "cache").exists()


def test_a_baseline_of_many_texts_is_the_same_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "MANY", 10)
    texts = [f"{'good fine' if i % 3 else 'bad poor'} film {i % 7}" for i in range(60)]
    recipe = load_recipe({"name": "x", "data": {"train": "none"}, "folds": 2})
    y, asked = np.array([int(bool(i % 3)) for i in range(60)]), ["a fine film", "poor"]
    assert isinstance(recipe, ClassifyRecipe)
    alone = classify.baseline(texts, y, asked, recipe, None)
    assert (classify.baseline(texts, y, asked, recipe, None, 2) == alone).all()
    assert (alone.argmax(1) == [1, 0]).all()
