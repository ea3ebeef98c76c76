"""What a call adds to the counts of its hour (`governance.hourly`): plain arithmetic, which needs no database."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from operator import add as add_up
from typing import Any

from governance.call import DEPENDENCY_FAILED, is_failure

BANDS = tuple(round(1.25**power, 3) for power in range(-4, 56))
"""Upper ends of the latency bands in milliseconds: 0.4 ms to about 3.5 minutes; the last band has no end."""
COUNTS = ("requests", "refused", "limited", "errors", "input_tokens", "output_tokens", "cost")
"""Of those refused, `limited` ran into a limit or a budget."""
EVERYONE = ""
KEYS = ("requester", "hour", "endpoint", "inner_call", "band")
READ = (
    "databricks_request_id", "request_time", "endpoint_name", "requester", "status_code", "execution_duration_ms", "input_tokens",
    "output_tokens", "cost", "parent_request_id",
)  # fmt: skip
"""Columns of the inference table that are counted by."""
LIMITED = 429
NO_BAND = -1
"""The band of calls that were refused or failed: how long that took is no latency of an answer."""
NO_REFUSAL = (DEPENDENCY_FAILED, 499)  # that a model elsewhere or the client is the reason of


def band_of(milliseconds: float) -> int:
    return bisect.bisect_left(BANDS, milliseconds)


def added(rows: Sequence[Mapping[str, Any]], known: Mapping[str, Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """What rows that are about to be merged add to the counts, as tuples of `KEYS` and `COUNTS`.

    Parameters
    ----------
    known: what the table has of these calls already, by request id: what was counted of them goes.
    """
    changes: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        old = known.get(row["databricks_request_id"])
        new = row if old is None else {name: old[name] if row.get(name) is None else row[name] for name in READ}
        if old is not None:
            _count(changes, old, -1)
        _count(changes, new, 1)
    return [(*key, *counts) for key, counts in sorted(changes.items()) if any(counts)]


def _count(changes: dict[tuple[Any, ...], list[float]], row: Mapping[str, Any], sign: int) -> None:
    status, time = row["status_code"], row["request_time"]
    if status is None or time is None:  # it is still going on
        return
    answered, duration = status < 400, row["execution_duration_ms"]
    band = band_of(duration) if answered and duration is not None else NO_BAND
    refused = 400 <= status < 500 and status not in NO_REFUSAL
    numbers = [
        sign, sign * refused, sign * (status == LIMITED), sign * is_failure(status), sign * (row["input_tokens"] or 0),
        sign * (row["output_tokens"] or 0), sign * (row["cost"] or 0.0),
    ]  # fmt: skip
    inner = int(row["parent_request_id"] is not None)
    for who in {EVERYONE, row["requester"] or EVERYONE}:
        key = (who, time[:13], row["endpoint_name"], inner, band)
        held = changes.get(key)
        changes[key] = numbers if held is None else list(map(add_up, held, numbers))
