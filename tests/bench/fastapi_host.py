"""A served model behind FastAPI in micro-batches of a millisecond, as a team would write it: the batched model without a host.

    python tests/bench/fastapi_host.py MODEL PORT

MODEL as for `bare_host`, which leaves out what costs here: the window, the parsed body and the response model.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pydantic import BaseModel

from tests.bench.bare_host import MAX_BATCH, predictor

WINDOW = 0.001
"""Seconds that a batch waits for more rows."""


class Split(BaseModel):
    """`dataframe_split`."""

    columns: list[str]
    data: list[list[Any]]


class Asked(BaseModel):
    """The body of a request."""

    dataframe_split: Split


class Predicted(BaseModel):
    """The body of an answer."""

    predictions: list[Any]


def serve(path: str, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI

    predict = predictor(path)
    waiting: asyncio.Queue[tuple[list[Any], asyncio.Future[Any]]] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def working(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(work())
        yield
        task.cancel()

    app = FastAPI(lifespan=working)

    async def work() -> None:
        while True:
            batch = [await waiting.get()]
            await asyncio.sleep(WINDOW)
            while not waiting.empty() and len(batch) < MAX_BATCH:
                batch.append(waiting.get_nowait())
            given = await asyncio.to_thread(predict, [row for row, _ in batch])
            for (_, future), value in zip(batch, given, strict=True):
                if not future.done():
                    future.set_result([value])

    @app.post("/invocations")
    async def answer(asked: Asked) -> Predicted:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting.put_nowait((asked.dataframe_split.data[0], future))
        return Predicted(predictions=await future)

    @app.get("/health")
    async def ready() -> str:
        return "ok"

    uvicorn.run(app, port=port, log_level="error", access_log=False)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
