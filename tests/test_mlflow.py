"""MLflow under the same host and keys: each turn is a trace there; without a key there is nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.live import serving, smalti, wait_until

LOOK = """
import json, sys, mlflow
client = mlflow.MlflowClient()
trace = client.get_trace("tr-" + sys.argv[1])
print(json.dumps({
    "spans": sorted({(span.name, str(span.span_type)) for span in trace.data.spans}),
    "user": trace.info.trace_metadata.get("mlflow.trace.user"),
    "session": trace.info.trace_metadata.get("mlflow.trace.session"),
    "tags": trace.info.tags,
    "feedback": [(a.name, a.value, a.rationale) for a in trace.info.assessments],
}))
"""


def test_a_turn_is_a_trace_with_route_retrieval_and_answer(tmp_path: Path) -> None:
    import json

    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "garden.md").write_text("# Garden\n\nThe roses are pruned in February, before they bud.\n")
    with serving(tmp_path / "home", docs, SMALTI_MLFLOW="true") as live, live.client() as client:
        body = {"model": "assistant", "input": "When are the roses pruned?", "conversation": "roses"}
        request_id = client.post("/v1/responses", json=body).headers["x-request-id"]
        search = {"max_results": 5}
        path = "/api/2.0/mlflow/experiments/search"
        wait_until(lambda: client.post(path, json=search).status_code == 200, 60)
        assert client.post(path, json=search, headers={"Authorization": ""}).status_code == 401
        assert "MLflow" in client.get("/mlflow/").text
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": live.url,
            "MLFLOW_TRACKING_TOKEN": live.key,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        }

        def look() -> dict:
            command = [sys.executable, "-W", "ignore", "-c", LOOK, request_id]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
            return json.loads(done.stdout) if done.returncode == 0 else {}

        wait_until(lambda: client.get(f"/api/3.0/mlflow/traces/tr-{request_id}").status_code == 200, 60)
        seen = look()
        reviewed = {"request_id": request_id, "value": True, "comment": "right"}
        assert client.post("/api/2.0/smalti/feedback", json=reviewed).status_code == 200
        made = smalti("eval", "dataset", "traces", "--endpoint", "assistant", "--out", str(tmp_path / "d.jsonl"), home=live.home)
        assert made.returncode == 0, made.stderr
        row = json.loads((tmp_path / "d.jsonl").read_text())
        assert (row["question"], row["feedback"]) == ("When are the roses pruned?", {"user_feedback": True})
        mirrored = smalti("eval", "dataset", "mirror", str(tmp_path / "d.jsonl"), "--json", home=live.home)
        assert json.loads(mirrored.stdout)["rows"] == 1, mirrored.stderr
    kinds = {kind for _, kind in seen["spans"]}
    assert {"AGENT", "RETRIEVER"} <= kinds
    assert "route" in {name for name, _ in seen["spans"]}
    assert (seen["user"], seen["session"]) == ("admin", "roses")
    assert seen["tags"]["mode"] == "extractive"
