"""Home: what was asked and what it cost, per hour and endpoint, and what needs attention first. Reads hourly sums, no calls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from governance.hourly import percentile
from serving.ui.console.charts import bars, line, plot
from serving.ui.console.frame import ConsolePage, compact, dollars, milliseconds
from serving.ui.console.tables import table
from serving.ui.parts import tag

SPANS = {"24 hours": (24, 1), "7 days": (7 * 24, 6), "30 days": (30 * 24, 24)}
"""Hours looked back at, and hours in a column."""

DOUBTED = 5
"""Thumbs down from which on an endpoint's answers are worth a look."""
_QUIET = "No calls in this time."
Row = Mapping[str, Any]


@dataclass(slots=True)
class Sum:
    """Counts of calls. Costs in US dollars, latencies by band."""

    requests: int = 0
    refused: int = 0
    errors: int = 0
    tokens: int = 0
    cost: float = 0.0
    helpful: int = 0
    unhelpful: int = 0
    bands: dict[int, int] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        self.requests += row["requests"]
        self.refused += row["refused"]
        self.errors += row["errors"]
        self.tokens += row["input_tokens"] + row["output_tokens"]
        self.cost += row["cost"]
        for band, count in row["bands"].items():
            self.bands[band] = self.bands.get(band, 0) + count


@dataclass(slots=True)
class Overview:
    """Sums in all, by endpoint and by column of time (oldest first, without gaps)."""

    total: Sum
    endpoints: dict[str, Sum]
    columns: list[tuple[datetime, Sum]]


