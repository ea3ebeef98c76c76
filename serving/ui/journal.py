"""The journal as the console reads it: rows without payloads, and the numbers made from them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from governance.call import Caller

if TYPE_CHECKING:
    from sqlalchemy import Engine

Row = Mapping[str, Any]
Read = Callable[[Caller, float, int], Awaitable[Sequence[Row]]]


class _Journal(Protocol):
    def ingest(self) -> int: ...


_COLUMNS = {
    "request_id": "databricks_request_id",
    "time": "request_time",
    "endpoint": "endpoint_name",
    "task": "task",
    "caller": "requester",
    "status": "status_code",
    "latency_ms": "execution_duration_ms",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "error": "error",
    "parent_id": "parent_request_id",
}


def reader(engine: Engine, journal: _Journal) -> Read:
    """Reads the inference table of `engine`, everything journalled so far included; `ConsoleData.journal`.

    An admin sees all calls, anyone else their own.
    """

    def read(caller: Caller, since: float, limit: int) -> Sequence[Row]:
        from sqlalchemy import select

        from governance.tables import inference_table

        journal.ingest()
        columns = inference_table.c
        begin = datetime.fromtimestamp(since, UTC).replace(tzinfo=None).isoformat()  # sorts like the stored text
        statement = select(*(columns[name].label(key) for key, name in _COLUMNS.items())).where(columns.request_time >= begin)
        if not caller.admin:
            statement = statement.where(columns.requester == caller.name)
        newest = statement.order_by(columns.request_time.desc()).limit(limit)
        with engine.connect() as connection:
            return [{**row, "time": seconds_of(row["time"])} for row in connection.execute(newest).mappings()]

    async def rows(caller: Caller, since: float, limit: int) -> Sequence[Row]:
        return await asyncio.to_thread(read, caller, since, limit)

    return rows


def seconds_of(value: Any) -> float | None:
    """Unix seconds of a time given as such or as ISO 8601 (UTC where it names no zone)."""
    if isinstance(value, int | float):
        return float(value)
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


@dataclass(slots=True)
class Numbers:
    """What happened in a while: of one endpoint or of all. Latencies in milliseconds."""

    requests: int = 0
    errors: int = 0
    refused: int = 0
    tokens: int = 0
    latencies: list[float] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.requests += 1
        status = row.get("status")
        if status is None or status >= 500:
            self.errors += 1
        elif status >= 400 and status != 499:
            self.refused += 1
        self.tokens += (row.get("input_tokens") or 0) + (row.get("output_tokens") or 0)
        if (latency := row.get("latency_ms")) is not None and (status or 0) < 400:
            self.latencies.append(float(latency))

    def percentile(self, share: float) -> float | None:
        """Nearest-rank percentile of the answered calls' latency."""
        if not self.latencies:
            return None
        ranked = sorted(self.latencies)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


@dataclass(slots=True)
class Usage:
    """Numbers in all, per endpoint and per stretch of time."""

    total: Numbers
    endpoints: dict[str, Numbers]
    stretches: list[tuple[float, Numbers]]
    """(begin in Unix seconds, numbers), oldest first, without gaps."""


def usage(rows: Sequence[Row], begin: float, end: float, count: int) -> Usage:
    """Count `rows`. Calls that an answer made itself count for their endpoint, not in all: nobody asked them from outside."""
    width = (end - begin) / count
    total, stretches = Numbers(), [Numbers() for _ in range(count)]
    endpoints: defaultdict[str, Numbers] = defaultdict(Numbers)
    for row in rows:
        endpoints[str(row.get("endpoint") or "")].add(row)
        if row.get("parent_id"):
            continue
        total.add(row)
        if (time := seconds_of(row.get("time"))) is not None and begin <= time <= end:
            stretches[min(count - 1, int((time - begin) / width))].add(row)
    return Usage(total, dict(endpoints), [(begin + i * width, numbers) for i, numbers in enumerate(stretches)])
