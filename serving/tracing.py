"""Each turn as an MLflow trace, and people's thumbs as feedback on it.

`Tracer` observes finished calls. It never delays an answer and its failure never fails one: records go to a bounded queue,
and a thread of its own sends them to the tracking server by OTLP (https://opentelemetry.io/docs/specs/otlp/#otlphttp) once
that is up. MLflow itself is not imported. Where the server is away for long, traces are dropped and counted; the journal is
what loses nothing.

A trace's id is `tr-` + the request id of the outer call. Span attributes are MLflow's
(https://mlflow.org/docs/latest/genai/tracing/opentelemetry/ingest/): type, inputs, outputs, token usage; user, session and
tags of the whole trace stand on the root span.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import queue
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from governance.call import Caller, CallRecord, unavailable
from governance.record import request_of
from serving.feedback import assess
from serving.tracking.base import TrackingServer

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[0-9a-f]{32}")
_OF_STEP = {"route": "CHAIN", "retrieval": "RETRIEVER", "model": "CHAT_MODEL", "answer": "CHAIN", "tool": "TOOL"}
_OF_TASK = {
    "agent": "AGENT",
    "chat": "CHAT_MODEL",
    "embeddings": "EMBEDDING",
    "search": "RETRIEVER",
    "classify": "TASK",
    "http": "TOOL",
}
_TRACED = frozenset({"agent", "chat"})
_MAX_VALUE = 256 * 1024
"""Characters of JSON that one span's inputs, or outputs, may have in a trace; more is cut. The journal has it whole."""
_MAX_OUTBOX = 64 * 2**20
"""Bytes of encoded traces that may wait for the tracking server; then the oldest go."""
_BATCH = 64
_WAITING_CHILDREN = 4096


@dataclass(slots=True)
class _Trace:
    request_id: str
    endpoint: str
    body: bytes
    failures: int = 0


