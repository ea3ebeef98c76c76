"""Models' processes forked from one that imported before. The fork server and the worker are real, without MLflow."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.engines.forks import ForkServer
from serving.engines.process import ModelProcess
from serving.engines.supervised import LoadFailed
from tests.serving.engines.test_process import ask, until
from tests.serving.models import small

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="only Linux has pidfds")]
LIGHT = "tests.serving.light_worker"


@pytest.fixture
async def forks(tmp_path: Path) -> AsyncIterator[ForkServer]:
    made = ForkServer(tmp_path / "logs" / ".forks.log", module=LIGHT)
    yield made
    await made.close()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ModelProcess]:
    model = small(tmp_path / "model")

    def made(forks: ForkServer, **given: Any) -> ModelProcess:
        return ModelProcess(model, tmp_path / "logs" / "model.log", forks=forks, module=forks.module, **given)

    return made


def forked(forks: ForkServer) -> list[int]:
    assert forks.pid is not None
    return [child.pid for child in psutil.Process(forks.pid).children()]


async def imports_for_itself(model: ModelProcess, why: str) -> None:
    await model.start()
    try:
        assert psutil.Process(await ask(model)).ppid() == os.getpid()
        assert why in model.build_logs()
    finally:
        await model.stop(0)


async def test_a_forked_process_is_its_own_and_comes_back_after_a_crash(
    make: Callable[..., ModelProcess], forks: ForkServer, tmp_path: Path
) -> None:
    model = make(forks, environment={"TOKEN": "of-this-model"}, memory_limit=1 << 30)
    await model.start()
    try:
        first = await ask(model)
        assert forked(forks) == [first]
        assert os.getpgid(first) == first  # what it starts ends with it
        assert psutil.Process(first).cwd() == str(tmp_path / "logs")
        assert 0 < model.memory < 1 << 30
        os.kill(first, signal.SIGKILL)
        second = await ask(model)
        assert second != first
        assert forked(forks) == [second]  # and no zombie
        assert model.starts == 2
        assert "The model's process ended (killed by SIGKILL)" in model.build_logs()
    finally:
        await model.stop(0)
    assert forked(forks) == []


async def test_each_has_its_own_variables_and_fails_by_itself(make: Callable[..., ModelProcess], forks: ForkServer) -> None:
    good, bad = make(forks), make(forks, environment={"LOAD": "raise"})
    await good.start()
    try:
        with pytest.raises(LoadFailed, match="the weights are of another shape"):
            await bad.start()
        assert forked(forks) == [await ask(good)]
        assert "the weights are of another shape" in bad.logs()
    finally:
        await good.stop(0)
        await bad.stop(0)


async def test_the_end_of_the_fork_server_ends_no_model_and_the_next_start_has_another(
    make: Callable[..., ModelProcess], forks: ForkServer
) -> None:
    model, other = make(forks), make(forks)
    await model.start()
    try:
        before, gone = await ask(model), forks.pid
        assert gone is not None
        os.kill(gone, signal.SIGKILL)
        await until(lambda: forks.pid is None)
        assert await ask(model, again=False) == before
        await other.start()
        assert forked(forks) == [await ask(other)]
        assert forks.pid != gone
        os.kill(before, signal.SIGKILL)  # one whose fork server is gone is watched all the same
        assert await ask(model) in forked(forks)
    finally:
        await model.stop(0)
        await other.stop(0)


async def test_a_start_that_is_given_up_leaves_no_process(make: Callable[..., ModelProcess], forks: ForkServer) -> None:
    model = make(forks)
    await model.start()
    try:
        for turns in range(8):  # at another point of the start each time
            starting = asyncio.create_task((given_up := make(forks)).start())
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await given_up.stop(0)
        await forks.ask({"reap": os.getpid()})  # it is no child of it; all that was asked before is done by then
        mine = await ask(model)
        await until(lambda: forked(forks) == [mine])
    finally:
        await model.stop(0)


async def test_what_is_read_at_import_makes_a_process_import_for_itself(
    make: Callable[..., ModelProcess], forks: ForkServer
) -> None:
    model = make(forks, environment={"MKL_NUM_THREADS": "1"})
    await imports_for_itself(model, "MKL_NUM_THREADS is read when packages are imported")


async def test_a_fork_server_with_threads_is_not_forked(
    make: Callable[..., ModelProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import threading, time\nfrom {LIGHT} import main\n"
    code += "def warm():\n    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    code += "if __name__ == '__main__':\n    import sys\n    main(int(sys.argv[1]))\n"
    (tmp_path / "threaded_worker.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    forks = ForkServer(tmp_path / "logs" / ".forks.log", module="threaded_worker")
    model = make(forks)
    try:
        await imports_for_itself(model, "2 threads run once the packages are imported")
    finally:
        await forks.close()
