"""An agent logged as an MLflow model answers, whole and streamed, where it is loaded again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from agents.scaffold import create
from tests.live import ROOT, mlflow_store

QUICK = """
from mlflow.utils import requirements_utils
requirements_utils._MODULES_TO_PACKAGES = {}  # else every file of every package is listed, for a warning
"""
LOOK = """
import json, sys, mlflow, psutil
model = mlflow.pyfunc.load_model(sys.argv[1])
asked = {"input": [{"role": "user", "content": sys.argv[2]}]}
whole = model.predict(asked)
events = list(model.predict_stream(asked))
servers = [child.pid for child in psutil.Process().children() if "app" in " ".join(child.cmdline())]
print(json.dumps({
    "text": whole["output"][0]["content"][0]["text"],
    "outputs": whole["custom_outputs"]["mode"],
    "deltas": "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta"),
    "last": events[-1]["type"],
    "servers": servers,
}))
"""


def test_logged_loaded_and_asked(tmp_path: Path) -> None:
    create("handbook", "rag", tmp_path)
    project = tmp_path / "handbook"
    (project / ".smalti").mkdir()
    (project / ".smalti" / "private").write_text("not part of the model")
    question = json.loads((project / "eval.jsonl").read_text().splitlines()[0])
    foreign = ("SMALTI_", "OPENAI_", "DATABRICKS_", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    mlflow_store(tmp_path)
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def python(*arguments: str) -> str:
        command = [sys.executable, "-W", "ignore", *arguments]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    uri = python("-c", f"{QUICK}from app import main; main()", "agents", "log", "handbook")
    seen = json.loads(python("-c", QUICK + LOOK, uri, question["question"]))
    assert question["expected_facts"][0] in seen["text"]
    assert seen["deltas"] == seen["text"]
    assert (seen["outputs"], seen["last"]) == ("extractive", "response.completed")
    assert len(seen["servers"]) == 1
    assert not psutil.pid_exists(seen["servers"][0]), "it ends with the process that loaded the model"
    assert not list(project.glob("mlruns/**/private"))