def overview(rows: Sequence[Row], now: datetime, hours: int, width: int, thumbs: Sequence[Row] = ()) -> Overview:
    """Add up hourly rows and thumbs. Calls that an answer made itself count for their endpoint, not in all."""
    last = now.replace(minute=0, second=0, microsecond=0)
    begin = last - timedelta(hours=hours - 1)
    columns = [(begin + timedelta(hours=width * i), Sum()) for i in range(-(-hours // width))]
    total, endpoints = Sum(), {}
    for row in rows:
        endpoints.setdefault(row["endpoint"], Sum()).add(row)
        if row["inner_call"]:
            continue
        total.add(row)
        place = int((datetime.fromisoformat(f"{row['hour']}:00+00:00") - begin).total_seconds() // 3600) // width
        if 0 <= place < len(columns):
            columns[place][1].add(row)
    for thumb in thumbs:
        place = int(thumb["time"] - begin.timestamp()) // 3600 // width
        for counted in (total, endpoints.setdefault(thumb["endpoint"], Sum()), *(s for _, s in columns[place : place + 1])):
            counted.helpful += thumb["helpful"]
            counted.unhelpful += not thumb["helpful"]
    return Overview(total, endpoints, columns)


def attention(seen: Overview, endpoints: Sequence[Row], indexes: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(severity, what, where to go) of what an owner should look at, the worst first."""
    found: list[tuple[int, str, str]] = []
    for each in endpoints:
        name, state = str(each["name"]), each.get("state") or {}
        if state.get("ready") != "READY":
            found.append((2, f"{name} is not ready.", f"/console/endpoints?name={name}"))
        elif state.get("config_update") == "UPDATE_FAILED":
            found.append((2, f"The last change of {name} failed; its former version answers.", f"/console/endpoints?name={name}"))
    for name, numbers in seen.endpoints.items():
        where = f"/console/journal?endpoint={name}"
        if numbers.errors:
            share = numbers.errors / numbers.requests
            serious = 2 if share >= 0.05 else 1
            found.append((serious, f"{numbers.errors:,} of {numbers.requests:,} calls of {name} failed.", f"{where}&status=5"))
        if numbers.refused:
            found.append((1, f"{numbers.refused:,} calls of {name} were refused: limits, grants or input.", f"{where}&status=4"))
        if numbers.unhelpful >= DOUBTED and numbers.unhelpful > numbers.helpful:
            found.append((1, f"{numbers.unhelpful:,} answers of {name} did not help, {numbers.helpful:,} did.", where))
    for each in indexes:
        if each.get("error"):
            found.append((2, f"The last sync of {each['name']} failed: {each['error']}", "/console/indexes"))
        elif skipped := len(each.get("skipped") or ()):
            found.append(
                (1, f"{skipped:,} file{'s were' if skipped > 1 else ' was'} skipped in {each['name']}.", "/console/indexes")
            )
    return [("bad" if rank == 2 else "warn", what, where) for rank, what, where in sorted(found, key=lambda item: -item[0])]


class HomePage(ConsolePage):
    section = "Home"
    span = "24 hours"

    async def load(self) -> tuple[bool, Overview, Sequence[Row], Sequence[Row]]:
        who = await self.who()
        hours, width = SPANS[self.span]
        now = datetime.now(UTC)
        since = (now - timedelta(hours=hours - 1)).strftime("%Y-%m-%dT%H")
        rows, thumbs, endpoints, indexes = await asyncio.gather(
            self.data.usage(who, since), self.data.thumbs(who, since), self.data.endpoints(who), self.data.indexes(who)
        )
        return who.admin, overview(rows, now, hours, width, thumbs), endpoints, indexes

    def draw(self, loaded: tuple[bool, Overview, Sequence[Row], Sequence[Row]]) -> None:
        admin, seen, endpoints, indexes = loaded
        about = "Every call through the gateway." if admin else "Your calls through the gateway."
        with self.head("Home", about), tag("div", "segments", role="group", aria_label="Time span"):
            for name in SPANS:
                pressed = str(name == self.span).lower()
                tag("button", "segment", name, type="button", aria_pressed=pressed).on("click", self._choose(name), [])
        self._attention(attention(seen, endpoints, indexes) if admin else [])
        self._figures(seen.total)
        with tag("div", "charts"):
            self._requests(seen)
            self._latency(seen)
            self._feedback(seen)
        known = {str(each["name"]): each for each in endpoints}
        names = [*known, *(name for name in seen.endpoints if name not in known)]
        columns = [
            ("name", "Endpoint"), ("state", "State"), ("requests", "Requests"), ("errors", "Errors"), ("refused", "Refused"),
            ("tokens", "Tokens"), ("cost", "Cost $"), ("p50", "p50 ms"), ("p95", "p95 ms"), ("helpful", "Helpful %"),
        ]  # fmt: skip
        shown = [_row(name, known.get(name), seen.endpoints.get(name, Sum())) for name in names]
        shown.sort(key=lambda row: -row["requests"])
        table("Endpoints and indexes", "There is no endpoint you may see yet.", columns, shown, key="name")

    def _choose(self, name: str) -> Any:
        async def choose() -> None:
            self.span = name
            await self.show()

        return choose

    def _attention(self, items: Sequence[tuple[str, str, str]]) -> None:
        if not items:
            return
        with tag("section", "attention", aria_label="Needs attention"):
            tag("h2", text="Needs attention")
            with tag("ul"):
                for severity, what, where in items[:6]:
                    with tag("li", severity), tag("a", href=where):
                        tag("span", text=what)
                if len(items) > 6:
                    tag("li", "more", f"and {len(items) - 6} more")

    def _figures(self, total: Sum) -> None:
        with tag("div", "figures"):
            self._figure("Requests", compact(total.requests), "1")
            self._figure("Errors", compact(total.errors), "0", f"{total.errors / total.requests:.1%}" if total.errors else "")
            self._figure("Refused", compact(total.refused), "3", "limits, grants, input" if total.refused else "")
            self._figure("Tokens", compact(total.tokens), "2")
            self._figure("Cost", dollars(total.cost), "4")
            self._figure("Latency p50", milliseconds(percentile(total.bands, 0.5)), "1")
            self._figure("Latency p95", milliseconds(percentile(total.bands, 0.95)), "2")
            rated = total.helpful + total.unhelpful
            self._figure(
                "Helpful", f"{total.helpful / rated:.0%}" if rated else "–", "4", f"of {compact(rated)} rated" if rated else ""
            )

    def _figure(self, label: str, value: str, colour: str, note: str = "") -> None:
        with tag("div", f"figure tile-{colour}"):
            tag("span", "figure-label", label)
            tag("strong", text=value)
            if note:
                tag("small", text=note)

    def _requests(self, seen: Overview) -> None:
        label = f"{seen.total.requests:,} requests in {self.span}, {seen.total.errors:,} failed, {seen.total.refused:,} refused"
        series = [
            bars("Answered", [s.requests - s.errors - s.refused for _, s in seen.columns], "var(--t1)"),
            bars("Refused", [s.refused for _, s in seen.columns], "var(--t3)"),
            bars("Failed", [s.errors for _, s in seen.columns], "var(--t0)"),
        ]
        plot("Requests", label, series, categories=self._times(seen), empty="" if seen.total.requests else _QUIET)

    def _latency(self, seen: Overview) -> None:
        lines = []
        for share, colour in ((0.5, "var(--t1)"), (0.95, "var(--t2)")):
            points = [percentile(s.bands, share) for _, s in seen.columns]
            lines.append(line(f"p{share * 100:.0f}", [None if p is None else round(p, 1) for p in points], colour))
        p50, p95 = (milliseconds(percentile(seen.total.bands, share)) for share in (0.5, 0.95))
        label = f"Latency over {self.span}: p50 {p50}, p95 {p95}"
        plot("Latency, ms", label, lines, categories=self._times(seen), empty="" if seen.total.bands else _QUIET)

    def _feedback(self, seen: Overview) -> None:
        total = seen.total
        label = f"Feedback in {self.span}: {total.helpful:,} answers helped, {total.unhelpful:,} did not"
        series = [
            bars("Helped", [s.helpful for _, s in seen.columns], "var(--t4)"),
            bars("Did not", [s.unhelpful for _, s in seen.columns], "var(--t0)"),
        ]
        empty = "" if total.helpful + total.unhelpful else "Nobody rated an answer in this time."
        plot("Feedback", label, series, categories=self._times(seen), empty=empty)

    def _times(self, seen: Overview) -> list[str]:
        form = "%H:%M" if self.span == "24 hours" else "%-d %b"
        return [at.strftime(form) for at, _ in seen.columns]


def _row(name: str, endpoint: Row | None, numbers: Sum) -> dict[str, Any]:
    p50, p95 = percentile(numbers.bands, 0.5), percentile(numbers.bands, 0.95)
    return {
        "name": name, "state": ((endpoint or {}).get("state") or {}).get("ready", ""), "requests": numbers.requests,
        "errors": numbers.errors, "refused": numbers.refused, "tokens": numbers.tokens, "cost": round(numbers.cost, 4),
        "helpful": round(100 * numbers.helpful / rated) if (rated := numbers.helpful + numbers.unhelpful) else None,
        "p50": None if p50 is None else round(p50, 1), "p95": None if p95 is None else round(p95, 1),
    }  # fmt: skip
