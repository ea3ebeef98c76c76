"""People's thumbs on answers, as MLflow feedback (https://mlflow.org/docs/latest/genai/assessments/feedback/)."""

from __future__ import annotations

import re
import time

import httpx

from governance.call import CallError, not_found, unavailable

NAME = "user_feedback"


async def assess(client: httpx.AsyncClient, request_id: str, value: bool, comment: str | None, caller_name: str) -> str:
    """Keep a caller's thumb (and comment) on the trace of the answer `request_id`; the assessment's id.

    A caller has one on each answer: a second replaces the first.

    Parameters
    ----------
    client: to the MLflow tracking server.
    request_id: the answer's `x-request-id`; its trace must have been sent.

    Raises
    ------
    CallError: 404 where no such answer was given to this caller, 503 where the tracking server is away.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", request_id):
        raise not_found("There is no such answer to give feedback on; use the answer's x-request-id.")
    try:
        return await _assess(client, f"/api/3.0/mlflow/traces/tr-{request_id}", value, comment, caller_name)
    except httpx.HTTPError as error:
        raise unavailable(f"The feedback was not kept ({type(error).__name__}); send it again.", retry_after=5) from error


async def _assess(client: httpx.AsyncClient, trace: str, value: bool, comment: str | None, caller_name: str) -> str:
    found = await client.get(trace)
    info = found.json().get("trace", {}).get("trace_info", {}) if found.status_code == 200 else {}
    if info.get("trace_metadata", {}).get("mlflow.trace.user") != caller_name:
        raise not_found("There is no answer of yours with this request id to give feedback on, or its trace was dropped.")
    source = {"source_type": "HUMAN", "source_id": caller_name}
    body = {"assessment_name": NAME, "feedback": {"value": value}, "rationale": comment or ""}
    for old in info.get("assessments", ()):
        if old.get("assessment_name") == NAME and old.get("source") == source and old.get("valid", True):
            changed = {"assessment": {**body, "assessment_id": old["assessment_id"]}, "update_mask": "feedback,rationale"}
            answer = await client.patch(f"{trace}/assessments/{old['assessment_id']}", json=changed)
            break
    else:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        new = {**body, "source": source, "create_time": now, "last_update_time": now, "valid": True}
        answer = await client.post(f"{trace}/assessments", json={"assessment": new})
    if answer.status_code != 200:
        raise CallError(f"MLflow refused the feedback: {answer.text[:200]}", status=502, code="INTERNAL_ERROR")
    return answer.json()["assessment"]["assessment_id"]