class Tracer:
    """An `Observer` that turns finished calls into MLflow traces.

    Inner calls are told of before the call they were made for; they wait here and become its child spans. Each endpoint has
    an experiment of its name.

    Parameters
    ----------
    server: where traces go.
    capacity: records that may wait; more are dropped and counted.
    """

    def __init__(self, server: TrackingServer, *, capacity: int = 2_000) -> None:
        self._server = server
        self._queue: queue.Queue[CallRecord | None] = queue.Queue(capacity)
        self._waiting: OrderedDict[str, list[CallRecord]] = OrderedDict()
        self._outbox: deque[_Trace] = deque()
        self._waiting_bytes = 0
        self._batch = _BATCH
        self._next_try = 0.0
        self._pending: set[str] = set()
        self._experiments: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._stop_at: float | None = None
        self.exported = 0
        self.dropped = 0

    def __call__(self, record: CallRecord) -> None:
        """Take a finished call; returns at once, never raises."""
        try:
            if record.call.parent_id is None and record.call.task in _TRACED:
                if not _REQUEST_ID.fullmatch(record.call.request_id):
                    self.dropped += 1  # no OpenTelemetry trace id
                    return
                self._pending.add(record.call.request_id)
            self._queue.put_nowait(record)
        except queue.Full:
            self._pending.discard(record.call.request_id)
            self.dropped += 1

    def start(self) -> None:
        """Begin sending. Before this, records only wait."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tracer", daemon=True)
            self._thread.start()

    async def flush(self, timeout: float = 10) -> bool:
        """Wait until every trace taken so far is sent or given up; False where `timeout` seconds did not do."""
        until = time.monotonic() + timeout
        while self._pending and time.monotonic() < until:  # noqa: ASYNC110 - the thread knows no event loop
            await asyncio.sleep(0.02)
        return not self._pending

    async def stop(self, timeout: float = 3) -> None:
        """Send what waits, for `timeout` seconds at most, and end. Call it before the tracking server is stopped."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop_at = time.monotonic() + (timeout if self._server.ready.is_set() else 0)
        with contextlib.suppress(queue.Full):  # then it is awake anyhow
            self._queue.put_nowait(None)
        await asyncio.to_thread(thread.join, timeout + 2)

    async def feedback(self, request_id: str, value: bool, comment: str | None, caller: Caller) -> str:
        """Keep a caller's thumb (and comment) as MLflow feedback on the trace of the answer `request_id`.

        A caller has one: a second replaces the first. Returns the assessment's id.

        Raises
        ------
        CallError: 404 where no such answer was given to this caller, 503 where the tracking server is away.
        """
        if not self._server.ready.is_set() or request_id in self._pending:
            await self.flush(10)
        if not self._server.ready.is_set():
            raise unavailable("The MLflow tracking server is starting; send the feedback again in a few seconds.", retry_after=5)
        return await assess(self._server.client, request_id, value, comment, caller)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with self._server.sync_client() as client:
            while True:
                try:
                    record = self._queue.get(timeout=0.1 if self._outbox else 1)
                    if record is not None:
                        self._take(record)
                        if self._queue.qsize():
                            continue  # take in first: what waits encoded is bounded in bytes, and goes out in batches
                except queue.Empty:
                    pass
                except Exception:  # one bad record must never end the tracing
                    logger.exception("A trace could not be made")
                    self.dropped += 1
                while self._outbox and self._server.wait_ready(0) and time.monotonic() >= self._next_try and not self._late():
                    self._send(client)
                    if self._queue.qsize():
                        break
                if self._stop_at is not None and (self._late() or not self._outbox):
                    while self._outbox:
                        self._give_up(self._outbox.popleft())
                    return

    def _late(self) -> bool:
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def _take(self, record: CallRecord) -> None:
        call = record.call
        if call.parent_id is not None:
            self._waiting.setdefault(call.parent_id, []).append(record)
            while len(self._waiting) > _WAITING_CHILDREN:  # of calls that never ended
                self._waiting.popitem(last=False)
            return
        inner = list(self._descendants(call.request_id))
        if call.task not in _TRACED:
            return
        try:
            trace = _Trace(call.request_id, call.endpoint, encode(record, inner, self._named))
        except BaseException:
            self._pending.discard(call.request_id)
            raise
        self._outbox.append(trace)
        self._waiting_bytes += len(trace.body)
        while self._waiting_bytes > _MAX_OUTBOX:
            self._give_up(self._outbox.popleft())

    def _descendants(self, request_id: str) -> Iterator[CallRecord]:
        for record in self._waiting.pop(request_id, ()):
            yield record
            yield from self._descendants(record.call.request_id)

    def _done(self, trace: _Trace) -> None:
        self._waiting_bytes -= len(trace.body)
        self._pending.discard(trace.request_id)

    def _give_up(self, trace: _Trace) -> None:
        self._done(trace)
        self.dropped += 1

    def _send(self, client: httpx.Client) -> None:
        """Post the oldest traces of one experiment. Sending a trace twice does no harm: its spans have fixed ids."""
        endpoint = self._outbox[0].endpoint
        batch = list(itertools.takewhile(lambda trace: trace.endpoint == endpoint, itertools.islice(self._outbox, self._batch)))
        try:
            headers = {"content-type": "application/x-protobuf", **self._address(client, endpoint)}
            # Serialised protobuf messages one after the other are their merge.
            answer = client.post("/v1/traces", content=b"".join(trace.body for trace in batch), headers=headers)
            problem = None if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"
        except (httpx.HTTPError, KeyError, ValueError) as error:
            problem = repr(error)
        if problem is None:
            for _ in batch:
                self._done(self._outbox.popleft())
            self.exported += len(batch)
            self._batch = _BATCH
            return
        self._experiments.pop(endpoint, None)  # it may have been deleted meanwhile
        self._batch = 1  # so that a bad trace takes no good one with it
        first = self._outbox[0]
        first.failures += 1
        self._next_try = time.monotonic() + 0.2 * 4**first.failures
        if first.failures > 3:
            logger.warning("A trace was dropped: %s answered %s", self._server.name, problem)
            self._give_up(self._outbox.popleft())
            self._next_try = 0.0

    def _named(self, record: CallRecord) -> Mapping[str, Any]:
        """A span's attributes in OpenTelemetry's names; none for MLflow, which has its own and needs seconds to load these."""
        return {}

    def _address(self, client: httpx.Client, endpoint: str) -> dict[str, str]:
        """The headers that say where an endpoint's traces belong."""
        return {"x-mlflow-experiment-id": self._experiment(client, endpoint)}

    def _experiment(self, client: httpx.Client, name: str) -> str:
        if (known := self._experiments.get(name)) is not None:
            return known
        answer = client.get("/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": name})
        if answer.status_code == 404:
            identity = client.post("/api/2.0/mlflow/experiments/create", json={"name": name}).json()["experiment_id"]
        else:
            experiment = answer.json()["experiment"]
            identity = experiment["experiment_id"]
            if experiment.get("lifecycle_stage") == "deleted":
                client.post("/api/2.0/mlflow/experiments/restore", json={"experiment_id": identity})
        self._experiments[name] = identity
        return identity


