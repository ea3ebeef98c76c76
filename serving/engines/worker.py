"""The process of one served model: loads it with MLflow and answers requests over a socket.

Frames are a 4-byte big-endian length and a JSON array. From the server: the specification, then `[id, kind, body]`; to it:
`[0, "ready", {…}]` or `[0, "failed", {"message"}]`, then `[id, "result", body]`, `[id, "event", body]`… `[id, "end", null]`,
or `[id, "error", {"message", "status", "param", "failed"}]`; with each batch of rows comes `[0, "took", seconds]`. A request's
kind is `rows`, `chunks` (a row whose answer is streamed), `whole` or `stream` (conversations). Only JSON crosses, so that a model
cannot reach into the server.
"""

from __future__ import annotations

import importlib
import itertools
import os
import select
import socket
import struct
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from serving.engines import skops
from serving.engines.arrays import joined, stacked, takes_arrays
from serving.engines.frames import Frames
from serving.engines.lacking import lacking
from serving.engines.replies import plain, told
from serving.engines.rows import FORMATS, Refused, Table, listed, reader, typed

_LENGTH = struct.Struct(">I")
MAX_ROWS = 4096
"""Rows that are predicted at once, of however many requests."""
THREADS = 32
"""Conversations that a chat model or an agent answers at the same time."""
ROWWISE = {"mlflow.sklearn", "mlflow.xgboost", "mlflow.lightgbm", "mlflow.catboost", "mlflow.onnx"}
"""Loaders of models that look at each row by itself: requests may share a batch, and be sent again after a crash."""


