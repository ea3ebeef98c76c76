"""Records one evaluation in MLflow; run by `evals/run.py` as a process of its own (`python -m evals.export`).

Standard input is one JSON request; standard output is JSON lines: `{"recorded": n}` as rows are recorded, at last
`{"run_id", "experiment_id", "rows"}` or `{"error"}`. What MLflow prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

ATTEMPTS = 3
BATCH = 100
"""Rows whose spans are written, and which are linked to their run, together."""
Report = Callable[[dict[str, Any]], None]


def export(request: Mapping[str, Any], report: Report = lambda line: None) -> dict[str, Any]:
    """Record the request's rows as one MLflow run and check in the store that every row and every assessment is there.

    Each row is a trace with its assessments and expectations, written at once: `mlflow.genai.evaluate` writes every assessment in
    a transaction of its own, which takes five times as long. Rows that were not kept are recorded again, `ATTEMPTS` times in
    all. Raises RuntimeError if that is in vain.
    """
    if request["artifact_root"]:  # for the database's default experiment, should it be made here
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = Path(request["artifact_root"]).as_uri()
    import mlflow
    from mlflow.tracing.client import TracingClient

    _use_wal(request["tracking_uri"])
    mlflow.set_tracking_uri(request["tracking_uri"])
    client, traces = mlflow.MlflowClient(), TracingClient()
    experiment_id = experiment_of(client, request["experiment"], request["artifact_root"])
    mlflow.set_experiment(experiment_id=experiment_id)

    rows: list[dict[str, Any]] = request["rows"]
    wanted = {row["row"]["id"]: set(_values(row)) for row in rows}
    missing, reason = set(wanted), ""
    with mlflow.start_run(experiment_id=experiment_id, run_name=request["run_name"], tags=_tags(request)) as run:
        run_id = run.info.run_id
        mlflow.log_params(request["params"])
        _log_dataset(client, run_id, request)
        for _ in range(ATTEMPTS):
            left = [row for row in rows if row["row"]["id"] in missing]
            for start in range(0, len(left), BATCH):
                reason = _record(client, traces, experiment_id, run_id, left[start : start + BATCH], report) or reason
            missing = _missing(client, experiment_id, run_id, wanted)
            if not missing:
                break
        if missing:
            lost = f"{len(missing)} of {len(rows)} rows are missing from run {run_id}"
            raise RuntimeError(f"{lost} after {ATTEMPTS} attempts{reason}")
        mlflow.log_metrics({**_means(rows), **request["metrics"]})
        _keep_files(client, run, request)
    return {"run_id": run_id, "experiment_id": experiment_id, "rows": len(wanted)}


def _tags(request: Mapping[str, Any]) -> dict[str, str]:
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_TYPE, MLFLOW_RUN_TYPE_GENAI_EVALUATE

    return {MLFLOW_RUN_TYPE: MLFLOW_RUN_TYPE_GENAI_EVALUATE, **request.get("tags", {})}


def _log_dataset(client: Any, run_id: str, request: Mapping[str, Any]) -> None:
    """Name the dataset among the run's inputs, with its hash as digest."""
    from mlflow.entities import Dataset, DatasetInput

    params = request["params"]
    if sha256 := params.get("dataset_sha256"):
        path = params["dataset"]
        source, profile = json.dumps({"uri": path}), json.dumps({"num_rows": len(request["rows"])})
        dataset = Dataset(Path(path).stem, sha256[:36], "local", source, profile=profile)
        client.log_inputs(run_id, [DatasetInput(dataset)])


def _values(row: Mapping[str, Any]) -> dict[str, Any]:
    """The feedback a row gets, by MLflow's names: scores, and what further scorers said."""
    from evals.scorers import mlflow_name

    judged = row.get("judged") or {}
    values = {mlflow_name(key): value for key, value in row["scores"].items() if value is not None and key not in judged}
    return values | {mlflow_name(name): said for name, said in judged.items()}