# -- a call as spans --------------------------------------------------------------------------------------------------


def encode(
    record: CallRecord, inner: Sequence[CallRecord] = (), named: Callable[[CallRecord], Mapping[str, Any]] = lambda _: {}
) -> bytes:
    """An outer call with the calls made for it as an OTLP `ExportTraceServiceRequest`.

    Its steps are children of the root; an inner call is a child of the step, or of the inner call, it was made in. `named` gives
    a call's span further attributes.
    """
    call = record.call
    trace = bytes.fromhex(call.request_id)
    root = _span(trace, call.request_id, None, call.endpoint, _OF_TASK[call.task], record.start_ns, record.end_ns)
    _fill(root, record, named(record))
    if call.caller is not None:
        _set(root, "user.id", call.caller.name)
    if call.thread_id:
        _set(root, "session.id", call.thread_id)
    for key, value in _tags(record).items():
        _set(root, f"mlflow.traceTag.{key}", value)
    found = [r for c in inner if c.call.task == "search" and c.response for r in c.response.get("passages", ())]
    known = {row["id"]: row for row in found if isinstance(row, Mapping) and "id" in row}
    spans = [root]
    steps: dict[str, list[Span]] = {call.request_id: list(_steps(trace, root, record, known))}
    spans += steps[call.request_id]
    roots = {call.request_id: root}
    for child in inner:
        made_for = child.call.parent_id or call.request_id
        parent = _tightest(steps.get(made_for, ()), child) or roots.get(made_for, root)
        kind = _OF_TASK.get(child.call.task, "TASK")
        name = f"{child.call.task} {child.call.endpoint}"
        span = _span(trace, child.call.request_id, parent.span_id, name, kind, child.start_ns, child.end_ns)
        _fill(span, child, named(child))
        roots[child.call.request_id] = span
        steps[child.call.request_id] = list(_steps(trace, span, child, known))
        spans += [span, *steps[child.call.request_id]]
    request = ExportTraceServiceRequest()
    told = request.resource_spans.add()
    told.resource.attributes.add(key="service.name").value.string_value = "smalti"
    told.scope_spans.add().spans.extend(spans)
    return request.SerializeToString()


def _steps(trace: bytes, parent: Span, record: CallRecord, known: Mapping[str, Mapping[str, Any]]) -> Iterator[Span]:
    request_id = record.call.request_id
    for number, step in enumerate(record.steps):
        kind = str(step.get("kind", ""))
        start = int(step.get("start_ns") or record.start_ns)
        end = int(step.get("end_ns") or start)
        name = str(step.get("name") or kind or "step")
        span = _span(trace, f"{request_id}/{number}", parent.span_id, name, _OF_STEP.get(kind, "CHAIN"), start, end)
        _set(span, "mlflow.spanInputs", _json(step.get("inputs")))
        outputs = step.get("outputs")
        _set(span, "mlflow.spanOutputs", _json(_documents(outputs, known) if kind == "retrieval" else outputs))
        for key, value in (step.get("attributes") or {}).items():
            _set(span, str(key), value if isinstance(value, (bool, int, float, str)) else _json(value))
        failed = str(step.get("status") or "ok").lower() not in ("ok", "completed", "success")
        span.status.code = Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_OK
        yield span


