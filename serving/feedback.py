"""People's thumbs on answers, as MLflow feedback (https://mlflow.org/docs/latest/genai/assessments/feedback/)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends
from sqlalchemy import text
from starlette.requests import Request as Http

from governance.call import Caller, CallError, bad_request, not_found, unavailable
from governance.exposures import Event
from serving.protocols.request import parse, take
from serving.registry import reading
from serving.routes import read_body

if TYPE_CHECKING:
    import httpx

NAME = "user_feedback"
_ASSESSMENTS = text(
    "SELECT assessment_id, trace_id, name, value, valid FROM assessments "
    "WHERE last_updated_timestamp >= :since AND trace_id LIKE 'tr-%' AND assessment_type = 'feedback'"
)


def router(caller: Callable[..., Any], keep: Callable[[str, bool, str | None, Caller], Awaitable[Any]]) -> APIRouter:
    """`POST /api/2.0/smalti/feedback`: `{"request_id", "value": true | false, "comment"}`.

    The answer may be named by `request_id` (its `x-request-id`), `response_id`, `trace_id`, or a chat completion's id.

    Parameters
    ----------
    caller: a FastAPI dependency that gives who asks.
    keep: `keep(request_id, value, comment, caller)` keeps it; raises `CallError`.
    """
    routes = APIRouter()

    async def feedback(http: Http, who: Caller = Depends(caller)) -> dict[str, Any]:
        body = parse(await read_body(http, 65_536))
        names = [take(body, field, str) for field in ("request_id", "response_id", "trace_id", "id")]
        named = next(filter(None, names), None)
        if named is None:
            raise bad_request("Missing field 'request_id': send the answer's x-request-id.", "request_id")
        value, comment = take(body, "value", bool, required=True), take(body, "comment", str)
        identifier = re.sub(r"^(resp_|tr-|chatcmpl-)", "", named)
        kept = await keep(identifier, value, comment, who)
        return {"request_id": identifier, "trace_id": f"tr-{identifier}", "assessment_id": kept}

    routes.add_api_route("/api/2.0/smalti/feedback", feedback, methods=["POST"], include_in_schema=False)
    return routes


def assessments(database: Path, since_ms: int) -> list[Event]:
    """Assessments with a number, or yes or no, given or changed from a time on, by the request id of their answer. Blocking.

    One that no longer counts has the value None.
    """
    return [
        Event(row.assessment_id, row.trace_id.removeprefix("tr-"), row.name, number(row.value) if row.valid else None)
        for row in _tracked(database, _ASSESSMENTS, {"since": since_ms})
    ]


_THUMBS = text(
    "SELECT a.created_timestamp, a.value, a.source_id, e.name FROM assessments a JOIN trace_info t ON t.request_id = a.trace_id "
    "JOIN experiments e ON e.experiment_id = t.experiment_id "
    "WHERE a.created_timestamp >= :since AND a.name = :name AND a.assessment_type = 'feedback' AND a.valid"
)
_TRACE = text("SELECT experiment_id, request_id FROM trace_info WHERE request_id IN (:own, :shared)")


def thumbs(database: Path, since_ms: int, who: str | None = None) -> list[dict[str, Any]]:
    """People's thumbs from a time on: `time` (Unix seconds), `helpful`, `endpoint`. `who`: only this one's. Blocking."""
    found = _tracked(database, _THUMBS, {"since": since_ms, "name": NAME})
    return [
        {"time": row.created_timestamp / 1000, "helpful": number(row.value) == 1, "endpoint": row.name}
        for row in found
        if who is None or row.source_id == who
    ]


def trace_url(database: Path, request_id: str, trace_id: str) -> str:
    """Where MLflow shows a call's trace, or the one it is part of; MLflow's first page where neither was sent. Blocking."""
    for row in _tracked(database, _TRACE, {"own": f"tr-{request_id}", "shared": f"tr-{trace_id}"}):
        return f"/mlflow/#/experiments/{row.experiment_id}/traces?selectedEvaluationId={row.request_id}"
    return "/mlflow/"


class Traces:
    """What is said of answers in the tracking database of a state folder. All methods block."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def events(self, since_ms: int, names: Collection[str] = ()) -> list[Event]:
        """`assessments`; those of `names` are among them."""
        return assessments(self._database, since_ms)

    def thumbs(self, since_ms: int, who: str | None = None) -> list[dict[str, Any]]:
        return thumbs(self._database, since_ms, who)

    def url(self, request_id: str, trace_id: str) -> str:
        return trace_url(self._database, request_id, trace_id)


def _tracked(database: Path, statement: Any, given: dict[str, Any]) -> list[Any]:
    """Rows of the tracking database itself; none where it has not been made yet."""
    with reading(database, "assessments") as connection:
        return list(connection.execute(statement, given)) if connection is not None else []


def number(value: Any) -> float | None:
    """An assessment's value, or the JSON of one, as a number; yes and no are 1 and 0. None for other words."""
    try:
        told = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        told = value
    told = {"yes": 1.0, "no": 0.0}.get(told.lower()) if isinstance(told, str) else told
    return float(told) if isinstance(told, bool | int | float) else None


def source_of(caller: Caller) -> str:
    """Whose a thumb is: a user's by name, a service principal's by its kind too, as a user may bear the same name."""
    return caller.name if caller.kind == "user" else caller.principal


async def assess(client: httpx.AsyncClient, request_id: str, value: bool, comment: str | None, caller: Caller) -> str:
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
    import httpx

    if not re.fullmatch(r"[0-9a-f]{32}", request_id):
        raise not_found("There is no such answer to give feedback on; use the answer's x-request-id.")
    try:
        return await _assess(client, f"/api/3.0/mlflow/traces/tr-{request_id}", value, comment, caller)
    except httpx.HTTPError as error:
        raise unavailable(f"The feedback was not kept ({type(error).__name__}); send it again.", retry_after=5) from error


async def _assess(client: httpx.AsyncClient, trace: str, value: bool, comment: str | None, caller: Caller) -> str:
    found = await client.get(trace)
    info = found.json().get("trace", {}).get("trace_info", {}) if found.status_code == 200 else {}
    kind = info.get("tags", {}).get("requester_kind", caller.kind)  # traces of an older Smalti do not tell
    if (info.get("trace_metadata", {}).get("mlflow.trace.user"), kind) != (caller.name, caller.kind):
        raise not_found("There is no answer of yours with this request id to give feedback on, or its trace was dropped.")
    source = {"source_type": "HUMAN", "source_id": source_of(caller)}
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
