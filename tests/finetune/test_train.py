"""A recipe's run is in MLflow, and its model comes back from the registry predicting the same."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from filelock import FileLock, Timeout

from finetune.recipe import ClassifyRecipe, load_recipe
from finetune.train import run
from tests.finetune.tiny import tracking


def embed(texts: Any) -> np.ndarray:
    return np.array([[len(t), t.count("?"), t.count("!"), 1] for t in texts], np.float32) / 10


def held(file: Path) -> bool:
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True


def test_a_run_is_logged_registered_and_loads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, start, end in (("train", 0, 60), ("eval", 60, 90)):
        rows = [
            {"text": f"{'is it' if i % 2 else 'oh'} {i}{'?' if i % 2 else '!'}", "label": "ask" if i % 2 else "shout"}
            for i in range(start, end)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    uri, stages = tracking(tmp_path), set()
    data = {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")}
    recipe = load_recipe({"name": "marks", "data": data, "C": [1, 10], "folds": 3, "register_to": "main.default.marks"})
    assert isinstance(recipe, ClassifyRecipe)
    artifacts = (tmp_path / "artifacts").as_uri()
    real: Any = mlflow.MlflowClient
    locked: list[bool] = []

    def client_of(*given: Any) -> Any:
        """Its first making writes the tables of an empty database, which two that begin at once would break."""
        locked.append(held(tmp_path / "mlflow.db.lock"))
        return real(*given)

    monkeypatch.setattr(mlflow, "MlflowClient", client_of)
    done = run(recipe, embed, uri, lambda stage, *_: stages.add(stage), encoder="test/4", artifact_location=artifacts)
    assert locked[0]
    monkeypatch.undo()
    noise = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert noise == []
    json.dumps(done.as_dict())
    assert "TF-IDF" in done.summary()
    assert "main.default.marks version 1" in done.summary()
    assert "choose C" in stages
    assert done.registered
    assert done.registered.version == "1"

    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    logged = client.get_run(done.run_id)
    assert logged.data.metrics["macro_recall"] == done.result.metrics["macro_recall"]
    assert {"baseline_macro_recall", "cv_log_loss_before", "cv_ece_after"} <= set(logged.data.metrics)
    assert logged.data.params["data.train"].endswith("train.jsonl")
    assert len(logged.data.tags["data_sha256"]) == 64
    paths = {a.path for a in client.list_artifacts(done.run_id)}
    assert paths >= {"recipe.json", "confusion.json", "evaluation.png"}, paths
    assert len(client.get_metric_history(done.run_id, "cv_log_loss")) == 2

    version = client.get_model_version_by_alias("main.default.marks", "champion")
    assert version.tags.get("data_sha256") == logged.data.tags["data_sha256"]
    assert version.tags["encoder_fingerprint"] == "test/4", version.tags
    info: Any = mlflow.models.get_model_info("models:/main.default.marks@champion")
    assert tuple(info.signature.inputs.inputs[0].shape) == (-1, 4)
    assert info.metadata["labels"] == ["ask", "shout"]
    X = embed(["really?", "hurray!!", "well"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, about its own insides
        frame = mlflow.pyfunc.load_model("models:/main.default.marks@champion").predict(X)
    np.testing.assert_allclose(frame[["p_ask", "p_shout"]].to_numpy(), done.result.classifier.predict_proba(X), rtol=1e-4)
    assert list(frame["label"]) == done.result.classifier.predict(X)
    file = mlflow.artifacts.download_artifacts("models:/main.default.marks@champion/requirements.txt")
    requirements = Path(file).read_text().split()
    assert sorted(r.split("==")[0] for r in requirements) == ["mlflow", "numpy", "pandas"]


def test_the_alias_moves_only_to_what_is_better_on_the_same_rows(tmp_path: Path) -> None:
    def rows(name: str, start: int, end: int) -> str:
        made = [
            {"text": f"{i} {'yes' if i % 2 else 'no'}{'?' if i % 2 else '!'}", "label": f"l{i % 2}"} for i in range(start, end)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, made)))
        return str(tmp_path / f"{name}.jsonl")

    uri, place = tracking(tmp_path), (tmp_path / "artifacts").as_uri()

    def registered(how: Any, **more: Any) -> tuple[str, bool, str]:
        recipe = load_recipe({"name": "gate", "C": [1], "folds": 2, "register_to": "main.default.gate", **more})
        assert isinstance(recipe, ClassifyRecipe)
        run_ = run(recipe, how, uri, artifact_location=place)
        assert run_.registered
        assert ("alias champion" in run_.summary()) == run_.registered.champion
        return run_.registered.version, run_.registered.champion, run_.registered.reason

    def blind(texts: Any) -> np.ndarray:
        return np.ones((len(texts), 4), np.float32)

    train, judged = rows("train", 0, 40), rows("eval", 40, 60)
    assert registered(blind, data={"train": train, "eval": judged}) == ("1", True, "It is the first champion.")
    better = registered(embed, data={"train": train, "eval": judged})
    assert better[:2] == ("2", True)
    assert "It scores 1.0000, version 1 has 0.5000 on the same rows" in better[2]
    assert not registered(embed, data={"train": train, "eval": judged})[1]
    without = registered(embed, data={"train": train})
    assert without[1:] == (
        False,
        "Version 2, the champion, stays: it was judged on other rows. Name data.eval, on which both can be judged.",
    )
    mlflow.set_tracking_uri(uri)
    assert int(mlflow.MlflowClient().get_model_version_by_alias("main.default.gate", "champion").version) == 2
