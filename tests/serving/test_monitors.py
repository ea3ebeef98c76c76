from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving.monitors import Monitor, alert
from tests.live import serving, wait_until


class Hook(BaseHTTPRequestHandler):
    """A webhook that keeps what it is told."""

    told: list[Any]
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.told.append((self.headers["host"], json.loads(body)))
        self.send_response(self.status)
        self.send_header("location", "http://127.0.0.1:1/")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def hooked(status: int = 200) -> Iterator[tuple[int, list[Any]]]:
    told: list[Any] = []
    server = HTTPServer(("127.0.0.1", 0), type("Own", (Hook,), {"told": told, "status": status}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, told
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_a_webhook_is_reached_where_upstreams_may_be_alone() -> None:
    with hooked() as (port, told):
        url = f"http://localhost:{port}/alerts?team=a"
        assert "private network" in str(alert((), url, {"type": "drift"}))
        assert told == []
        assert alert(("localhost",), url, {"type": "drift"}) is None
        assert told == [(f"localhost:{port}", {"type": "drift"})]
    assert "not known here" in str(alert((), "http://no-such-host.invalid/x", {}))
    assert "ConnectError" in str(alert(("localhost",), url, {}))
    with hooked(302) as (port, told):
        assert "answered 302" in str(alert(("localhost",), f"http://localhost:{port}/", {}))
        assert len(told) == 1, "no redirect is followed"


@pytest.mark.parametrize(
    "change",
    [
        {"sample": 0}, {"sample": 1.5}, {"window": 5}, {"alpha": 1}, {"webhook": "ftp://x"}, {"webhook": "http://a:b@x/"},
        {"scorers": ["colour"]}, {"colour": "red"}, {"endpoint": ""},
    ],
)  # fmt: skip
def test_a_monitor_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Monitor(**{"endpoint": "assistant", **change})


@pytest.mark.timeout(300)  # MLflow's server starts beside it
def test_live_answers_get_their_scores_on_their_trace_and_drift_is_told(tmp_path: Path) -> None:
    """A running server: calls go on, their traces carry the scores, and questions of another kind are told to a webhook."""
    with hooked() as (port, told):
        config = tmp_path / "smalti.yaml"
        config.write_text(
            f"upstream_hosts: [localhost]\nmonitors:\n  - endpoint: assistant\n    sample: 1\n    scorers: [groundedness]\n"
            f"    reference: 30\n    window: 30\n    webhook: http://localhost:{port}/drift\n"
        )
        docs = tmp_path / "docs"
        docs.mkdir()
        (docs / "state.md").write_text("# State\n\nThe state of a server is kept in the folder that SMALTI_HOME names.\n")
        with serving(tmp_path / "home", docs, config=config, SMALTI_MLFLOW="true") as live, live.client() as http:

            def ask(question: str) -> str:
                answer = http.post("/v1/responses", json={"model": "assistant", "input": question})
                assert answer.status_code == 200, answer.text
                return answer.headers["x-request-id"]

            first = ask("Where is the state of a server kept?")
            for number in range(29):
                ask(f"Where is the state of server {number} kept?")
            for number in range(30):
                ask(f"Who sang the {number}th song of the opera in Vienna while it was raining all of that long evening?")

            def status() -> dict[str, Any]:
                return http.get("/api/2.0/smalti/monitors/assistant").json()

            wait_until(lambda: status()["calls"] == 60 and told, 120)
            host, alerted = told[0]
            assert host == f"localhost:{port}"
            assert {"question_length", "inputs"} <= {series["name"] for series in alerted["series"] if series["drifted"]}
            wait_until(lambda: status()["alerts"][0]["delivered"], 60)
            assert status()["problem"] is None

            def assessments() -> list[Any]:
                found = http.get(f"/api/3.0/mlflow/traces/tr-{first}")
                return found.json()["trace"]["trace_info"].get("assessments", []) if found.status_code == 200 else []

            wait_until(assessments, 120)
            said = assessments()[0]
            assert (said["assessment_name"], said["source"]["source_type"]) == ("groundedness", "CODE")
            assert 0 <= said["feedback"]["value"] <= 1
            shown = http.get("/api/2.0/smalti/monitors/assistant/scores?limit=5").json()["scores"]
            assert len(shown) == 5
            assert http.get("/api/2.0/smalti/monitors/none").status_code == 404
            assert http.get("/api/2.0/smalti/monitors", headers={"Authorization": "Bearer no"}).status_code == 403
