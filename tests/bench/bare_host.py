"""A served model behind a bare Starlette handler that batches across requests: what a host can reach in one process.

    python tests/bench/bare_host.py MODEL PORT

MODEL is the folder of an MLflow model: a scikit-learn model of named columns, or the text classifier that the benchmark makes.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

MAX_BATCH = 64


def predictor(path: str) -> Any:
    """`predict(rows) -> list`, without MLflow around the model."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(path).get_raw_model() if "sklearn" in Path(path, "MLmodel").read_text() else None
    if model is not None:
        import numpy as np

        return lambda rows: model.predict(np.asarray(rows, dtype=float)).tolist()
    unwrapped = mlflow.pyfunc.load_model(path).unwrap_python_model()
    return lambda rows: unwrapped.predict_texts([row[0] for row in rows])


def bare(path: str, port: int) -> None:
    import orjson
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    predict = predictor(path)
    waiting: queue.SimpleQueue[tuple[Any, asyncio.Future[Any]]] = queue.SimpleQueue()

    def settle(batch: list[tuple[Any, asyncio.Future[Any]]], given: list[Any]) -> None:
        for (_, future), value in zip(batch, given, strict=True):
            if not future.done():
                future.set_result([value])

    def work(loop: asyncio.AbstractEventLoop) -> None:
        while True:
            batch = [waiting.get()]
            while not waiting.empty() and len(batch) < MAX_BATCH:
                batch.append(waiting.get())
            loop.call_soon_threadsafe(settle, batch, predict([row for row, _ in batch]))

    async def answer(request: Request) -> Response:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        waiting.put((orjson.loads(await request.body())["dataframe_split"]["data"][0], future))
        return Response(orjson.dumps({"predictions": await future}), media_type="application/json")

    async def ready(request: Request) -> Response:
        return Response("ok")

    app = Starlette(routes=[Route("/invocations", answer, methods=["POST"]), Route("/health", ready)])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", access_log=False))

    async def serve() -> None:
        threading.Thread(target=work, args=(asyncio.get_running_loop(),), daemon=True).start()
        await server.serve()

    import uvloop

    uvloop.run(serve())


if __name__ == "__main__":
    bare(sys.argv[1], int(sys.argv[2]))
