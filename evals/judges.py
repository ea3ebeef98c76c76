"""MLflow's scorers and LLM judges on our rows: what they are given, and the endpoint that judges ask.

Two environment variables configure judges: `SMALTI_JUDGE_MODEL`, a model's name, and `SMALTI_JUDGE_BASE_URL`, an address that
speaks OpenAI's protocol, such as `https://api.openai.com/v1` or this server's `/v1`; `SMALTI_JUDGE_API_KEY` where it wants a key.
MLflow reads its own variables for all of its process, so they are set for the length of an evaluation.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from evals.data import RowResult

MODEL, BASE_URL, API_KEY = "SMALTI_JUDGE_MODEL", "SMALTI_JUDGE_BASE_URL", "SMALTI_JUDGE_API_KEY"
_DEFAULT_MODEL = "MLFLOW_GENAI_JUDGE_DEFAULT_MODEL"
_NEEDS = {
    "Correctness": ("expected_response", "expected_facts"),
    "Equivalence": ("expected_response",),
    "ExpectationsGuidelines": ("guidelines",),
    "RetrievalSufficiency": ("expected_response", "expected_facts"),
}
"""Expectations of which a judge needs one; a row that has none is not for it."""


class JudgeError(ValueError):
    """Half of what judges need is configured."""


@contextmanager
def judging(environment: Mapping[str, str] | None = None) -> Iterator[str | None]:
    """Let MLflow's judges ask the configured endpoint within the block; gives the model's name, None where none is configured.

    Raises `JudgeError` where one of the two variables is missing.
    """
    given = os.environ if environment is None else environment
    model, url = given.get(MODEL), given.get(BASE_URL)
    if bool(model) != bool(url):
        missing = BASE_URL if model else MODEL
        raise JudgeError(
            f"{missing} is not set: judges need {MODEL} and {BASE_URL}, such as gpt-4.1-mini and https://api.openai.com/v1"
        )
    if not model or not url:
        yield None
        return
    wanted = {
        _DEFAULT_MODEL: f"openai:/{model}",
        "OPENAI_API_BASE": url.rstrip("/"),
        "OPENAI_API_KEY": given.get(API_KEY) or "none",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield model
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def asks(scorer: Any) -> list[str | None]:
    """What a judge that names no model would ask, so that another one's answers are not taken for its own."""
    if not _is_mlflow(scorer) or getattr(scorer, "model", "") is not None:
        return []
    return [os.environ.get(_DEFAULT_MODEL), os.environ.get("OPENAI_API_BASE")]


def given(scorer: Any, result: RowResult) -> dict[str, Any] | None:
    """The arguments of a scorer's `run` for a row; None for a row that has nothing to say to it.

    MLflow's own get a trace, with the passages as what a retriever found and the tools that were called; its judges and built-in
    scorers get the answer's text, and expectations by MLflow's names.
    """
    row = result.row
    arguments: dict[str, Any] = {
        "inputs": {"question": row.question} if row.inputs is None else dict(row.inputs),
        "outputs": asdict(result.prediction),
        "expectations": row.expectations(),
        "trace": None,
    }
    if not _is_mlflow(scorer):
        return arguments
    arguments["trace"] = trace_of(result)
    from mlflow.genai.judges.base import Judge

    if isinstance(scorer, Judge):
        expected = {"expected_response" if key == "expected_answer" else key: value for key, value in row.expectations().items()}
        expected = {key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()}
        if "guidelines" in row.metadata:
            expected["guidelines"] = row.metadata["guidelines"]
        if "expected_tools" in expected:
            expected["expected_tool_calls"] = [{"name": name} for name in expected.pop("expected_tools")]
        needed = _NEEDS.get(type(scorer).__name__)
        if needed and not any(name in expected for name in needed):
            return None
        if needed and len(needed) == 2 and all(name in expected for name in needed):
            expected.pop("expected_response")  # MLflow takes one of the two
        arguments |= {"outputs": result.prediction.text, "expectations": expected}
        if getattr(scorer, "is_session_level_scorer", False):
            return {"session": [arguments["trace"]], "expectations": expected}
    return arguments


def _is_mlflow(scorer: Any) -> bool:
    if "mlflow.genai.scorers.base" not in sys.modules:
        return False
    from mlflow.genai.scorers.base import Scorer

    return isinstance(scorer, Scorer)


def trace_of(result: RowResult) -> Any:
    """A prediction as an MLflow trace: what was asked and answered, the passages of a retriever, the tools that were called."""
    from mlflow.entities import Trace, TraceData, TraceInfo, TraceLocation, TraceState
    from mlflow.entities.span import Span, SpanType
    from mlflow.tracing.constant import SpanAttributeKey

    row, said = result.row, result.prediction
    trace, root, end = os.urandom(16), os.urandom(8), time.time_ns()
    duration = round((said.latency_ms or 0) * 1_000_000)
    trace_id = f"tr-{trace.hex()}"

    def span(name: str, kind: str, inputs: Any, outputs: Any, own: bytes, parent: bytes = b"") -> Any:
        values = {
            SpanAttributeKey.REQUEST_ID: trace_id, SpanAttributeKey.SPAN_TYPE: kind,
            SpanAttributeKey.INPUTS: inputs, SpanAttributeKey.OUTPUTS: outputs,
        }  # fmt: skip
        ids = {"trace_id": trace, "span_id": own, "parent_span_id": parent}
        return Span.from_dict({
            **{key: base64.b64encode(value).decode() for key, value in ids.items()},
            "name": name, "start_time_unix_nano": end - duration, "end_time_unix_nano": end, "events": [],
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "attributes": {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in values.items()},
        })  # fmt: skip

    inputs = {"question": row.question} if row.inputs is None else dict(row.inputs)
    spans = [span("evaluate", SpanType.AGENT, inputs, said.text, root)]
    if said.passages:
        found = [
            {
                "page_content": str(p.get("text") or p.get("quote") or ""),
                "metadata": {"doc_uri": p.get("source")},
                "id": p.get("id"),
            }
            for p in said.passages
        ]
        spans.append(span("retrieve", SpanType.RETRIEVER, inputs, found, os.urandom(8), root))
    spans += [span(name, SpanType.TOOL, {}, None, os.urandom(8), root) for name in said.tools or ()]
    info = TraceInfo(
        trace_id=trace_id,
        trace_location=TraceLocation.from_experiment_id("0"),
        request_time=(end - duration) // 1_000_000,
        execution_duration=duration // 1_000_000,
        state=TraceState.OK,
        request_preview=row.question[:1000],
        response_preview=said.text[:1000],
    )
    return Trace(info, TraceData(spans=spans))
