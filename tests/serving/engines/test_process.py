"""A model's process as the server sees it: a crash, a hang, a leak, a load that fails. The worker is real, without MLflow."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from governance.call import CallError
from serving.engines import process as processes
from serving.engines import supervised
from serving.engines.process import ModelProcess
from serving.engines.replicas import Replicas
from serving.engines.supervised import LoadFailed
from tests.serving.models import small

pytestmark = pytest.mark.anyio


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ModelProcess]:
    model = small(tmp_path / "model")

    def made(**given: Any) -> ModelProcess:
        return ModelProcess(model, tmp_path / "logs" / "model.log", module="tests.serving.light_worker", **given)

    return made


async def ask(model: ModelProcess | Replicas, word: str = "hello", *, again: bool = True) -> int:
    given = await model.ask("rows", {"dataframe_records": [{"word": word}]}, again=again)
    return int(given["predictions"][0])


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("idle", [None, 600])
async def test_killed_under_load_only_what_may_not_be_sent_again_fails(
    make: Callable[..., ModelProcess], idle: float | None
) -> None:
    model = make(idle_timeout=idle)
    await model.start()
    try:
        before = await ask(model)
        os.kill(before, signal.SIGSTOP)  # it answers nothing until it is killed
        answers = asyncio.gather(*(ask(model) for _ in range(20)))
        once = asyncio.create_task(ask(model, again=False))
        await until(lambda: model.open_calls >= 21)
        os.kill(before, signal.SIGKILL)
        assert {before} != set(await answers)
        with pytest.raises(CallError, match="ended while it answered") as lost:
            await once
        assert (lost.value.status, lost.value.retry_after) == (503, 1)
        assert model.starts == 2
        with pytest.raises(CallError, match="ended while it answered"):  # a request that kills the model is sent twice at most
            await ask(model, "die")
        assert await ask(model) not in (before, 0)
    finally:
        await model.stop(0)


async def test_a_call_that_hangs_is_given_up_and_the_next_is_answered(make: Callable[..., ModelProcess]) -> None:
    model = make(call_timeout=2)
    await model.start()
    try:
        with pytest.raises(CallError, match="no answer in 2 s") as hung:
            await ask(model, "hang")
        assert hung.value.status == 504
        model._call_timeout = 60
        assert await ask(model)
    finally:
        await model.stop(0)


async def test_a_model_that_hangs_is_started_anew_though_every_caller_has_left(make: Callable[..., ModelProcess]) -> None:
    model = make(call_timeout=2)
    await model.start()
    try:
        calls = [asyncio.create_task(ask(model, word)) for word in ("hang", "hello")]
        await until(lambda: model.open_calls == 2)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await until(lambda: model.starts == 2 and model.running)
        assert not model.open_calls
        model._call_timeout = 60
        assert await ask(model)
    finally:
        await model.stop(0)


async def test_what_a_model_raises_is_told_in_one_line_and_nobody_asks_again(make: Callable[..., ModelProcess]) -> None:
    model = make()
    await model.start()
    try:
        with pytest.raises(CallError) as failed:
            await ask(model, "raise")
        assert (failed.value.status, failed.value.code) == (400, "BAD_REQUEST")
        assert failed.value.message == "The model failed: KeyError: 'a word that is\\nnot known'"
        assert "Traceback" in model.logs()
    finally:
        await model.stop(0)


async def test_what_a_model_raises_and_prints_has_stars_for_its_secrets(make: Callable[..., ModelProcess]) -> None:
    model = make(secrets=["not known", ""])
    await model.start()
    try:
        with pytest.raises(CallError, match=r"KeyError: 'a word that is\\n\*\*\*'"):
            await ask(model, "raise")
        assert "Traceback" in model.logs()
        assert "not known" not in model.logs()
    finally:
        await model.stop(0)


async def test_what_a_model_starts_ends_with_it(make: Callable[..., ModelProcess]) -> None:
    model = make()
    await model.start()
    try:
        child = psutil.Process(await ask(model, "child"))
        assert child.is_running()
    finally:
        await model.stop(0)
    await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


async def test_a_leak_ends_the_process_and_says_so(make: Callable[..., ModelProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MEMORY_PAUSE", 0.05)
    model = make(memory_limit=1 << 30)
    await model.start()
    try:
        assert 0 < model.memory < 1 << 30
        with pytest.raises(CallError, match=r"held \d+ MB of memory, more than its limit of 1024 MB"):
            await ask(model, "eat", again=False)
        assert await ask(model)
        assert "more than its limit" in model.build_logs()
    finally:
        await model.stop(0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "ValueError: the weights are of another shape"),
        ("hang", "not loaded within 1 s"),
        ("eat", "more than its limit of 1024 MB"),
        ("SIGSEGV", r"while it loaded the model \(killed by SIGSEGV\). A native library of the model crashed"),
        ("SIGKILL", r"\(killed by SIGKILL\). Most likely the system had no memory left"),
    ],
)
async def test_a_load_that_fails_says_why(
    make: Callable[..., ModelProcess], monkeypatch: pytest.MonkeyPatch, how: str, message: str
) -> None:
    monkeypatch.setattr(processes, "MEMORY_PAUSE", 0.05)
    model = make(environment={"LOAD": how}, memory_limit=1 << 30, load_timeout=1 if how == "hang" else 100)
    with pytest.raises(LoadFailed, match=message):
        await model.start()
    assert model.state[0] == "FAILED"
    assert re.search(message, model.build_logs())
    with pytest.raises(CallError, match="not served"):
        await ask(model)
    await model.stop(0)


async def test_a_load_that_hangs_keeps_no_other_waiting(
    make: Callable[..., ModelProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TURN", 0.2)
    loads = asyncio.Semaphore(1)
    hung, model = make(loads=loads, environment={"LOAD": "hang"}), make(loads=loads)
    loading = asyncio.create_task(hung.start())
    await until(lambda: hung.pid)
    try:
        await model.start()
        assert await ask(model)
        assert not loading.done()
    finally:
        loading.cancel()
        await asyncio.wait([loading])
        await model.stop(0)
    assert not loads.locked()  # given back once, not twice
    await loads.acquire()
    assert loads.locked()


async def test_a_model_that_prints_without_end_fills_no_disk(
    make: Callable[..., ModelProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "KEPT_LOG", 4000)
    monkeypatch.setattr(supervised, "_LOG_PAUSE", 0.02)
    model = make()
    await model.start()
    try:
        for number in range(20):
            await ask(model, f"print {number}")
        await until(lambda: model.log.stat().st_size <= 4000)
        await ask(model, "print the end")
        assert "the end" in model.logs()  # what is printed afterwards is appended
    finally:
        await model.stop(0)


async def test_an_idle_model_ends_and_a_bounded_number_of_calls_waits_for_it(
    make: Callable[..., ModelProcess],
) -> None:
    model = make(idle_timeout=0.2, max_waiting=3)
    await model.start()
    try:
        await until(lambda: not model.running)
        assert (model.state, model.memory) == (("READY", "Scaled to zero; the next call starts it."), 0)
        waiting = [asyncio.create_task(ask(model)) for _ in range(3)]
        await asyncio.sleep(0)
        assert model.open_calls == 3
        with pytest.raises(CallError, match="3 requests open already") as refused:
            await ask(model)
        assert (refused.value.status, refused.value.retry_after) == (429, 1)
        assert len(set(await asyncio.gather(*waiting))) == 1
    finally:
        await model.stop(0)


async def test_replicas_share_the_calls_and_stand_in_for_each_other(make: Callable[..., ModelProcess]) -> None:
    model = Replicas([make(), make()])
    await model.start()
    try:
        pids = set(await asyncio.gather(*(ask(model, "wait") for _ in range(6))))
        assert len(pids) == 2
        os.kill(pids.pop(), signal.SIGKILL)
        await until(lambda: sum(process.running for process in model.processes) == 1)
        assert model.state[0] == "READY"
        assert await ask(model) in pids
        assert model.memory > 0
    finally:
        await model.stop(0)
