"""vLLM's process as the server keeps it, against a real process that speaks its protocol, dies and hangs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from governance.call import Call, CallError, Event
from serving.engines.supervised import LoadFailed
from serving.engines.vllm import VllmModel
from tests.serving import vllm_double

pytestmark = pytest.mark.anyio


def made(folder: Path, path: str = "org/model", **options: Any) -> VllmModel:
    double = str(Path(vllm_double.__file__))
    return VllmModel(path, folder / "vllm.log", python=Path(sys.executable), module=[double], **options)


@contextlib.asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[VllmModel]:
    model = made(folder, **options)
    await model.start()
    try:
        yield model
    finally:
        await model.stop(0)


def call(prompt: str, **payload: Any) -> Call:
    return Call("big", "chat", {"input": [{"type": "message", "role": "user", "content": prompt}], **payload}, stream=True)


async def answer(model: VllmModel, asked: Call, adapter: str | None = None) -> dict[str, Any]:
    last: Event | None = None
    async for event in model.answer(asked, adapter):
        last = event
    assert last is not None
    return last.data["response"]


def text(response: dict[str, Any]) -> str:
    return response["output"][0]["content"][0]["text"].strip()


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_chats_and_bare_prompts_are_answered(tmp_path: Path) -> None:
    async with serving(tmp_path, context=512) as model:
        assert model.state == ("READY", "")
        response = await answer(model, call("hello"))
        assert text(response) == "base chat hello"
        assert response["model"] == "big"  # as the endpoint is called
        assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (3, 3)
        assert text(await answer(model, call("hello", raw=True))) == "base prompt hello"
        assert "--max-model-len 512" in model.build_logs()
        assert "serving org/model" in model.logs()
        assert os.environ.get("VLLM_API_KEY") is None
        await until(lambda: model.metrics.get("vllm:generation_tokens_total") == 6)
        assert set(model.metrics) == {"vllm:generation_tokens_total", "vllm:num_requests_running"}
        pid = model.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_adapters_are_loaded_unloaded_and_kept_over_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, arguments=["--enable-lora"]) as model:
        await model.load_adapter("poet", str(tmp_path))
        assert text(await answer(model, call("hello"), "poet")) == "poet chat hello"
        with pytest.raises(CallError, match="no such folder"):
            await model.load_adapter("other", str(tmp_path / "missing"))
        with pytest.raises(CallError, match="already"):
            await model.load_adapter("poet", str(tmp_path))
        with pytest.raises(CallError):
            await answer(model, call("DIE"))
        assert text(await answer(model, call("hello"), "poet")) == "poet chat hello"
        assert model.starts == 2
        await model.unload_adapter("poet")
        with pytest.raises(CallError) as gone:
            await answer(model, call("hello"), "poet")
        assert gone.value.status == 424
        assert model.adapters == []


async def test_a_death_in_the_middle_is_one_clear_error_and_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as model:
        stream: Any = model.answer(call("one two DIE three"))
        given = [(await anext(stream)).type for _ in range(5)]
        assert "response.output_text.delta" in given
        with pytest.raises(CallError, match=r"broke the connection|in the middle") as broken:
            [event async for event in stream]
        assert broken.value.status == 502
        await until(lambda: model.state[0] == "RECOVERING" or model.starts == 2)
        assert text(await answer(model, call("again"))) == "base chat again"
        assert model.starts == 2


async def test_one_that_hangs_while_it_seems_healthy_is_found_by_its_tokens(tmp_path: Path) -> None:
    async with serving(tmp_path, stall_timeout=1) as model:
        with pytest.raises(CallError):
            await answer(model, call("one HANG two"))
        model._stall = 60
        assert text(await answer(model, call("again"))) == "base chat again"
        assert model.starts == 2
        assert "made no progress" in model.build_logs()


async def test_a_client_that_reads_slowly_is_no_hang(tmp_path: Path) -> None:
    async with serving(tmp_path, stall_timeout=60) as model:
        stream: Any = model.answer(call("one two three"))
        await anext(stream)
        looks = model.logs().count("GET /metrics")
        await until(lambda: model.logs().count("GET /metrics") > looks)  # what moved before is counted
        model._progress -= 1000
        await until(lambda: model.logs().count("GET /metrics") > looks + 2)
        rest = [event.type async for event in stream]
        assert rest[-1] == "response.completed"
        assert model.starts == 1


async def test_more_than_may_be_open_is_refused_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, max_open=1) as model:
        stream: Any = model.answer(call("one two three"))
        await anext(stream)
        with pytest.raises(CallError) as refused:
            await answer(model, call("hello"))
        assert (refused.value.status, bool(refused.value.retry_after)) == (429, True)
        await stream.aclose()
        assert text(await answer(model, call("hello"))) == "base chat hello"


async def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    broken = made(tmp_path, "broken")
    with pytest.raises(LoadFailed, match="this model cannot be loaded"):
        await broken.start()
    assert broken.state[0] == "FAILED"
    with pytest.raises(CallError, match="not served"):
        await answer(broken, call("hello"))
    await broken.stop(0)
    missing = VllmModel("m", tmp_path / "log", python=tmp_path / "python")
    with pytest.raises(LoadFailed, match="smalti engines install vllm"):
        await missing.start()
    await missing.stop(0)


async def test_a_model_without_a_chat_template_is_given_a_plain_one(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer_config.json").write_text("{}")
    async with serving(tmp_path, path=str(model)) as plain:
        assert "--chat-template" in plain.build_logs()
    (model / "chat_template.jinja").write_text("x")
    async with serving(tmp_path, path=str(model)) as own:
        assert "--chat-template" not in own.build_logs()
