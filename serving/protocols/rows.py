"""Rows for a classical model, in MLflow's scoring formats; the model's own process reads them against its signature.

Source: https://docs.databricks.com/api/workspace/servingendpoints/query
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from governance.call import CHUNK, Call, CallError, Event, bad_request
from serving.protocols import sse
from serving.protocols.errors import databricks_error
from serving.protocols.request import Request, present, tagged, take

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def decode(body: Mapping[str, Any], *, model: str) -> Request:
    """A request for predictions. Raises `CallError` (400) where the body has no rows, or has them twice."""
    used = [key for key in FORMATS if body.get(key) is not None]
    if len(used) != 1:
        found = " and ".join(used) or f"{', '.join(map(repr, list(body)[:5])) or 'nothing'}"
        raise bad_request(f"Send rows as exactly one of {', '.join(FORMATS)}; the body has {found}.", used[0] if used else None)
    payload = {used[0]: body[used[0]], "params": take(body, "params", dict)}
    return Request(model, present(payload), task="predict", stream=bool(take(body, "stream", bool)), **tagged(body))


class Encoder:
    """Predictions. The engine's result is `{"predictions": [...]}`; streamed, each chunk is sent as the model gives it."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._streamed = False

    def event(self, event: Event) -> bytes:
        if event.type == CHUNK:
            self._streamed = True
            return sse.data(event.data["delta"])
        if not event.terminal:
            return b""
        whole = b"" if self._streamed else sse.data(event.data["result"])  # of an engine that has no chunks
        return whole + sse.DONE

    def failure(self, error: CallError) -> bytes:
        return sse.data(databricks_error(error, self._call.request_id)) + sse.DONE

    def body(self, result: Mapping[str, Any]) -> bytes:
        return orjson.dumps(result)
