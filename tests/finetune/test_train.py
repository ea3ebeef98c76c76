"""A recipe's run is in MLflow, and its model comes back from the registry predicting the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.finetune.tiny import tracking

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from finetune.recipe import load_recipe
from finetune.train import run

home = Path(sys.argv[1])
def embed(texts):
    return np.array([[len(t), t.count("?"), t.count("!"), 1] for t in texts], np.float32) / 10

recipe = load_recipe({"name": "marks", "data": {"train": str(home / "train.jsonl"), "eval": str(home / "eval.jsonl")},
                      "C": [1, 10], "folds": 3, "register_to": "main.default.marks"})
stages = set()
done = run(recipe, embed, f"sqlite:///{home}/mlflow.db", lambda stage, *_: stages.add(stage), encoder="test/4",
           artifact_location=(home / "artifacts").as_uri())
json.dumps(done.as_dict())
assert "TF-IDF" in done.summary() and "main.default.marks version 1" in done.summary()
assert "choose C" in stages
assert done.registered and done.registered.version == "1"

import mlflow
mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
client = mlflow.MlflowClient()
logged = client.get_run(done.run_id)
assert logged.data.metrics["macro_recall"] == done.result.metrics["macro_recall"]
assert {"baseline_macro_recall", "cv_log_loss_before", "cv_ece_after"} <= set(logged.data.metrics)
assert logged.data.params["data.train"].endswith("train.jsonl") and len(logged.data.tags["data_sha256"]) == 64
paths = {a.path for a in client.list_artifacts(done.run_id)}
assert paths >= {"recipe.json", "confusion.json", "evaluation.png"}, paths
assert len(client.get_metric_history(done.run_id, "cv_log_loss")) == 2

version = client.get_model_version_by_alias("main.default.marks", "champion")
assert version.tags.get("data_sha256") == logged.data.tags["data_sha256"]
assert version.tags["encoder_fingerprint"] == "test/4", version.tags
info = mlflow.models.get_model_info("models:/main.default.marks@champion")
assert tuple(info.signature.inputs.inputs[0].shape) == (-1, 4)
assert info.metadata["labels"] == ["ask", "shout"]
model = mlflow.pyfunc.load_model("models:/main.default.marks@champion")
X = embed(["really?", "hurray!!", "well"])
frame = model.predict(X)
np.testing.assert_allclose(frame[["p_ask", "p_shout"]].to_numpy(), done.result.classifier.predict_proba(X), rtol=1e-4)
assert list(frame["label"]) == done.result.classifier.predict(X)
file = mlflow.artifacts.download_artifacts("models:/main.default.marks@champion/requirements.txt")
requirements = Path(file).read_text().split()
assert sorted(r.split("==")[0] for r in requirements) == ["mlflow", "numpy", "pandas"]
print("done")
"""


def test_a_run_is_logged_registered_and_loads(tmp_path: Path) -> None:
    for name, start, end in (("train", 0, 60), ("eval", 60, 90)):
        rows = [
            {"text": f"{'is it' if i % 2 else 'oh'} {i}{'?' if i % 2 else '!'}", "label": "ask" if i % 2 else "shout"}
            for i in range(start, end)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tracking(tmp_path)
    # In a process of its own: MLflow keeps global state, and warns about its own insides.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=90
    )
    assert done.stdout.strip().endswith("done"), done.stderr
    noise = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert noise == []
