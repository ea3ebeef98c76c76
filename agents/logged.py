"""An agent as an MLflow model: a `ResponsesAgent` from code, over a copy of the project that declares it.

MLflow runs this file where the model is loaded. The project is served by a process of its own, on a free port of this machine
with a key that nobody else knows; it ends with the process that loaded the model, however that ends.
Source: https://mlflow.org/docs/latest/genai/flavors/responses-agent-intro
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
from mlflow.models import set_model
from mlflow.pyfunc.model import ResponsesAgent
from mlflow.types.responses import ResponsesAgentRequest, ResponsesAgentResponse, ResponsesAgentStreamEvent

_SERVER = """
import os, signal, sys, threading
def follow():
    sys.stdin.buffer.read()  # until whoever started this is gone
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=follow, daemon=True).start()
from app import main
main()
"""


class Logged(ResponsesAgent):
    """Answers as the agent's endpoint does."""

    def load_context(self, context: Any) -> None:
        self._endpoint = str(context.model_config["endpoint"])
        home, key = tempfile.mkdtemp(prefix="smalti-agent-"), secrets.token_hex(16)
        project = Path(home, "project")
        shutil.copytree(context.artifacts["project"], project)
        given = {"SMALTI_HOME": str(Path(home, "state")), "SMALTI_ADMIN_KEY": key, "SMALTI_MLFLOW": "false"}
        command = [sys.executable, "-P", "-c", _SERVER, "serve", "--json", "--port", "0"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=project, env=os.environ | given, text=True, **pipes)
        self.close = weakref.finalize(self, _end, self._process, home)  # at the latest, when this process ends
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the agent {self._endpoint} does not start; its server ended with {self._process.wait()}")
        headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=json.loads(line)["url"], headers=headers, timeout=None, trust_env=False)

    def _body(self, request: ResponsesAgentRequest) -> dict[str, Any]:
        return {**request.model_dump(exclude_none=True), "model": self._endpoint}

    def predict(self, request: ResponsesAgentRequest) -> ResponsesAgentResponse:
        answer = self._client.post("/v1/responses", json={**self._body(request), "stream": False})
        _check(answer)
        return ResponsesAgentResponse(**answer.json())

    def predict_stream(self, request: ResponsesAgentRequest) -> Generator[ResponsesAgentStreamEvent, None, None]:
        with self._client.stream("POST", "/v1/responses", json={**self._body(request), "stream": True}) as answer:
            if not answer.is_success:
                answer.read()
            _check(answer)
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    yield ResponsesAgentStreamEvent(**json.loads(line[6:]))


def _end(process: subprocess.Popen[str], home: str) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(home, ignore_errors=True)


def _check(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise RuntimeError((answer.json().get("error") or {}).get("message") or answer.text)


set_model(Logged())
