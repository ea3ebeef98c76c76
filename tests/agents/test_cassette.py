"""Cassettes replay a provider's bytes as they came, hold no key, and say what is not on them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from langchain_core.messages import HumanMessage

from agents import CassetteModel
from agents.cassette import Cassette, CassetteError
from tests.live import ROOT
from tests.serving.upstream import KEY, TEXT, Upstream

pytestmark = pytest.mark.anyio


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    opened = Upstream()
    yield opened
    opened.close()


async def stream(cassette: Cassette, url: str, model: str) -> tuple[int, list[bytes]]:
    async with (
        httpx.AsyncClient(transport=cassette, headers={"authorization": f"Bearer {KEY}"}) as client,
        client.stream("POST", f"{url}/chat/completions?api-key={KEY}", json={"model": model, "stream": True}) as answer,
    ):
        return answer.status_code, [chunk async for chunk in answer.aiter_raw()]


async def test_bytes_are_replayed_chunk_by_chunk(upstream: Upstream, tmp_path: Path) -> None:
    tape = Cassette(tmp_path / "tape.jsonl", record=True)
    told = {model: await stream(tape, upstream.url, model) for model in ("echo", "split", "busy", "whole")}
    asked = len(upstream.requests)
    again = Cassette(tmp_path / "tape.jsonl", record=False)
    for model in reversed(told):
        assert await stream(again, upstream.url, model) == told[model], model
    assert len(upstream.requests) == asked, "nothing was sent"


class Bytes(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        for byte in TEXT.encode():
            yield bytes([byte])


async def test_characters_that_are_cut_in_two_are_replayed_as_they_came(tmp_path: Path) -> None:
    provider = httpx.MockTransport(lambda request: httpx.Response(200, stream=Bytes()))
    told = await stream(Cassette(tmp_path / "tape.jsonl", record=True, transport=provider), "http://provider", "x")
    assert b"".join(told[1]) == TEXT.encode()
    assert len(told[1]) == len(TEXT.encode())
    assert await stream(Cassette(tmp_path / "tape.jsonl", record=False), "http://provider", "x") == told


async def test_no_key_is_kept(upstream: Upstream, tmp_path: Path) -> None:
    await stream(Cassette(tmp_path / "tape.jsonl", record=True), upstream.url, "fails")
    text = (tmp_path / "tape.jsonl").read_text()
    assert "boom" in text
    assert KEY not in text
    assert "x-internal" not in text


async def test_a_model_is_recorded_once_and_replayed_without_a_network(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model(name: str = "echo") -> CassetteModel:
        return CassetteModel(cassette=tmp_path / f"{name}.jsonl", model=name, base_url=upstream.url)

    weather = {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}}
    monkeypatch.setenv("SMALTI_RECORD", "1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    recorded = model()
    first = [chunk.text async for chunk in recorded.astream("Hello")]
    called = await recorded.bind_tools([weather]).ainvoke([HumanMessage("Weather?")])
    with pytest.raises(RuntimeError, match="HTTP 429"):
        await model("busy").ainvoke("Hello")
    monkeypatch.delenv("SMALTI_RECORD")
    monkeypatch.delenv("OPENAI_API_KEY")
    upstream.close()
    replayed = model()
    assert [chunk.text async for chunk in replayed.astream("Hello")] == first
    assert "".join(first) == TEXT
    same = await replayed.bind_tools([weather]).ainvoke([HumanMessage("Weather?")])
    assert isinstance(same.tool_calls, list)
    assert [(call["name"], call["args"]) for call in same.tool_calls] == [("weather", {"city": c}) for c in ("Rome", "Oslo")]
    assert (same.tool_calls, same.usage_metadata) == (called.tool_calls, called.usage_metadata)
    with pytest.raises(RuntimeError, match="HTTP 429"):
        await model("busy").ainvoke("Hello")
    with pytest.raises(CassetteError, match="asked once more"):
        await replayed.ainvoke("Hello")
    with pytest.raises(CassetteError, match=r"Goodbye.*SMALTI_RECORD=1"):
        await model().ainvoke("Goodbye")


PROJECT = """
import httpx, pytest
from agents import ScriptedModel

async def _ask(url):
    async with httpx.AsyncClient() as client:
        return (await client.get(url)).status_code

def reach(url):
    import asyncio
    return asyncio.run(_ask(url))

def test_scripted():
    assert ScriptedModel(replies=["yes"]).invoke("?").text == "yes"

def test_real():
    reach("https://api.example.com/v1/models")

def test_caught():
    try:
        reach("https://api.example.com/v1/models")
    except Exception as error:
        print(error)

def test_ollama():
    httpx.get("http://127.0.0.1:11434/api/tags")

@pytest.mark.real_model
def test_marked():
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://127.0.0.1:11434/api/tags", timeout=1)
"""


def test_a_real_models_call_in_a_test_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(PROJECT)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "agents.pytest_plugin", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | {"PYTHONPATH": str(ROOT)}

    def run(*more: str) -> str:
        done = subprocess.run([*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        return done.stdout + done.stderr

    (tmp_path / "smalti.yaml").write_text("")
    told = run("-rf")
    assert "3 failed, 2 passed" in told, told
    for name in ("test_real", "test_caught", "test_ollama"):
        assert f"::{name}" in told
    assert "api.example.com:443" in told
    assert "mark a test that must ask a real model" in told
    (tmp_path / "smalti.yaml").unlink()
    told = run("-k", "caught or scripted")
    assert "2 passed" in told, "elsewhere it keeps out of the way"
