"""The usage table: requests, errors, tokens and cost by endpoint, caller and day, counted from the inference table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, case, func, select

from governance.frames import iso, moment
from governance.tables import inference_table

_AT_ONCE = 400
BY = ("endpoint", "requester", "day")

_COLUMNS = {
    "endpoint": inference_table.c.endpoint_name,
    "requester": inference_table.c.requester,
    "day": func.substr(inference_table.c.request_time, 1, 10),
}


def usage(engine: Engine, *, by: Sequence[str] = BY, since: str | None = None, until: str | None = None) -> list[dict[str, Any]]:
    """Rows of `by`, then `requests`, `errors` (status 400 and over), `input_tokens`, `output_tokens`, `cost` (US dollars).

    Inner calls count for the endpoint that was called; what an agent's own row says of tokens is what its inner calls said too.

    Parameters
    ----------
    by: some of `endpoint`, `requester`, `day`. `ValueError` for others.
    since, until: ISO dates or times, UTC where they name no zone; from the first on, before the second. `ValueError` for others.
    """
    unknown = [name for name in by if name not in _COLUMNS]
    if unknown:
        raise ValueError(f"usage is counted by {', '.join(BY)}, not by {unknown[0]!r}")
    table = inference_table.c
    groups = [_COLUMNS[name].label(name) for name in by]
    statement = select(
        *groups,
        func.count().label("requests"),
        func.sum(case((table.status_code >= 400, 1), else_=0)).label("errors"),
        func.coalesce(func.sum(table.input_tokens), 0).label("input_tokens"),
        func.coalesce(func.sum(table.output_tokens), 0).label("output_tokens"),
        func.coalesce(func.sum(table.cost), 0.0).label("cost"),
    )
    if since:
        statement = statement.where(table.request_time >= iso(moment(since)))
    if until:
        statement = statement.where(table.request_time < iso(moment(until)))
    if groups:
        statement = statement.group_by(*groups).order_by(*groups)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(statement).mappings()]


def durations(
    engine: Engine, endpoints: Sequence[str], task: str, since: float, until: float
) -> Iterator[tuple[float, int, float | None]]:
    """When each call of these endpoints was made, its status, and the milliseconds it took; those still under way are left out.

    Parameters
    ----------
    task: of the calls, as `search`.
    since, until: Unix seconds; from the first on, before the second.
    """
    table = inference_table.c
    first, last = (iso(datetime.fromtimestamp(time, UTC)) for time in (since, until))
    chosen = select(table.request_time, table.status_code, table.execution_duration_ms)
    chosen = chosen.where(
        table.request_time >= first, table.request_time < last, table.task == task, table.status_code.isnot(None)
    )
    with engine.connect() as connection:
        for at in range(0, len(endpoints), _AT_ONCE):
            of = table.endpoint_name.in_(endpoints[at : at + _AT_ONCE])
            for time, status, took in connection.execution_options(yield_per=1000).execute(chosen.where(of)):
                yield moment(time).timestamp(), status, took
