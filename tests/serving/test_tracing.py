"""Finished calls become traces that MLflow's own client finds, and thumbs become feedback on them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from governance.call import Call, Caller, CallError, CallRecord
from serving.collector import CollectorTracer
from serving.feedback import assessments
from serving.tracing import Tracer
from serving.tracking.server import MlflowServer
from tests.live import mlflow_store

PASSAGE = {
    "id": "p1",
    "document_id": "d1",
    "source": "guide.md",
    "title": "Guide",
    "text": "Tiles are set from the left.",
    "score": 0.9,
}
ALICE = Caller("alice")


class Site:
    """The tracking server and a tracer on a loop of their own."""

    def __init__(self, home: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        mlflow_store(home)
        self.server = MlflowServer(home)
        self.tracer = Tracer(self.server)
        self.early = turn()
        for record in self.early:  # told of before the server is up
            self.tracer(record)
        self.tracer.start()
        self.run(self.server.start())
        assert self.server.wait_ready(60), self.server.log.read_text()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def trace(self, request_id: str) -> dict[str, Any]:
        with self.server.sync_client() as client:
            answer = client.get("/api/3.0/mlflow/traces/get", params={"trace_id": f"tr-{request_id}"})
        assert answer.status_code == 200, answer.text
        return answer.json()["trace"]

    def close(self) -> None:
        self.run(self.tracer.stop())
        self.run(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("home"))
    yield site
    site.close()


def record(task: str = "agent", endpoint: str = "assistant", *, parent: str | None = None, **fields: Any) -> CallRecord:
    now = time.time_ns()
    call = Call(endpoint, task, fields.pop("payload", {}), caller=ALICE, parent_id=parent, thread_id=fields.pop("thread", None))  # type: ignore[arg-type]
    return CallRecord(call, **{"status_code": 200, "start_ns": now, "end_ns": now + 50_000_000, **fields})


def turn(thread: str = "thread-1") -> list[CallRecord]:
    """A turn as the gateway tells of it: inner calls first."""
    now = time.time_ns()
    ms = 1_000_000
    outer = record(
        payload={"model": "assistant", "input": [{"role": "user", "content": "Where do tiles start?"}]},
        thread=thread,
        start_ns=now,
        end_ns=now + 50 * ms,
        first_event_ns=now + 20 * ms,
        usage={"input_tokens": 12, "output_tokens": 8, "total_tokens": 20},
        response={
            "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "From the left."}]}],
            "custom_outputs": {"mode": "extractive", "abstained": False, "route": {"label": "documents", "confidence": 0.93}},
        },
        steps=(
            {"name": "route", "kind": "route", "start_ns": now + ms, "end_ns": now + 3 * ms, "status": "OK",
             "inputs": {"question": "Where?"}, "outputs": {"label": "documents"}, "attributes": {"confidence": 0.93}},
            {"name": "retrieval", "kind": "retrieval", "start_ns": now + 4 * ms, "end_ns": now + 20 * ms, "status": "OK",
             "inputs": {"query": "Where?", "k": 5}, "attributes": {},
             "outputs": {"documents": [{"id": "p1", "source": "guide.md", "score": 0.9}]}},
            {"name": "answer", "kind": "answer", "start_ns": now + 21 * ms, "end_ns": now + 40 * ms, "status": "OK",
             "inputs": {}, "attributes": {}, "outputs": {"text": "From the left."}},
        ),
    )  # fmt: skip
    outer_id = outer.call.request_id
    search = record("search", "main.default.docs", parent=outer_id, payload={"query": "Where?", "k": 5}, start_ns=now + 5 * ms,
                    end_ns=now + 19 * ms, response={"passages": [PASSAGE]})  # fmt: skip
    embed = record("embeddings", "minilm", parent=search.call.request_id, payload={"input": ["Where?"]}, start_ns=now + 6 * ms,
                   end_ns=now + 7 * ms, response={"data": []})  # fmt: skip
    return [embed, search, outer]


def spans_of(trace: dict[str, Any]) -> dict[str, dict[str, Any]]:
    def value(field: dict[str, Any]) -> Any:
        return next(iter(field.values()))

    return {s["name"]: {**s, **{a["key"]: value(a["value"]) for a in s["attributes"]}} for s in trace["spans"]}


def test_a_turn_is_a_trace_with_its_inner_calls(site: Site) -> None:
    records = turn()
    for one in records:
        site.tracer(one)
    assert site.run(site.tracer.flush())
    trace = site.trace(records[-1].call.request_id)
    info, spans = trace["trace_info"], spans_of(trace)
    assert info["trace_metadata"]["mlflow.trace.user"] == "alice"
    assert info["trace_metadata"]["mlflow.trace.session"] == "thread-1"
    assert {
        "mode": "extractive",
        "route": "documents",
        "confidence": "0.930",
        "abstained": "false",
        "endpoint": "assistant",
    }.items() <= info["tags"].items()
    assert info["request_preview"] == "Where do tiles start?"
    assert info["response_preview"] == "From the left."
    assert info["state"] == "OK"
    assert {name: span["mlflow.spanType"].strip('"') for name, span in spans.items()} == {
        "assistant": "AGENT", "route": "CHAIN", "retrieval": "RETRIEVER", "answer": "CHAIN",
        "search main.default.docs": "RETRIEVER", "embeddings minilm": "EMBEDDING",
    }  # fmt: skip
    assert spans["search main.default.docs"]["parent_span_id"] == spans["retrieval"]["span_id"]
    assert spans["embeddings minilm"]["parent_span_id"] == spans["search main.default.docs"]["span_id"]
    assert spans["route"]["parent_span_id"] == spans["assistant"]["span_id"]


def test_the_mlflow_client_reads_it(site: Site) -> None:
    """Through `mlflow` itself, in a process of its own: documents, usage, tags, session and feedback are where it looks."""
    records = turn(thread := uuid.uuid4().hex)
    for one in records:
        site.tracer(one)
    request_id = records[-1].call.request_id
    site.run(site.tracer.feedback(request_id, False, "too short", Caller("alice")))
    site.run(site.tracer.feedback(request_id, True, "good after all", Caller("alice")))
    script = f"""
