"""Usage by the hour, kept while the journal is taken in: what a dashboard sums, however long the inference table has become.

Each ended call adds one to the row of its hour, endpoint and latency band, once for everyone (requester `""`) and once for who
asked. Sums over bands are exact; percentiles are read from the bands, each a quarter wider than the one before.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from operator import add as add_up
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, Executable, bindparam, case, func, literal, select, union_all, update
from sqlalchemy.dialects import postgresql, sqlite

from governance.call import DEPENDENCY_FAILED, is_failure
from governance.tables import hourly, inference_table

BANDS = tuple(round(1.25**power, 3) for power in range(-4, 56))
"""Upper ends of the latency bands in milliseconds: 0.4 ms to about 3.5 minutes; the last band has no end."""

COUNTS = ("requests", "refused", "limited", "errors", "input_tokens", "output_tokens", "cost")
"""Of those refused, `limited` ran into a limit or a budget."""
EVERYONE = ""
_KEYS = ("requester", "hour", "endpoint", "inner_call", "band")
_READ = (
    "databricks_request_id", "request_time", "endpoint_name", "requester", "status_code", "execution_duration_ms", "input_tokens",
    "output_tokens", "cost", "parent_request_id",
)  # fmt: skip
_KNOWN = f"SELECT {', '.join(_READ)} FROM inference_table WHERE databricks_request_id IN (SELECT value FROM json_each(?))"
_AT_ONCE = 400
LIMITED = 429
_NO_REFUSAL = (DEPENDENCY_FAILED, 499)  # that a model elsewhere or the client is the reason of
NO_BAND = -1
"""The band of calls that were refused or failed: how long that took is no latency of an answer."""


def band_of(milliseconds: float) -> int:
    return bisect.bisect_left(BANDS, milliseconds)


def percentile(bands: Mapping[int, int], share: float) -> float | None:
    """The latency in milliseconds below which that share of the calls lies, within an eighth; None where there are none."""
    counted = sorted((band, count) for band, count in bands.items() if band >= 0 and count > 0)
    wanted, seen = share * sum(count for _, count in counted), 0
    for band, count in counted:
        if seen + count >= wanted:
            low, high = (BANDS[band - 1] if band else 0.0), BANDS[min(band, len(BANDS) - 1)]
            return low + (high - low) * (wanted - seen) / count
        seen += count
    return None


def add(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Count rows that are about to be merged into the inference table, in the same transaction; what was counted of them goes."""
    known = _known(connection, [row["databricks_request_id"] for row in rows])
    changes: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        old = known.get(row["databricks_request_id"])
        new = row if old is None else {name: old[name] if row.get(name) is None else row[name] for name in _READ}
        if old is not None:
            _count(changes, old, -1)
        _count(changes, new, 1)
    _write(connection, changes)


