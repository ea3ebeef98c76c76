"""Several processes of one model, as one: each call goes to the one with the fewest open calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from serving.engines.process import ModelProcess

SIZES: Mapping[str, int] = {"Small": 1, "Medium": 2, "Large": 4}
"""Processes of each `workload_size`."""
_BEST = ("READY", "RECOVERING", "CREATING", "FAILED")


class Replicas:
    """What is asked of one `ModelProcess`, over several; there is at least one."""

    def __init__(self, processes: Sequence[ModelProcess]) -> None:
        self.processes = processes

    @property
    def info(self) -> Mapping[str, Any]:
        return next((process.info for process in self.processes if process.info), {})

    @property
    def state(self) -> tuple[str, str]:
        """The best state of any of them: while one answers, the model is served."""
        states = [process.state for process in self.processes]
        best = min((state for state, _ in states), key=_BEST.index)
        return best, " ".join(dict.fromkeys(message for _, message in states if message))

    @property
    def memory(self) -> int:
        return sum(process.memory for process in self.processes)

    def logs(self) -> str:
        return "".join(process.logs() for process in self.processes)

    def build_logs(self) -> str:
        return "".join(process.build_logs() for process in self.processes)

    async def start(self) -> None:
        """Load the model in all of them. Raises `LoadFailed`."""
        tasks = [asyncio.create_task(process.start()) for process in self.processes]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.stop(0)
            raise

    async def stop(self, drain: float = 20) -> None:
        await asyncio.gather(*(process.stop(drain) for process in self.processes))

    async def ask(self, kind: str, body: Any, *, again: bool = False) -> Any:
        return await self._next().ask(kind, body, again=again)

    async def stream(self, body: Any, *, kind: str = "stream") -> AsyncGenerator[Any, None]:
        async with aclosing(self._next().stream(body, kind=kind)) as given:
            async for item in given:
                yield item

    def _next(self) -> ModelProcess:
        ready = [process for process in self.processes if process.running] or self.processes
        return min(ready, key=lambda process: process.open_calls)