def _record(client: Any, traces: Any, experiment_id: str, run_id: str, rows: Sequence[Mapping[str, Any]], report: Report) -> str:
    """Write a batch; the last error in words, "" if there was none. A check finds what is missing, whatever it was."""
    spans, written, reason = [], [], ""
    for row in rows:
        info, span = _trace(row, experiment_id, run_id)
        try:
            traces.start_trace(info)
        except Exception as error:
            reason = _words(error)
            continue
        written.append(info.trace_id)
        spans.append(span)
        report({"recorded": 1})
    if written:
        try:
            client.link_traces_to_run(written, run_id)
            traces.log_spans(experiment_id, spans)
        except Exception as error:
            reason = _words(error)
    return reason


def _words(error: Exception) -> str:
    return f" ({type(error).__name__}: {error})".replace("\n", " ")[:500]


def _trace(row: Mapping[str, Any], experiment_id: str, run_id: str) -> tuple[Any, Any]:
    """The trace of one row, with its assessments, and its one span."""
    from mlflow.entities import Expectation, Feedback, TraceInfo, TraceLocation, TraceState
    from mlflow.entities.span import Span, SpanType
    from mlflow.tracing.constant import SpanAttributeKey, TraceMetadataKey, TraceTagKey
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as Proto
    from opentelemetry.proto.trace.v1.trace_pb2 import Status

    expected, prediction = row["row"], row["prediction"]
    trace, span = os.urandom(16), os.urandom(8)
    trace_id, span_id = f"tr-{trace.hex()}", span.hex()
    duration, end = round(prediction.get("latency_ms") or 0), time.time_ns()
    inputs = {"question": expected["question"]} if expected.get("inputs") is None else expected["inputs"]
    failed = prediction.get("error") is not None
    made = Proto(
        trace_id=trace, span_id=span, name="evaluate", start_time_unix_nano=end - duration * 1_000_000, end_time_unix_nano=end,
        status=Status(code=Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_OK, message=prediction.get("error") or ""),
    )  # fmt: skip
    values = {
        SpanAttributeKey.REQUEST_ID: trace_id, SpanAttributeKey.SPAN_TYPE: SpanType.CHAIN,
        SpanAttributeKey.INPUTS: inputs, SpanAttributeKey.OUTPUTS: prediction,
    }  # fmt: skip
    for key, value in values.items():
        made.attributes.add(key=key).value.string_value = json.dumps(value, ensure_ascii=False)

    run = {"mlflow.assessment.sourceRunId": run_id}
    assessments: list[Any] = [_feedback(name, value, run) for name, value in _values(row).items()]
    for name, value in row.get("expectations", {}).items():
        assessments.append(Expectation(name=name, value=value, metadata=run))
    for assessment in assessments:
        assessment.trace_id, assessment.span_id = trace_id, span_id
        if isinstance(assessment, Feedback) and assessment.assessment_id is None:
            assessment.assessment_id = f"a-{uuid4().hex}"
    info = TraceInfo(
        trace_id=trace_id,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=(end - duration * 1_000_000) // 1_000_000,
        execution_duration=duration,
        state=TraceState.ERROR if failed else TraceState.OK,
        request_preview=json.dumps(inputs, ensure_ascii=False)[:1000],
        response_preview=(prediction.get("error") or prediction.get("text") or str(prediction.get("label") or ""))[:1000],
        trace_metadata={TraceMetadataKey.SOURCE_RUN: run_id, "mlflow.trace_schema.version": "3"},
        tags={TraceTagKey.EVAL_REQUEST_ID: expected["id"], TraceTagKey.TRACE_NAME: "evaluate"},
        assessments=assessments,
    )
    return info, Span.from_otel_proto(made)


