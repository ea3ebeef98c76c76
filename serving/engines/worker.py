"""The process of one served model: loads it with MLflow and answers requests over a socket.

Frames are a 4-byte big-endian length and a JSON array. From the server: the specification, then `[id, kind, body]`; to it:
`[0, "ready", {…}]` or `[0, "failed", {"message"}]`, then `[id, "result", body]`, `[id, "event", body]`… `[id, "end", null]`,
or `[id, "error", {"message", "status", "param"}]`. Only JSON crosses, so that a model cannot reach into the server.
"""

from __future__ import annotations

import itertools
import os
import queue
import socket
import struct
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson

from serving.engines.rows import FORMATS, Refused, reader

MAX_ROWS = 4096
"""Rows that are predicted at once, of however many requests."""
THREADS = 32
"""Conversations that a chat model or an agent answers at the same time."""
ROWWISE = {"mlflow.sklearn", "mlflow.xgboost", "mlflow.lightgbm", "mlflow.catboost", "mlflow.onnx"}
"""Loaders of models that look at each row by itself: requests may share a batch, and be sent again after a crash."""


class Wire:
    """The socket to the server."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._file = connection.makefile("rb")
        self._lock = threading.Lock()

    def receive(self) -> Any:
        """The next frame; None once the server is gone."""
        head = self._file.read(4)
        if len(head) < 4:
            return None
        body = self._file.read(struct.unpack(">I", head)[0])
        return orjson.loads(body)

    def send(self, identifier: int, kind: str, body: Any) -> None:
        raw = orjson.dumps([identifier, kind, body], option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS, default=_plain)
        with self._lock:
            self._socket.sendall(struct.pack(">I", len(raw)) + raw)


def _plain(value: Any) -> Any:
    """What JSON does not know: numbers of numpy, times and tables of pandas, objects of MLflow's."""
    for method in ("to_dict", "model_dump", "tolist", "isoformat"):
        if (give := getattr(value, method, None)) is not None:
            return value.to_dict(orient="records") if hasattr(value, "iloc") and hasattr(value, "columns") else give()
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    return str(value)


class Model:
    """A loaded model, and how its requests are read."""

    def __init__(self, path: str) -> None:
        import mlflow.pyfunc

        self.pyfunc = mlflow.pyfunc.load_model(path)
        meta = self.pyfunc.metadata
        flavor = meta.flavors["python_function"]
        self.loader = str(flavor.get("loader_module"))
        self.streams = bool(flavor.get("streamable"))
        self.read, self.table = reader(meta.signature)
        told = (meta.metadata or {}).get("rowwise")
        self.rowwise = self.table and (self.loader in ROWWISE if told is None else bool(told))
        self._params = meta.get_params_schema() is not None

    # --- rows ---

    def rows(self, bodies: list[Mapping[str, Any]]) -> list[Any]:
        """Predictions for each request, or the exception it failed with."""
        if len(bodies) > 1:
            return self._together(bodies)
        try:
            data, _ = self.read(bodies[0])
            return [self._predict(data, bodies[0].get("params"))]
        except Exception as error:
            return [error]

    def _together(self, bodies: list[Mapping[str, Any]]) -> list[Any]:
        import numpy as np

        results: list[Any] = [None] * len(bodies)
        groups: dict[tuple[str, ...], list[tuple[int, Any, int]]] = {}
        for position, body in enumerate(bodies):
            try:
                if body.get("params"):
                    results[position] = self._predict(self.read(body)[0], body["params"])
                    continue
                columns, count = self.read(body)
                groups.setdefault(tuple(columns), []).append((position, columns, count))
            except Exception as error:
                results[position] = error
        for names, group in groups.items():
            if len(group) == 1:
                results[group[0][0]] = self._attempt(group[0][1])
                continue
            joined = {name: np.concatenate([columns[name] for _, columns, _ in group]) for name in names}
            predictions = self._attempt(joined)
            total = sum(count for _, _, count in group)
            if isinstance(predictions, Exception) or not hasattr(predictions, "__len__") or len(predictions) != total:
                for position, columns, _ in group:  # one request's row must not fail the others
                    results[position] = self._attempt(columns)
                continue
            offset = 0
            for position, _, count in group:
                whole = predictions.iloc if hasattr(predictions, "iloc") else predictions
                results[position] = whole[offset : offset + count]
                offset += count
        return results

    def _attempt(self, data: Any) -> Any:
        try:
            return self._predict(data, None)
        except Exception as error:
            return error

    def _predict(self, data: Any, params: Any) -> Any:
        if not self.table:
            return self.pyfunc.predict(data, params=params) if params else self.pyfunc.predict(data)
        import pandas as pd

        frame = pd.DataFrame(data, copy=False)
        if params or self._params:
            return self.pyfunc.predict(frame, params=params)
        return self.pyfunc._model_impl.predict(frame)  # checked already: MLflow's own check costs more than most models

    # --- conversations ---

    def whole(self, body: dict[str, Any]) -> Any:
        return self.pyfunc.predict(self._conversation(body))

    def stream(self, body: dict[str, Any]) -> Iterator[Any]:
        yield from self.pyfunc.predict_stream(self._conversation(body))

    def _conversation(self, body: dict[str, Any]) -> dict[str, Any]:
        if hasattr(self.pyfunc._model_impl, "chat_model"):  # a ChatModel: its typed parameters have no field for these two
            extra = {key: body.pop(key) for key in ("tool_choice", "response_format") if key in body}
            if extra:
                body["custom_inputs"] = {**(body.get("custom_inputs") or {}), **extra}
        return body


