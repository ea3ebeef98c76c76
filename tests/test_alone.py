"""A gateway alone: what it does not need is not loaded until it is asked for, and answers then."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx

from tests.live import smalti, start, stop

HEAVY = {"langgraph", "langchain_core", "langsmith", "httpx", "mcp", "onnxruntime", "tokenizers", "nicegui", "sklearn", "scipy"}
HEAVY |= {"rich", "mlflow", "chromadb", "torch", "transformers", "pandas", "duckdb"}


def test_a_gateway_alone_loads_what_it_is_asked_for_and_no_more(tmp_path: Path) -> None:
    external = {"name": "m", "provider": "custom", "base_url": "http://127.0.0.1:9/v1"}
    endpoint = {"name": "up", "config": {"served_entities": [{"external_model": external}]}}
    config = tmp_path / "smalti.yaml"
    config.write_text(json.dumps({"endpoints": [endpoint]}))
    live = start(tmp_path / "home", config=config, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    try:
        told = (tmp_path / "home.log").read_text()
        loaded = {name.split(".")[0] for name in re.findall(r"^import time:.*\| +(\S+)$", told, re.MULTILINE)}
        assert "fastapi" in loaded
        assert not loaded & HEAVY

        with live.client() as client:
            refused = client.post("/v1/chat/completions", json={"model": "up", "messages": [{"role": "user", "content": "Hi"}]})
            assert refused.status_code in (502, 503), refused.text
            embedded = client.post("/v1/embeddings", json={"model": "all-minilm-l6-v2", "input": "a word"})
            assert len(embedded.json()["data"][0]["embedding"]) == 384
            question = {"model": "assistant", "input": "What is the limit for a hotel?"}
            assert "smalti index add" in client.post("/v1/responses", json=question).json()["error"]["message"]
            notes = tmp_path / "notes"
            notes.mkdir()
            (notes / "travel.md").write_text("# Travel\n\nThe limit for a hotel is 120 euros a night.\n")
            added = smalti("index", "add", "docs", str(notes), home=live.home)
            assert added.returncode == 0, added.stderr
            said = client.post("/v1/responses", json=question)
            assert "120 euros" in said.json()["output"][0]["content"][0]["text"], said.text
            kept = client.put("/store/items", json={"namespace": ["notes"], "key": "k", "value": {"text": "a bee"}})
            assert kept.status_code == 204, kept.text
            found = client.post("/store/items/search", json={"namespace_prefix": ["notes"]}).json()["items"]
            assert [item["value"] for item in found] == [{"text": "a bee"}]
        page = httpx.get(f"{live.url}/login", timeout=60, trust_env=False)
        assert page.status_code == 200
        assert "<html" in page.text
    finally:
        stop(live)
