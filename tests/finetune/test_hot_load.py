"""What vLLM takes is loaded into it while it runs; what it would not take is told, key by key, before it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app import cli
from finetune.hot_load import hot_load
from finetune.lora_rules import lint
from finetune.runs import RunError
from serving.engines.ports import free_port
from tests.live import wait_until
from tests.serving import vllm_double

CONFIG = {"peft_type": "LORA", "r": 16, "bias": "none", "target_modules": ["q_proj", "v_proj"], "use_dora": False}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: lm_head"),
        ({"bias": "all"}, "bias: all"),
        ({"r": 1024}, "r: 1024"),
        ({"rank_pattern": {"q_proj": 600}}, "r: 600"),
        ({"target_modules": ["q_proj", "router"]}, "adapts no router"),
        ({"target_modules": ".*"}, "name the layers"),
        ({"peft_type": "IA3"}, "peft_type: IA3"),
    ],
)
def test_what_vllm_would_refuse_is_named(changes: dict[str, Any], told: str) -> None:
    verdict = lint(CONFIG | changes)
    assert not verdict.ok
    assert told in verdict.problems[0]


def test_what_vllm_needs_for_a_rank() -> None:
    assert lint(CONFIG) == lint(CONFIG | {"modules_to_save": None})
    assert lint(CONFIG).arguments == ("--enable-lora",)
    assert lint(CONFIG | {"r": 20}).arguments == ("--enable-lora", "--max-lora-rank", "32")


@pytest.fixture
def vllm(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    given = ["--model", "m", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "base", "--dtype", "auto"]
    command = [sys.executable, str(vllm_double.__file__), *given, "--tensor-parallel-size", "1", "--shutdown-timeout", "1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, "VLLM_API_KEY": "k"}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def up() -> bool:
        try:
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_until(up, 60)
        yield url
    finally:
        process.kill()
        process.wait()


def test_an_adapter_answers_in_a_vllm_that_runs(vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "home" / "finetune" / "tales-0123abcd"
    (run / "model").mkdir(parents=True)
    (run / "model" / "adapter_config.json").write_text(json.dumps(CONFIG))
    (run / "run.json").write_text(json.dumps({"name": "tales"}))
    monkeypatch.setenv("VLLM_API_KEY", "k")
    done = CliRunner().invoke(cli, ["--home", str(tmp_path / "home"), "finetune", "load", "tales", "--to", f"{vllm}/v1"])
    assert done.stdout.strip() == "tales", done.exception
    body = {"model": "tales", "messages": [{"role": "user", "content": "hello"}]}
    said = httpx.post(f"{vllm}/v1/chat/completions", json=body, headers={"authorization": "Bearer k"}, trust_env=False)
    assert said.status_code == 200
    assert "tales" in said.text
    with pytest.raises(RunError, match="refuses with 401"):
        hot_load(run / "model", "other", vllm, key="wrong")
    (run / "model" / "adapter_config.json").write_text(json.dumps(CONFIG | {"use_dora": True}))
    with pytest.raises(RunError, match="vLLM does not take this adapter: use_dora"):
        hot_load(run / "model", "other", vllm, key="k")
    with pytest.raises(RunError, match="no adapter_config"):
        hot_load(tmp_path, "other", vllm)
    with pytest.raises(RunError, match="did not answer"):
        hot_load(run / "model", "x", "http://127.0.0.1:9", endpoint="writer")