import mlflow
mlflow.set_tracking_uri("sqlite:///{site.server.home}/mlflow.db")
experiment = mlflow.get_experiment_by_name("assistant")
traces = mlflow.search_traces(locations=[experiment.experiment_id], return_type="list",
                              filter_string="metadata.`mlflow.trace.session` = '{thread}' AND tag.mode = 'extractive'")
trace, = traces
assert trace.info.trace_id == "tr-{request_id}"
assert trace.info.token_usage["total_tokens"] == 20, trace.info.token_usage
root = trace.data.spans[0]
assert root.inputs["input"][0]["content"] == "Where do tiles start?", root.inputs
assert root.outputs["custom_outputs"]["mode"] == "extractive"
step = trace.search_spans(name="retrieval")[0]
document, = step.outputs
assert document["page_content"] == "Tiles are set from the left.", document
assert document["metadata"]["doc_uri"] == "guide.md" and document["id"] == "p1"
assert trace.search_spans(name="route")[0].attributes["confidence"] == 0.93
feedback, = trace.info.assessments
assert (feedback.name, feedback.value, feedback.rationale) == ("user_feedback", True, "good after all")
assert (feedback.source.source_type, feedback.source.source_id) == ("HUMAN", "alice")
print("done")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("done"), done.stderr
    told = {(each.request_id, each.name, each.value) for each in assessments(site.server.home / "mlflow.db", 0)}
    assert (request_id, "user_feedback", 1.0) in told  # as experiments read it
    assert assessments(site.server.home / "mlflow.db", time.time_ns() // 1_000_000 + 60_000) == []


def test_what_came_before_the_server_was_up_is_not_lost(site: Site) -> None:
    assert site.run(site.tracer.flush())
    assert site.trace(site.early[-1].call.request_id)["trace_info"]["state"] == "OK"


def test_a_failed_turn_says_so(site: Site) -> None:
    failed = record(status_code=502, error="The model did not answer.", payload={"input": "hi"})
    site.tracer(failed)
    assert site.run(site.tracer.flush())
    trace = site.trace(failed.call.request_id)
    assert trace["trace_info"]["state"] == "ERROR"
    assert "The model did not answer." in json.dumps(trace["spans"])


def test_feedback_belongs_to_who_asked(site: Site) -> None:
    records = turn()
    for one in records:
        site.tracer(one)
    own, alice = records[-1].call.request_id, Caller("alice")
    namesake = Caller("alice", "service_principal")
    for request_id, who in ((own, Caller("mallory")), (own, namesake), (uuid.uuid4().hex, alice), ("../../x", alice)):
        with pytest.raises(CallError) as caught:
            site.run(site.tracer.feedback(request_id, True, None, who))
        assert caught.value.status == 404


def test_many_turns_at_once_all_arrive(site: Site) -> None:
    before, dropped = site.tracer.exported, site.tracer.dropped
    with ThreadPoolExecutor(8) as pool:
        for records in [turn() for _ in range(200)]:
            pool.submit(lambda records: [site.tracer(one) for one in records], records)
    assert site.run(site.tracer.flush(30))
    assert (site.tracer.exported - before, site.tracer.dropped - dropped) == (200, 0)


def test_a_deleted_experiment_is_restored(site: Site) -> None:
    one = record(endpoint="short lived", payload={"input": "hi"})
    site.tracer(one)
    assert site.run(site.tracer.flush())
    with site.server.sync_client() as client:
        found = client.get("/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "short lived"}).json()[
            "experiment"
        ]
        client.post("/api/2.0/mlflow/experiments/delete", json={"experiment_id": found["experiment_id"]}).raise_for_status()
    other = record(endpoint="short lived", payload={"input": "again"})
    site.tracer(other)
    assert site.run(site.tracer.flush())
    assert site.trace(other.call.request_id)["trace_info"]["state"] == "OK"


def test_a_huge_turn_is_cut_not_lost(site: Site) -> None:
    big = record(payload={"input": "x" * 5_000_000})
    site.tracer(big)
    assert site.run(site.tracer.flush())
    assert len(json.dumps(site.trace(big.call.request_id))) < 1_000_000


@pytest.mark.anyio
async def test_it_never_waits_and_drops_what_is_too_much(tmp_path: Any) -> None:
    tracer = Tracer(MlflowServer(tmp_path), capacity=10)  # neither is started: nothing is taken from the queue
    one = record()
    for _ in range(1000):
        tracer(one)
    assert tracer.dropped == 990


@pytest.mark.anyio
async def test_it_stops_in_time_when_the_server_is_away(tmp_path: Any) -> None:
    tracer = Tracer(MlflowServer(tmp_path))
    for one in turn():
        tracer(one)
    tracer.start()
    await asyncio.wait_for(tracer.stop(1), 60)
    assert (tracer.exported, tracer.dropped) == (0, 1)
    with pytest.raises(CallError) as caught:
        await tracer.feedback(uuid.uuid4().hex, True, None, Caller("alice"))
    assert caught.value.status == 503


def test_odd_step_bodies_do_not_end_tracing(site: Site) -> None:
    odd = record(
        steps=({"kind": "retrieval", "outputs": {"documents": "none"}, "attributes": {"x": {1: object()}}}, {}),
        payload={"input": "hi"},
    )
    site.tracer(odd)
    good = record(payload={"input": "hi"})
    site.tracer(good)
    assert site.run(site.tracer.flush())
    assert site.trace(good.call.request_id)
    with site.server.sync_client() as client:
        assert isinstance(client, httpx.Client)


def test_a_collector_gets_the_same_spans_in_opentelemetrys_own_names() -> None:
    taken: list[tuple[str, ExportTraceServiceRequest]] = []

    class Receiver(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            taken.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200 if len(taken) > 1 else 503)  # it may be away for a moment
            self.end_headers()

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    tracer = CollectorTracer(f"http://127.0.0.1:{receiver.server_port}")
    payload = {"input": "hi", "temperature": 0, "max_output_tokens": 9}
    usage, response = {"input_tokens": 3, "output_tokens": 4}, {"model": "gpt-5", "output": []}
    asked = record("chat", "writer", payload=payload, response=response, usage=usage, status_code=502)
    for one in (*turn(), asked):
        tracer(one)
    tracer.start()
    asyncio.run(tracer.stop(10))
    receiver.shutdown()
    receiver.server_close()
    assert {path for path, _ in taken} == {"/v1/traces"}
    spans = {span.name: span for _, each in taken[1:] for told in each.resource_spans for span in told.scope_spans[0].spans}
    assert taken[0][1].resource_spans[0].resource.attributes[0].value.string_value == "smalti"
    held = {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in spans["writer"].attributes}
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "smalti",
        "gen_ai.request.model": "writer",
        "gen_ai.response.model": "gpt-5",
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "error.type": "502",
    }.items() <= held.items()
    agent = {each.key: each.value.string_value for each in spans["assistant"].attributes}
    assert (agent["gen_ai.operation.name"], agent["gen_ai.agent.name"]) == ("invoke_agent", "assistant")
    assert agent["gen_ai.conversation.id"] == "thread-1"
    assert tracer.exported == 2