def _known(connection: Connection, identifiers: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """What the table has of these calls already."""
    if connection.dialect.name == "sqlite":  # one short statement, however many they are
        found = connection.exec_driver_sql(_KNOWN, (orjson.dumps(identifiers).decode(),))
        return {row[0]: dict(zip(_READ, row, strict=True)) for row in found}
    table, known = inference_table.c, {}
    for start in range(0, len(identifiers), _AT_ONCE):
        some = identifiers[start : start + _AT_ONCE]
        query = select(*(table[name] for name in _READ)).where(table.databricks_request_id.in_(some))
        known |= {row["databricks_request_id"]: row for row in connection.execute(query).mappings()}
    return known


def _count(changes: dict[tuple[Any, ...], list[float]], row: Mapping[str, Any], sign: int) -> None:
    status, time = row.get("status_code"), row.get("request_time")
    if status is None or time is None:  # it is still going on
        return
    answered, duration = status < 400, row.get("execution_duration_ms")
    band = band_of(duration) if answered and duration is not None else NO_BAND
    refused = 400 <= status < 500 and status not in _NO_REFUSAL
    numbers = [
        sign, sign * refused, sign * (status == LIMITED), sign * is_failure(status), sign * (row.get("input_tokens") or 0),
        sign * (row.get("output_tokens") or 0), sign * (row.get("cost") or 0.0),
    ]  # fmt: skip
    for who in {EVERYONE, row.get("requester") or EVERYONE}:
        key = (who, time[:13], row["endpoint_name"], int(row.get("parent_request_id") is not None), band)
        held = changes.get(key)
        changes[key] = numbers if held is None else list(map(add_up, held, numbers))


def _write(connection: Connection, changes: Mapping[tuple[Any, ...], Sequence[float]]) -> None:
    values: list[dict[str, Any]] = [
        dict(zip((*_KEYS, *COUNTS), (*key, *counts), strict=True)) for key, counts in sorted(changes.items()) if any(counts)
    ]
    if values:
        connection.execute(_adding(connection.dialect.name), values)


@lru_cache(maxsize=2)
def _adding(dialect: str) -> Executable:
    """The statement that adds counts to those that are there."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = insert(hourly)
    summed = {name: hourly.c[name] + statement.excluded[name] for name in COUNTS}
    return statement.on_conflict_do_update(index_elements=list(_KEYS), set_=summed)


def fill(engine: Engine) -> None:
    """Count an inference table from before there was this one. Once; some seconds for a million rows."""
    with engine.connect() as connection:
        if (
            connection.execute(select(hourly.c.hour).limit(1)).first()
            or not connection.execute(select(inference_table.c.databricks_request_id).limit(1)).first()
        ):
            return
    table = inference_table.c
    answered = (table.status_code < 400) & table.execution_duration_ms.isnot(None)
    ladder = [(table.execution_duration_ms <= end, band) for band, end in enumerate(BANDS)]
    band = case((~answered, NO_BAND), *ladder, else_=len(BANDS))
    inner = case((table.parent_request_id.is_(None), 0), else_=1)
    refused = (table.status_code >= 400) & (table.status_code < 500) & table.status_code.not_in(_NO_REFUSAL)
    numbers = (
        func.count(),
        func.sum(case((refused, 1), else_=0)),
        func.sum(case((table.status_code == LIMITED, 1), else_=0)),
        func.sum(case(((table.status_code >= 500) | (table.status_code == DEPENDENCY_FAILED), 1), else_=0)),
        func.coalesce(func.sum(table.input_tokens), 0),
        func.coalesce(func.sum(table.output_tokens), 0),
        func.coalesce(func.sum(table.cost), 0.0),
    )
    hour = func.substr(table.request_time, 1, 13)

    def counted(who: Any, groups: Iterable[Any]) -> Any:
        chosen = select(who, hour, table.endpoint_name, inner, band, *numbers).where(table.status_code.isnot(None))
        return chosen.group_by(*groups, hour, table.endpoint_name, inner, band)

    everyone = counted(literal(EVERYONE), ())
    each = counted(table.requester, (table.requester,)).where(table.requester.isnot(None), table.requester != EVERYONE)
    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    rows = select(union_all(everyone, each).subquery()).where(literal(value=True))
    with engine.begin() as connection:
        connection.execute(insert(hourly).from_select([*_KEYS, *COUNTS], rows).on_conflict_do_nothing())


def fill_limited(connection: Connection) -> None:
    """Count the limits hit in hours from before they were counted, as far back as the inference table goes. Once."""
    table, hour = inference_table.c, func.substr(inference_table.c.request_time, 1, 13).label("at")
    inner = case((table.parent_request_id.is_(None), 0), else_=1).label("inner")
    groups = (func.coalesce(table.requester, EVERYONE).label("who"), hour, table.endpoint_name.label("name"), inner)
    counted = select(*groups, func.count().label("hits")).where(table.status_code == LIMITED).group_by(*groups)
    totals: dict[tuple[Any, ...], int] = {}
    for row in connection.execute(counted):
        for who in {EVERYONE, row.who}:
            key = (who, row.at, row.name, row.inner)
            totals[key] = totals.get(key, 0) + row.hits
    if totals:
        names = ("who", "at", "name", "inner", "hits")
        of = hourly.c
        one = (of.requester == bindparam("who")) & (of.hour == bindparam("at")) & (of.endpoint == bindparam("name"))
        one &= (of.inner_call == bindparam("inner")) & (of.band == NO_BAND)
        values: list[dict[str, Any]] = [dict(zip(names, (*key, count), strict=True)) for key, count in totals.items()]
        connection.execute(update(hourly).where(one).values(limited=bindparam("hits")), values)


def read(
    engine: Engine, *, since: str, until: str | None = None, requester: str | None = None, by: Sequence[str] = ("hour",)
) -> list[dict[str, Any]]:
    """Rows of `by` and `inner_call`, then the counts (`COUNTS`) and `bands`, the answered calls by latency band.

    Parameters
    ----------
    since, until: hours, as `2026-11-23T09` (UTC); from the first on, before the second.
    requester: only this one's calls; None for everyone's.
    by: of `hour`, `endpoint`.
    """
    names = (*by, "inner_call")
    groups = [hourly.c[name] for name in names]
    where = [hourly.c.requester == (requester or EVERYONE), hourly.c.hour >= since[:13]]
    if until is not None:
        where.append(hourly.c.hour < until[:13])
    statement = select(*groups, hourly.c.band, *(func.sum(hourly.c[name]).label(name) for name in COUNTS)).where(*where)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    with engine.connect() as connection:
        for row in connection.execute(statement.group_by(*groups, hourly.c.band).order_by(*groups)).mappings():
            key = tuple(row[name] for name in names)
            held = found.setdefault(key, {**dict(zip(names, key, strict=True)), **dict.fromkeys(COUNTS, 0), "bands": {}})
            for name in COUNTS:
                held[name] += row[name]
            if row["band"] != NO_BAND:
                held["bands"][row["band"]] = row["requests"]
    return list(found.values())