def _fill(span: Span, record: CallRecord, named: Mapping[str, Any]) -> None:
    """What every call's span has: inputs, outputs, usage, status."""
    call = record.call
    _set(span, "mlflow.spanInputs", _json(request_of(call) if call.task == "http" else call.payload))
    _set(span, "mlflow.spanOutputs", _json(_documents(record.response) if call.task == "search" else record.response))
    _set(span, "smalti.request_id", call.request_id)
    _set(span, "smalti.endpoint", call.endpoint)
    _set(span, "smalti.status_code", record.status_code)
    if record.served_entity_name:
        _set(span, "smalti.served_entity_name", record.served_entity_name)
    if record.first_event_ns is not None:
        _set(span, "smalti.first_event_ms", (record.first_event_ns - record.start_ns) / 1e6)
    if call.task == "chat":
        _set(span, "mlflow.llm.model", call.endpoint)
    if record.usage:
        _set(span, "mlflow.chat.tokenUsage", _json(dict(record.usage)))
    for key, value in named.items():
        _set(span, key, value)
    failed = record.status_code >= 400 or record.error is not None
    span.status.code = Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_OK
    if failed:
        span.status.message = (record.error or f"status {record.status_code}")[:1000]
        event = span.events.add(name="exception", time_unix_nano=record.end_ns)
        event.attributes.add(key="exception.message").value.string_value = span.status.message


def _tags(record: CallRecord) -> dict[str, str]:
    """Tags of the trace; `search_traces` finds it by them (`tag.mode = 'extractive'`)."""
    call, response = record.call, record.response or {}
    facts: dict[str, Any] = {"endpoint": call.endpoint, "request_id": call.request_id, "status_code": record.status_code}
    facts["client_request_id"] = call.client_request_id
    facts["requester_kind"] = call.caller.kind if call.caller else None
    outputs = response.get("custom_outputs")
    if isinstance(outputs, Mapping):
        facts["mode"] = outputs.get("mode")
        if isinstance(abstained := outputs.get("abstained"), bool):
            facts["abstained"] = str(abstained).lower()
        if isinstance(route := outputs.get("route"), Mapping):
            facts["route"] = route.get("label")
            if isinstance(confidence := route.get("confidence"), (int, float)):
                facts["confidence"] = f"{confidence:.3f}"
    return {key: str(value)[:250] for key, value in facts.items() if value is not None}


def _tightest(spans: Sequence[Span], record: CallRecord) -> Span | None:
    """The shortest step that `record` ran within."""
    within = [s for s in spans if s.start_time_unix_nano <= record.start_ns and record.end_ns <= s.end_time_unix_nano]
    return min(within, key=lambda s: s.end_time_unix_nano - s.start_time_unix_nano, default=None)


def _span(trace: bytes, identity: str, parent: bytes | None, name: str, kind: str, start_ns: int, end_ns: int) -> Span:
    span = Span(trace_id=trace, span_id=hashlib.sha256(identity.encode()).digest()[:8], name=name, kind=Span.SPAN_KIND_INTERNAL)
    span.start_time_unix_nano, span.end_time_unix_nano = start_ns, max(start_ns, end_ns)
    if parent is not None:
        span.parent_span_id = parent
    _set(span, "mlflow.spanType", kind)
    return span


def _set(span: Span, key: str, value: str | bool | int | float | None) -> None:
    if value is None:
        return
    field = span.attributes.add(key=key).value
    if isinstance(value, bool):
        field.bool_value = value
    elif isinstance(value, int):
        field.int_value = value
    elif isinstance(value, float):
        field.double_value = value
    else:
        field.string_value = value


def _json(value: Any) -> str | None:
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > _MAX_VALUE:
        return json.dumps({"cut": True, "characters": len(text), "begins": text[:_MAX_VALUE]}, ensure_ascii=False)
    return text


def _documents(value: Any, known: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> Any:
    """Passages as MLflow's documents; `known` has whole passages by id.

    https://mlflow.org/docs/latest/genai/tracing/span-concepts/#retriever-spans
    """
    rows = value
    if isinstance(value, Mapping):
        rows = next((rows for key in ("passages", "documents", "results") if isinstance(rows := value.get(key), list)), None)
    if not isinstance(rows, (list, tuple)) or not all(isinstance(row, Mapping) for row in rows):
        return value
    whole = [{**known.get(row.get("id", ""), {}), **row} for row in rows]
    return [
        {
            "page_content": row.get("text", ""),
            "metadata": {"doc_uri": row.get("source"), **{key: row[key] for key in row if key not in ("text", "id")}},
            "id": row.get("id"),
        }
        for row in whole
    ]
