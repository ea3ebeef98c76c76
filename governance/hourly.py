"""Usage by the hour, kept while the journal is taken in: what a dashboard sums, however long the inference table has become.

Each ended call adds one to the row of its hour, endpoint and latency band, once for everyone (requester `""`) and once for who
asked. Sums over bands are exact; percentiles are read from the bands, each a quarter wider than the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, case, func, literal, select, union_all, update
from sqlalchemy.dialects import postgresql, sqlite

from governance.call import DEPENDENCY_FAILED
from governance.counts import BANDS, COUNTS, EVERYONE, KEYS, LIMITED, NO_BAND, NO_REFUSAL, band_of
from governance.tables import hourly, inference_table

__all__ = ["BANDS", "COUNTS", "band_of", "fill", "fill_limited", "percentile", "read"]


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
    refused = (table.status_code >= 400) & (table.status_code < 500) & table.status_code.not_in(NO_REFUSAL)
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
        connection.execute(insert(hourly).from_select([*KEYS, *COUNTS], rows).on_conflict_do_nothing())


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
