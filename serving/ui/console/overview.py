"""What Home shows, counted: hourly sums by column of time and by endpoint, and what an owner should look at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

DOUBTED = 5
"""Thumbs down from which on an endpoint's answers are worth a look."""
SHARED = 5
"""Endpoints with a colour of their own where several are drawn together; the others are one."""
OTHERS = "all others"

Row = Mapping[str, Any]


@dataclass(slots=True)
class Sum:
    """Counts of calls. Costs in US dollars, latencies by band; `refused` without those that hit a limit."""

    requests: int = 0
    refused: int = 0
    limited: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    helpful: int = 0
    unhelpful: int = 0
    bands: dict[int, int] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        self.requests += row["requests"]
        self.refused += row["refused"] - row["limited"]
        self.limited += row["limited"]
        self.errors += row["errors"]
        self.input_tokens += row["input_tokens"]
        self.output_tokens += row["output_tokens"]
        self.cost += row["cost"]
        for band, count in row["bands"].items():
            self.bands[band] = self.bands.get(band, 0) + count

    def rate(self, helpful: bool) -> None:
        self.helpful += helpful
        self.unhelpful += not helpful

    @property
    def answered(self) -> int:
        return self.requests - self.refused - self.limited - self.errors

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def rated(self) -> int:
        return self.helpful + self.unhelpful


@dataclass(slots=True)
class Overview:
    """Sums in all, by endpoint, by column of time (oldest first, without gaps), and requests of endpoints by column."""

    total: Sum
    endpoints: dict[str, Sum]
    columns: list[tuple[datetime, Sum]]
    shares: dict[str, list[int]]

    def busiest(self) -> dict[str, list[int]]:
        """Requests by column of the endpoints that were asked most, what is left as one more."""
        order = sorted(self.shares, key=lambda name: -sum(self.shares[name]))
        told = {name: self.shares[name] for name in order[:SHARED]}
        if order[SHARED:]:
            told[OTHERS] = [sum(counts) for counts in zip(*(self.shares[name] for name in order[SHARED:]), strict=True)]
        return told


def overview(
    rows: Sequence[Row], now: datetime, hours: int, width: int, thumbs: Sequence[Row] = (), *, only: str | None = None
) -> Overview:
    """Add up hourly rows and thumbs.

    Calls that an answer made itself count for their endpoint, not in all.

    Parameters
    ----------
    hours, width: hours looked back at, and hours in a column.
    only: the endpoint whose calls alone are in the total and the columns, its inner ones too.
    """
    last = now.replace(minute=0, second=0, microsecond=0)
    begin = last - timedelta(hours=hours - 1)
    columns = [(begin + timedelta(hours=width * i), Sum()) for i in range(-(-hours // width))]
    seen = Overview(Sum(), {}, columns, {})
    for row in rows:
        name = row["endpoint"]
        seen.endpoints.setdefault(name, Sum()).add(row)
        if row["inner_call"] if only is None else name != only:
            continue
        seen.total.add(row)
        place = int((datetime.fromisoformat(f"{row['hour']}:00+00:00") - begin).total_seconds() // 3600) // width
        if 0 <= place < len(columns):
            columns[place][1].add(row)
            seen.shares.setdefault(name, [0] * len(columns))[place] += row["requests"]
    for thumb in thumbs:
        seen.endpoints.setdefault(thumb["endpoint"], Sum()).rate(thumb["helpful"])
        if only is not None and thumb["endpoint"] != only:
            continue
        place = int(thumb["time"] - begin.timestamp()) // 3600 // width
        for counted in (seen.total, *(each for _, each in columns[place : place + 1])):
            counted.rate(thumb["helpful"])
    return seen


def journal_url(endpoint: str, hours: int, status: str = "") -> str:
    """Where an endpoint's calls of the last hours are listed."""
    asked = {"endpoint": endpoint, "hours": hours, **({"status": status} if status else {})}
    return f"/console/journal?{urlencode(asked)}"


def endpoint_url(name: str) -> str:
    return f"/console/endpoints?{urlencode({'name': name})}"


def attention(seen: Overview, endpoints: Sequence[Row], indexes: Sequence[Row], hours: int = 24) -> list[tuple[str, str, str]]:
    """(severity, what, where to go) of what an owner should look at, the worst first."""
    found: list[tuple[float, str, str]] = []  # by how bad: 2 and more is bad
    for each in endpoints:
        name, state = str(each["name"]), each.get("state") or {}
        if state.get("ready") != "READY":
            found.append((4, f"{name} is not ready.", endpoint_url(name)))
        elif state.get("config_update") == "UPDATE_FAILED":
            found.append((4, f"The last change of {name} failed; its former version answers.", endpoint_url(name)))
    for name, numbers in seen.endpoints.items():
        if numbers.errors:
            share = numbers.errors / numbers.requests
            told = f"{numbers.errors:,} of {numbers.requests:,} calls of {name} failed."
            found.append((share + (2 if share >= 0.05 else 1.8), told, journal_url(name, hours, "5")))
        if numbers.limited:
            share = numbers.limited / numbers.requests
            found.append(
                (1 + share / 2, f"{_calls(numbers.limited)} of {name} hit a limit or a budget.", journal_url(name, hours, "429"))
            )
        if numbers.refused:
            told = f"{_calls(numbers.refused)} of {name} {'was' if numbers.refused == 1 else 'were'} refused: grants or input."
            found.append((numbers.refused / numbers.requests, told, journal_url(name, hours, "4")))
        if numbers.unhelpful >= DOUBTED and numbers.unhelpful > numbers.helpful:
            told = f"{numbers.unhelpful:,} answers of {name} did not help, {numbers.helpful:,} did."
            found.append((1.5, told, journal_url(name, hours)))
    for each in indexes:
        if each.get("error"):
            found.append((3, f"The last sync of {each['name']} failed: {each['error']}", "/console/indexes"))
        elif skipped := len(each.get("skipped") or ()):
            told = f"{skipped:,} file{'s were' if skipped > 1 else ' was'} skipped in {each['name']}."
            found.append((1.2, told, "/console/indexes"))
    return [("bad" if rank >= 2 else "warn", what, where) for rank, what, where in sorted(found, key=lambda item: -item[0])]


def _calls(count: int) -> str:
    return f"{count:,} call{'' if count == 1 else 's'}"