def _feedback(name: str, value: Any, metadata: Mapping[str, str]) -> Any:
    from mlflow.entities import AssessmentError, AssessmentSource, Feedback

    from evals.scorers import METRICS

    said = value if isinstance(value, Mapping) else {"value": value}
    value, error = said.get("value"), said.get("error")
    shares = {metric.key.replace("@", "_at_") for metric in METRICS.values() if metric.kind == "share"}
    return Feedback(
        name=name,
        value=bool(value) if name in shares and value is not None else value,
        source=AssessmentSource(source_type=said.get("source") or "CODE", source_id=said.get("source_id") or name),
        rationale=said.get("rationale"),
        error=AssessmentError(error_code="SCORER_ERROR", error_message=error) if error else None,
        metadata=dict(metadata),
    )


def _use_wal(tracking_uri: str) -> None:
    """Let a SQLite database be read while it is written (the setting stays with the file); it also halves the time to record."""
    if tracking_uri.startswith("sqlite:///"):
        path = Path(tracking_uri.removeprefix("sqlite:///").partition("?")[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        # Where another process holds the database just now, or it is none at all, MLflow is the one to say so.
        with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=5)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")


def experiment_of(client: Any, name: str, artifact_root: str | None) -> str:
    """The experiment's id. A new one gets a folder under `artifact_root`, which a server on the same database can show."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "experiment"
        location = (Path(artifact_root) / slug).as_uri() if artifact_root else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise RuntimeError(f"experiment {name!r} is deleted; restore it or name another")
    return found.experiment_id


def _missing(client: Any, experiment_id: str, run_id: str, wanted: Mapping[str, set[str]]) -> set[str]:
    """Ids of rows that are not whole in the store. Their remains, and second copies, are deleted."""
    import mlflow
    from mlflow.tracing.constant import TraceTagKey

    traces = mlflow.search_traces(locations=[experiment_id], run_id=run_id, include_spans=False, return_type="list")
    whole: set[str] = set()
    broken: list[str] = []
    for trace in traces:
        row_id = trace.info.tags.get(TraceTagKey.EVAL_REQUEST_ID, "")
        scored = {assessment.name for assessment in trace.info.assessments or () if assessment.feedback is not None}
        if row_id in wanted and row_id not in whole and wanted[row_id] <= scored:
            whole.add(row_id)
        else:
            broken.append(trace.info.trace_id)
    for start in range(0, len(broken), 100):
        client.delete_traces(experiment_id=experiment_id, trace_ids=broken[start : start + 100])
    return wanted.keys() - whole


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    from evals.scorers import mlflow_name

    means: dict[str, float] = {}
    for key in rows[0]["scores"]:
        values = [row["scores"][key] for row in rows if row["scores"][key] is not None]
        if values:
            means[f"{mlflow_name(key)}/mean"] = sum(values) / len(values)
    return means


def _keep_files(client: Any, run: Any, request: Mapping[str, Any]) -> None:
    """Put the journal among the run's artifacts, as `rows.jsonl`, and the drawings beside it."""
    files = {"rows.jsonl": Path(request["journal"]).read_text(encoding="utf-8"), **request.get("drawings", {})}
    location = urlsplit(run.info.artifact_uri)
    proxied = location.scheme == "mlflow-artifacts" and not request["tracking_uri"].startswith("http")
    if not proxied:
        for name, text in files.items():
            client.log_text(run.info.run_id, text, name)
    elif request["artifact_root"]:
        # The server keeps what it calls mlflow-artifacts:/… under its artifact folder; without the server we go there directly.
        target = Path(request["artifact_root"]) / unquote(location.path).lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (target / name).write_text(text, encoding="utf-8")


def main() -> int:
    # The real standard output is for the parent alone: whatever else is printed, in C code too, goes to standard error.
    with os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1) as channel:
        os.dup2(2, 1)

        def report(line: Mapping[str, Any]) -> None:
            channel.write(json.dumps(line) + "\n")

        try:
            result = export(json.load(sys.stdin), report)
        except Exception as error:
            import traceback

            traceback.print_exc()
            text = str(error).strip() or type(error).__name__
            report({"error": text.splitlines()[0]})
            return 1
        report(result)
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