class Server:
    """Answers frames until the server is gone: rows in one thread, batched; conversations each in their own."""

    def __init__(self, wire: Wire, model: Model) -> None:
        self._wire, self._model = wire, model
        self._rows: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(THREADS)
        self._cancelled: set[int] = set()

    def run(self) -> None:
        threading.Thread(target=self._receive, daemon=True).start()
        left: tuple[int, Any] | None = None
        while True:
            batch = [left or self._rows.get()]
            left = None
            if self._model.rowwise:
                size = _size(batch[0][1])
                while not self._rows.empty():
                    following = self._rows.get()
                    size += _size(following[1])
                    if size > MAX_ROWS:
                        left = following
                        break
                    batch.append(following)
            for (identifier, _), result in zip(batch, self._model.rows([body for _, body in batch]), strict=True):
                self._answer(identifier, result)

    def _answer(self, identifier: int, result: Any) -> None:
        if not isinstance(result, Exception):
            try:
                self._wire.send(identifier, "result", {"predictions": result})
                return
            except (TypeError, ValueError) as error:
                result = error
        self._fail(identifier, result)

    def _fail(self, identifier: int, error: Exception) -> None:
        if isinstance(error, OSError) and getattr(error, "errno", None) == 32:
            os._exit(0)
        if isinstance(error, Refused):
            self._wire.send(identifier, "error", {"message": error.message, "status": 400, "param": error.param})
            return
        traceback.print_exception(error)
        text = " ".join(str(error).split())[:500]
        wrong = type(error).__name__ == "MlflowException" and getattr(error, "error_code", "") in (
            "BAD_REQUEST",
            "INVALID_PARAMETER_VALUE",
        )
        message = text if wrong else f"The model failed: {type(error).__name__}: {text}"
        self._wire.send(identifier, "error", {"message": message, "status": 400 if wrong else 500, "param": None})

    def _receive(self) -> None:
        while True:
            frame = self._wire.receive()
            if frame is None:
                os._exit(0)  # the server is gone, or wants this to end: whatever the model is doing
            identifier, kind, body = frame
            if kind == "rows":
                self._rows.put((identifier, body))
            elif kind == "cancel":
                self._cancelled.add(identifier)
            else:
                self._pool.submit(self._converse, identifier, kind, body)

    def _converse(self, identifier: int, kind: str, body: Any) -> None:
        try:
            if kind == "stream" and self._model.streams:
                for event in self._model.stream(body):
                    if identifier in self._cancelled:
                        self._cancelled.discard(identifier)
                        return
                    self._wire.send(identifier, "event", event)
                self._wire.send(identifier, "end", None)
            else:
                self._wire.send(identifier, "result", self._model.whole(body))
        except Exception as error:
            self._fail(identifier, error)


def _size(body: Mapping[str, Any]) -> int:
    for key in FORMATS:
        if (value := body.get(key)) is not None:
            rows = value.get("data") if key == "dataframe_split" and isinstance(value, Mapping) else value
            return len(rows) if isinstance(rows, list) else 1
    return 1


def main(descriptor: int) -> None:
    warnings.simplefilter("ignore")
    wire = Wire(socket.socket(fileno=descriptor))
    spec = wire.receive()
    try:
        model = Model(spec["path"])
    except BaseException as error:
        traceback.print_exc()
        lines = list(itertools.islice((line for line in str(error).splitlines() if line.strip()), 3))
        wire.send(0, "failed", {"message": f"{type(error).__name__}: {' '.join(lines)[:500]}"})
        os._exit(1)
    sys.stdout.flush()
    wire.send(0, "ready", {"streams": model.streams, "rowwise": model.rowwise, "loader": model.loader})
    Server(wire, model).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