class Wire:
    """The socket to the server. One thread receives; any thread sends."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._left: deque[Any] = deque()
        self._lock = threading.Lock()

    def receive(self) -> Any:
        """The next frame; None once the server is gone."""
        if not self._left:
            self._left = deque(self.receive_all())
        return self._left.popleft() if self._left else None

    def receive_all(self) -> list[Any]:
        """All frames that have come, at least one; an empty list once the server is gone."""
        frames, self._left = list(self._left), deque()
        while not frames:
            try:
                data = self._socket.recv(1 << 20)
            except OSError:
                return []
            if not data:
                return []
            buffer = self._buffer
            buffer += data
            position, end = 0, len(buffer)
            while end - position >= 4:
                (size,) = _LENGTH.unpack_from(buffer, position)
                if end - position - 4 < size:
                    break
                with memoryview(buffer) as view:
                    frames.append(orjson.loads(view[position + 4 : position + 4 + size]))
                position += 4 + size
            del buffer[:position]
        return frames

    def send(self, identifier: int, kind: str, body: Any) -> None:
        self.flush(self.frame(identifier, kind, body))

    @staticmethod
    def frame(identifier: int, kind: str, body: Any) -> bytes:
        raw = orjson.dumps([identifier, kind, body], option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS, default=plain)
        return _LENGTH.pack(len(raw)) + raw

    def flush(self, frames: bytes) -> None:
        with self._lock:
            self._socket.sendall(frames)


class Model:
    """A loaded model, and how its requests are read."""

    def __init__(self, path: str) -> None:
        import yaml

        about = yaml.safe_load((Path(path) / "MLmodel").read_text())
        scikit = about["flavors"].get("sklearn", {})
        if scikit.get("serialization_format") == "skops":  # before MLflow: it looks through all modules that there are
            skops.import_lean(Path(path) / scikit["pickled_model"])
        import mlflow.pyfunc

        if "MLFLOW_TRACKING_URI" not in os.environ:  # MLflow would make a database here, and keep every request in it
            with suppress(ImportError):  # a model's own environment may have an older one
                from mlflow.tracing import disable

                disable()
        # what the model requires was compared with this environment before: MLflow would list every installed file for it
        self.pyfunc = mlflow.pyfunc.load_model(path, suppress_warnings=True)
        meta = self.pyfunc.metadata
        flavor = meta.flavors["python_function"]
        self.loader = str(flavor.get("loader_module"))
        self.streams = bool(flavor.get("streamable"))
        self.read, self.table = (typed, False) if meta._is_signature_from_type_hint() else reader(meta.signature)
        self._open = getattr(meta.signature, "inputs", None) is None
        if self._open and self.loader == "mlflow.langchain":
            self.read = listed
        says = (meta.metadata or {}).get("rowwise")
        self.rowwise = self.table and (self.loader in ROWWISE if says is None else bool(says))
        self._params = meta.get_params_schema() is not None
        self._frames = Frames()
        self._arrays = (
            isinstance(self.read, Table) and self.loader == "mlflow.sklearn" and takes_arrays(self.pyfunc, self.read.names)
        )

    # --- rows ---

    def rows(self, bodies: list[Mapping[str, Any]]) -> list[Any]:
        """Predictions for each request, or the exception it failed with. Requests are predicted together where they can be."""
        results: list[Any] = [None] * len(bodies)
        plain: list[tuple[int, Any, int]] = []
        tables: dict[tuple[str, ...], list[tuple[int, Any, int]]] = {}
        for position, body in enumerate(bodies):
            params = body.get("params")
            if not params and isinstance(self.read, Table) and (data := self.read.rows(body)) is not None:
                plain.append((position, data, len(data)))
                continue
            try:
                columns, count = self.read(body)
                if not self.table:
                    results[position] = self._whole(columns, params)
                elif params:
                    results[position] = self._attempt(columns, params)
                else:
                    tables.setdefault(tuple(columns), []).append((position, columns, count))
            except Exception as error:
                results[position] = error
        if plain:
            self._together(plain, stacked, results)
        for group in tables.values():
            self._together(group, joined, results)
        return results

    def chunks(self, body: Mapping[str, Any]) -> Iterator[Any]:
        """What `predict_stream` gives for the one row of a request."""
        if not self.streams:
            raise Refused("The model does not stream: it has no predict_stream. Leave out 'stream'.", "stream")
        if self._open and isinstance(body.get("inputs"), Mapping):
            data, count = body["inputs"], 1  # as it was sent: nothing says that it has columns
        else:
            data, count = self.read(body)
        if count != 1:
            raise Refused(f"A model streams the answer to one row; the request has {count}.")
        if self.table:
            data = self._frames.of_columns(data)
        elif self._open and hasattr(data, "tolist"):
            data = data.tolist()
        given = {"params": params} if (params := body.get("params")) else {}
        try:
            yield from self.pyfunc.predict_stream(data, **given)
        except Exception as error:
            raise (lacking(self.pyfunc, data, error) if self._open else None) or error from None

    def _together(self, group: list[tuple[int, Any, int]], join: Any, results: list[Any]) -> None:
        """Predict the rows of several requests at once, each given by its position, its rows and how many they are."""
        predictions = self._attempt(join([rows for _, rows, _ in group]))
        if len(group) == 1:
            results[group[0][0]] = predictions
            return
        total = sum(count for _, _, count in group)
        if isinstance(predictions, Exception) or not hasattr(predictions, "__len__") or len(predictions) != total:
            for position, rows, _ in group:  # one request's row must not fail the others
                results[position] = self._attempt(join([rows]))
            return
        whole = predictions.iloc if hasattr(predictions, "iloc") else predictions
        offset = 0
        for position, _, count in group:
            results[position] = whole[offset : offset + count]
            offset += count

    def _whole(self, data: Any, params: Any) -> Any:
        """The predictions of one request that shares no batch."""
        try:
            return self._predict(data, params)
        except Exception as error:
            return (lacking(self.pyfunc, data, error) if self._open else None) or error

    def _attempt(self, data: Any, params: Any = None) -> Any:
        try:
            return self._predict(data, params)
        except (TypeError, ValueError) as error:
            return self._empty(data) or self._missing(data, error) or error
        except Exception as error:
            return error

    def _empty(self, data: Any) -> Refused | None:
        """What to tell of an error where there are no rows at all."""
        columns = list(data.values()) if isinstance(data, dict) else [data]
        if any(len(each) for each in columns):
            return None
        return Refused("The request has no rows, and the model needs at least one.")

    def _missing(self, data: Any, error: Exception) -> Refused | None:
        """What to tell of an error where values are missing: many models cannot do without; their signature does not say."""
        import pandas as pd

        if not isinstance(data, dict):
            if not isinstance(self.read, Table):
                return None
            data = dict(zip(self.read.names, data.T, strict=True))
        for name, values in data.items():
            missing = pd.isna(values)
            if missing.ndim == 1 and missing.any():
                why = " ".join(str(error).split())[:200]
                return Refused(
                    f"Column {name!r} has no value in row {int(missing.argmax())}, and the model needs one: {why}", name
                )
        return None

    def _predict(self, data: Any, params: Any) -> Any:
        if not self.table:
            return self.pyfunc.predict(data, params=params) if params else self.pyfunc.predict(data)
        matrix = not isinstance(data, dict)
        if not (matrix and self._arrays):
            names = self.read.names if isinstance(self.read, Table) else []
            data = self._frames.of_rows(data, names) if matrix else self._frames.of_columns(data)
        if params or self._params:
            return self.pyfunc.predict(data, params=params)
        return self.pyfunc._predict_fn(data)  # checked already: MLflow's own check costs more than most models

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
    """Answers frames until the server is gone: rows in this thread, as many as have come; conversations each in their own."""

    def __init__(self, wire: Wire, model: Model) -> None:
        self._wire, self._model = wire, model
        self._pool = ThreadPoolExecutor(THREADS)
        self._streams: dict[int, bool] = {}
        """Streams that run, and whether nobody listens any more."""

    def run(self) -> None:
        while frames := self._wire.receive_all():
            rows: list[tuple[int, Any]] = []
            for identifier, kind, body in frames:
                if kind == "rows":
                    rows.append((identifier, body))
                elif kind == "cancel":
                    if identifier in self._streams:
                        self._streams[identifier] = True
                else:
                    self._streams[identifier] = False
                    self._pool.submit(self._converse, identifier, kind, body)
            for batch in self._batches(rows):
                began = time.perf_counter()
                results = self._model.rows([body for _, body in batch])
                answers = [self._answer(identifier, result) for (identifier, _), result in zip(batch, results, strict=True)]
                took = self._wire.frame(0, "took", time.perf_counter() - began)
                self._wire.flush(b"".join((took, *answers)))
        os._exit(0)  # the server is gone, or wants this to end: whatever the model is doing

    def _batches(self, rows: list[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
        batch: list[tuple[int, Any]] = []
        size = 0
        for each in rows:
            more = _size(each[1])
            if batch and (not self._model.rowwise or size + more > MAX_ROWS):
                yield batch
                batch, size = [], 0
            batch.append(each)
            size += more
        if batch:
            yield batch

    def _answer(self, identifier: int, result: Any) -> bytes:
        if not isinstance(result, Exception):
            try:
                return self._wire.frame(identifier, "result", {"predictions": result})
            except (TypeError, ValueError) as error:
                result = error
        return self._wire.frame(identifier, "error", told(result))

    def _converse(self, identifier: int, kind: str, body: Any) -> None:
        try:
            if kind == "chunks" or (kind == "stream" and self._model.streams):
                for event in (self._model.chunks if kind == "chunks" else self._model.stream)(body):
                    if self._streams[identifier]:
                        return
                    self._wire.send(identifier, "event", event)
                self._wire.send(identifier, "end", None)
            else:
                self._wire.send(identifier, "result", self._model.whole(body))
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:
            self._wire.send(identifier, "error", told(error))
        finally:
            self._streams.pop(identifier, None)


def leave_with(connection: socket.socket) -> None:
    """End when the server has ended or let go of the socket, whatever the model is doing then: one that hangs reads none."""
    watched = select.poll()
    watched.register(connection, 0)  # the end of it is told in any case
    watched.poll()
    os._exit(0)


def _size(body: Mapping[str, Any]) -> int:
    for key in FORMATS:
        if (value := body.get(key)) is not None:
            rows = value.get("data") if key == "dataframe_split" and isinstance(value, Mapping) else value
            return len(rows) if isinstance(rows, list) else 1
    return 1


def warm() -> None:
    """Import what most models need; for a process that forks this one. Raises `ImportError`."""
    skops.import_lean()  # before MLflow, as in `Model`
    for name in ("mlflow.sklearn", "pandas", "sklearn.pipeline", "threadpoolctl", "yaml"):
        importlib.import_module(name)


def main(descriptor: int) -> None:
    warnings.simplefilter("ignore")
    connection = socket.socket(fileno=descriptor)
    threading.Thread(target=leave_with, args=(connection,), daemon=True).start()
    wire = Wire(connection)
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
