"""How the queries of an endpoint's indexes went, over time: https://docs.databricks.com/api/vector-search/v1/retrieve-user-visible-metrics.

Databricks names three series of queries: how many, how many failed, how long they took. They are counted from the journal, of
those indexes that the caller may see.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Request

from retrieval.api.access import Access, body_of
from retrieval.api.shapes import BUILT_IN, PREFIX
from retrieval.errors import BadRequest

NAMES = ("requests_per_second", "error_rate", "request_latency")
"""Queries a second; the percentage that was refused or failed; milliseconds of those answered."""
SHOWN = ({"name": NAMES[0]}, {"name": NAMES[1]}, *({"name": NAMES[2], "percentile": each} for each in (50.0, 99.0)))
LABEL = "index_name"
KEPT_S = 169 * 3600
"""As far back as a query may reach."""
DEFAULT_S, STEP_S = 900, 60
"""The time that is told and its steps where none are asked for."""
PAGE = 1000
"""Steps of one answer; the rest comes by page token."""

Calls = Callable[[Sequence[str], float, float], Iterable[tuple[float, int, float | None]]]
"""`calls(indexes, since, until)`: when each query of these indexes was asked (Unix seconds), its status and milliseconds."""


class Window(NamedTuple):
    """From `since` to `until`, Unix seconds, in steps."""

    since: int
    until: int
    step: int


def router(access: Access, calls: Calls) -> APIRouter:
    routes = APIRouter(tags=["vector search"])
    who = Depends(access.caller)

    @routes.post(PREFIX + "/endpoints/{endpoint}/metrics")
    async def metrics(request: Request, endpoint: str, asking: Any = who) -> dict[str, Any]:
        body = await body_of(request)
        wanted, window = asked(body), times(body)
        return await asyncio.to_thread(answer, access, calls, asking, endpoint, wanted, window)

    return routes


def answer(
    access: Access, calls: Calls, asking: Any, endpoint: str, wanted: Sequence[Mapping[str, Any]], window: Window
) -> dict[str, Any]:
    """A page of the series that are wanted. Raises NotFound: no such endpoint. Blocking."""
    over = access.indexes.over_rows
    if endpoint == BUILT_IN:
        names = [index.name for index in access.indexes.list()]
    else:
        over.endpoints.get(endpoint)
        names = [index.name for index in over.list() if index.endpoint == endpoint]
    seen = [name for name in names if access.may_see(asking, name)]
    page = window._replace(until=min(window.until, window.since + PAGE * window.step))
    made: dict[tuple[str, ...], list[tuple[list[float], int]]] = {}
    values = []
    for metric in wanted:
        among = tuple(_among(metric, seen))
        if among not in made:
            made[among] = _counted(calls(among, page.since, page.until) if among else (), page)
        values.append({"metric": dict(metric), "values": _series(metric, made[among], page)})
    found: dict[str, Any] = {"metric_values": values}
    if page.until < window.until:
        left = {"since": page.until, "until": window.until, "step": window.step}
        found["next_page_token"] = base64.urlsafe_b64encode(json.dumps(left).encode()).decode()
    return found


def asked(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The metrics of a request, checked; all where it names none. Raises BadRequest."""
    given = body.get("metrics") or SHOWN
    if not isinstance(given, (list, tuple)) or not all(isinstance(metric, dict) for metric in given) or len(given) > 100:
        raise BadRequest("field 'metrics' must be a list of at most 100 objects with a 'name'")
    for metric in given:
        if metric.get("name") not in NAMES:
            raise BadRequest(f"unknown metric {metric.get('name')!r}: accepted are {', '.join(NAMES)}")
        share = metric.get("percentile", 50)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 100:
            raise BadRequest("field 'percentile' must be a number from 0 to 100")
        labels = metric.get("labels") or []
        if not isinstance(labels, list) or any(not isinstance(each, dict) or each.get("name") != LABEL for each in labels):
            raise BadRequest(f"field 'labels' must be a list of objects with the 'name' {LABEL!r} and a 'value'")
    return given


def times(body: Mapping[str, Any]) -> Window:
    """The time that a request is about; what is left of it where it has a page token. Raises BadRequest."""
    if body.get("page_token"):
        try:
            value = json.loads(base64.urlsafe_b64decode(str(body["page_token"])))
            held = [value[name] for name in Window._fields]
            if not all(isinstance(each, int) and not isinstance(each, bool) for each in held):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
            raise BadRequest("field 'page_token' must be the next_page_token of an answer") from None
        return _checked(Window(*held))
    step = body.get("granularity_in_seconds")
    step = STEP_S if step is None else step
    if not isinstance(step, int) or isinstance(step, bool):
        raise BadRequest("field 'granularity_in_seconds' must be a whole number of seconds")
    until = _moment(body, "end_time", time.time())
    since = _moment(body, "start_time", until - DEFAULT_S)
    return _checked(Window(int(since), int(until), step))


def _checked(window: Window) -> Window:
    if not 1 <= window.step <= KEPT_S:
        raise BadRequest(f"field 'granularity_in_seconds' must be between 1 and {KEPT_S}")
    if not 0 <= window.until - window.since <= KEPT_S:
        raise BadRequest(f"'start_time' must be before 'end_time', and at most {KEPT_S // 3600} hours")
    return window


def _moment(body: Mapping[str, Any], field: str, default: float) -> float:
    given = body.get(field)
    if given is None:
        return default
    try:
        if isinstance(given, str) and not given.isdigit():
            read = datetime.fromisoformat(given)
            return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
        seconds = int(given) / 1000 if isinstance(given, (str, int)) else -1
        if 0 <= seconds < 1e11:
            return seconds
    except (ValueError, OverflowError):
        pass
    raise BadRequest(f"field {field!r} must be a time as 2026-11-23T09:30:00Z, or milliseconds since 1970")


def _among(metric: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    wanted = {label.get("value") for label in metric.get("labels") or []}
    return [name for name in names if not wanted or name in wanted]


def _counted(found: Iterable[tuple[float, int, float | None]], window: Window) -> list[tuple[list[float], int]]:
    """Of each step the milliseconds of the calls that were answered, and how many were not."""
    steps: list[tuple[list[float], int]] = [([], 0) for _ in range(-(-(window.until - window.since) // window.step))]
    for at, status, took in found:
        place = int(at - window.since) // window.step
        if 0 <= place < len(steps):
            answered, failed = steps[place]
            if status < 400:
                answered.append(took or 0.0)
            else:
                steps[place] = answered, failed + 1
    return steps


def _series(metric: Mapping[str, Any], steps: Sequence[tuple[list[float], int]], window: Window) -> list[dict[str, Any]]:
    """A value for each step that has one: without queries there is neither an error rate nor a latency."""
    found = []
    for place, (answered, failed) in enumerate(steps):
        value = None
        if metric["name"] == NAMES[0]:
            value = (len(answered) + failed) / window.step
        elif metric["name"] == NAMES[1] and (answered or failed):
            value = 100 * failed / (len(answered) + failed)
        elif metric["name"] == NAMES[2] and answered:
            value = float(np.percentile(answered, metric.get("percentile", 50)))
        if value is not None:
            found.append({"timestamp": (window.since + place * window.step) * 1000, "value": value})
    return found
