"""Home: what was asked and what it cost, over time and by endpoint; what needs attention first. Reads hourly sums, no calls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from governance.hourly import percentile
from serving.ui.console.charts import COLOURS, bars, line, plot, shortened
from serving.ui.console.frame import ConsolePage
from serving.ui.console.overview import OTHERS, Overview, Sum, attention, endpoint_url, journal_url, overview
from serving.ui.console.tables import table
from serving.ui.console.words import compact, dollars, milliseconds
from serving.ui.parts import tag

SPANS = {"24 hours": (24, 1), "7 days": (7 * 24, 6), "30 days": (30 * 24, 24)}
"""Hours looked back at, and hours in a column."""

ATTENTION = 6
"""What needs attention that is listed at once."""
_QUIET = "No calls in this time."
Row = Mapping[str, Any]


class HomePage(ConsolePage):
    section = "Home"
    span = "24 hours"
    only: str | None = None
    """The endpoint whose numbers alone are shown."""

    def open(self, asked: Mapping[str, str]) -> None:
        self.only = asked.get("endpoint")
        self.span = next((name for name, (hours, _) in SPANS.items() if str(hours) == asked.get("hours")), self.span)

    async def load(self) -> tuple[bool, Overview, Sequence[Row], Sequence[Row]]:
        who = await self.who()
        hours, width = SPANS[self.span]
        now = datetime.now(UTC)
        since = (now - timedelta(hours=hours - 1)).strftime("%Y-%m-%dT%H")
        rows, thumbs, endpoints, indexes = await asyncio.gather(
            self.data.usage(who, since), self.data.thumbs(who, since), self.data.endpoints(who), self.data.indexes(who)
        )
        return who.admin, overview(rows, now, hours, width, thumbs, only=self.only), endpoints, indexes

    def draw(self, loaded: tuple[bool, Overview, Sequence[Row], Sequence[Row]]) -> None:
        admin, seen, endpoints, indexes = loaded
        known = {str(each["name"]): each for each in endpoints}
        names = sorted({*known, *seen.endpoints}, key=lambda name: (-seen.endpoints.get(name, Sum()).requests, name))
        self._head(admin, names)
        if self.only is None:
            self._attention(attention(seen, endpoints, indexes, SPANS[self.span][0]) if admin else [])
        else:
            self._links(self.only in known)
        self._figures(seen.total)
        if seen.total.requests or seen.total.rated:
            self._charts(seen)
        else:
            tag("p", "hint empty-state quiet-time", "No calls in this time. Ask something in the chat, or look further back.")
        columns = [
            ("name", "Endpoint"), ("state", "State"), ("requests", "Requests"), ("errors", "Errors"), ("limited", "Limits hit"),
            ("refused", "Refused"), ("tokens", "Tokens"), ("cost", "Cost $"), ("p50", "p50 ms"), ("p95", "p95 ms"),
            ("helpful", "Helpful %"),
        ]  # fmt: skip
        shown = [_row(name, known.get(name), seen.endpoints.get(name, Sum())) for name in names]
        empty = "There is no endpoint you may see yet."
        table("Endpoints and indexes", empty, columns, shown, key="name", opens="name", on_open=self._choose)

    def _head(self, admin: bool, names: Sequence[str]) -> None:
        about = "Every call through the gateway." if admin else "Your calls through the gateway."
        with self.head("Home", about):
            with tag("select", "field filter", aria_label="Endpoint") as choice:
                tag("option", text="All endpoints", value="", selected=True if self.only is None else None)
                for name in names if self.only in (None, *names) else [str(self.only), *names]:
                    tag("option", text=name, value=name, selected=True if name == self.only else None)
            choice.on("change", lambda event: self._choose(str(event.args)), js_handler="(e) => emit(e.target.value)")
            with tag("div", "segments", role="group", aria_label="Time span"):
                for name in SPANS:
                    pressed = str(name == self.span).lower()
                    tag("button", "segment", name, type="button", aria_pressed=pressed).on("click", self._look_back(name), [])

    def _look_back(self, span: str) -> Any:
        async def look() -> None:
            self.span = span
            await self._again()

        return look

    async def _choose(self, name: str) -> None:
        self.only = name or None
        await self._again()
        self.client.run_javascript("smalti.to('.console-body')")

    async def _again(self) -> None:
        hours = str(SPANS[self.span][0])
        self.go(endpoint=self.only, hours=None if self.span == HomePage.span else hours)
        await self.show()

    def _links(self, known: bool) -> None:
        """From one endpoint's numbers to its policy and its calls."""
        name = str(self.only)
        with tag("p", "hint head-tools links"):
            if known:
                tag("a", "link", "Split, limits and guardrails", href=endpoint_url(name))
            tag("a", "link", "Its calls in the journal", href=journal_url(name, SPANS[self.span][0]))

    def _attention(self, items: Sequence[tuple[str, str, str]]) -> None:
        if not items:
            return
        with tag("section", "attention", aria_label="Needs attention"):
            tag("h2", text="Needs attention")
            self._listed(items[:ATTENTION])
            if items[ATTENTION:]:
                with tag("details", "how"):
                    tag("summary", text=f"{len(items) - ATTENTION} more")
                    self._listed(items[ATTENTION:])

    def _listed(self, items: Sequence[tuple[str, str, str]]) -> None:
        with tag("ul"):
            for severity, what, where in items:
                with tag("li", severity), tag("a", href=where):
                    tag("span", text=what)

    def _figures(self, total: Sum) -> None:
        p50, p95 = (milliseconds(percentile(total.bands, share)) for share in (0.5, 0.95))
        with tag("div", "figures"):
            _figure("Requests", compact(total.requests), "1")
            _figure("Errors", compact(total.errors), "0", _share(total.errors, total.requests))
            _figure("Limits hit", compact(total.limited), "3", _share(total.limited, total.requests))
            _figure("Refused", compact(total.refused), "3", "grants, input" if total.refused else "")
            _figure("Tokens", compact(total.tokens), "2", f"{compact(total.output_tokens)} of them out" if total.tokens else "")
            _figure("Cost", dollars(total.cost), "4")
            _figure("Latency p50", p50, "1", f"p95 {p95}" if total.bands else "")
            helpful = f"{total.helpful / total.rated:.0%}" if total.rated else "–"
            _figure("Helpful", helpful, "4", f"of {compact(total.rated)} rated" if total.rated else "")

    def _charts(self, seen: Overview) -> None:
        with tag("div", "charts"):
            self._requests(seen)
            self._latency(seen)
            self._tokens(seen)
            self._cost(seen)
            self._feedback(seen)
            if self.only is None:
                self._endpoints(seen)

    def _requests(self, seen: Overview) -> None:
        total = seen.total
        label = f"{total.requests:,} requests in {self.span}: {total.errors:,} failed, {total.limited:,} hit a limit"
        series = [
            bars("Answered", [s.answered for _, s in seen.columns], "var(--t1)"),
            bars("Refused", [s.refused for _, s in seen.columns], "var(--t2)"),
            bars("Limit hit", [s.limited for _, s in seen.columns], "var(--t3)"),
            bars("Failed", [s.errors for _, s in seen.columns], "var(--t0)"),
        ]
        said = f"{label}, {total.refused:,} were refused"
        plot("Requests", said, series, categories=self._times(seen), empty="" if total.requests else _QUIET)

    def _latency(self, seen: Overview) -> None:
        lines = []
        for share, colour in ((0.5, "var(--t1)"), (0.95, "var(--t2)")):
            points = [percentile(s.bands, share) for _, s in seen.columns]
            lines.append(line(f"p{share * 100:.0f}", [None if p is None else round(p, 1) for p in points], colour))
        p50, p95 = (milliseconds(percentile(seen.total.bands, share)) for share in (0.5, 0.95))
        label = f"Latency over {self.span}: p50 {p50}, p95 {p95}"
        plot("Latency, ms", label, lines, categories=self._times(seen), empty="" if seen.total.bands else _QUIET)

    def _tokens(self, seen: Overview) -> None:
        total = seen.total
        label = f"Tokens in {self.span}: {total.input_tokens:,} in, {total.output_tokens:,} out"
        series = [
            bars("In", [s.input_tokens for _, s in seen.columns], "var(--t2)"),
            bars("Out", [s.output_tokens for _, s in seen.columns], "var(--t1)"),
        ]
        empty = "" if total.tokens else "No tokens were counted in this time."
        plot("Tokens", label, series, categories=self._times(seen), empty=empty)

    def _cost(self, seen: Overview) -> None:
        label = f"Cost in {self.span}: {dollars(seen.total.cost)}"
        series = [bars("Cost", [round(s.cost, 6) for _, s in seen.columns], "var(--t4)")]
        empty = "" if seen.total.cost else "Nothing in this time had a price."
        plot("Cost, $", label, series, categories=self._times(seen), empty=empty, whole=False)

    def _feedback(self, seen: Overview) -> None:
        total = seen.total
        label = f"Feedback in {self.span}: {total.helpful:,} answers helped, {total.unhelpful:,} did not"
        series = [
            bars("Helped", [s.helpful for _, s in seen.columns], "var(--t4)"),
            bars("Did not", [s.unhelpful for _, s in seen.columns], "var(--t0)"),
        ]
        empty = "" if total.rated else "Nobody rated an answer in this time."
        plot("Feedback", label, series, categories=self._times(seen), empty=empty)

    def _endpoints(self, seen: Overview) -> None:
        shares = seen.busiest()
        label = ", ".join(f"{name} {sum(counts):,}" for name, counts in shares.items())
        colours = [*COLOURS, "var(--faint)"]
        series = [
            bars(shortened(name), counts, colours[-1] if name == OTHERS else colour)
            for colour, (name, counts) in zip(colours, shares.items(), strict=False)
        ]
        empty = "" if seen.total.requests else _QUIET
        plot("Requests by endpoint", f"Requests in {self.span}: {label}", series, categories=self._times(seen), empty=empty)

    def _times(self, seen: Overview) -> list[str]:
        form = "%H:%M" if self.span == "24 hours" else "%-d %b"
        return [at.strftime(form) for at, _ in seen.columns]


def _figure(label: str, value: str, colour: str, note: str = "") -> None:
    with tag("div", f"figure tile-{colour}"):
        tag("span", "figure-label", label)
        tag("strong", text=value)
        if note:
            tag("small", text=note)


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%}" if count else ""


def _row(name: str, endpoint: Row | None, numbers: Sum) -> dict[str, Any]:
    p50, p95 = percentile(numbers.bands, 0.5), percentile(numbers.bands, 0.95)
    return {
        "name": name, "state": ((endpoint or {}).get("state") or {}).get("ready", ""), "requests": numbers.requests,
        "errors": numbers.errors, "limited": numbers.limited, "refused": numbers.refused, "tokens": numbers.tokens,
        "cost": round(numbers.cost, 4), "helpful": round(100 * numbers.helpful / numbers.rated) if numbers.rated else None,
        "p50": None if p50 is None else round(p50, 1), "p95": None if p95 is None else round(p95, 1),
    }  # fmt: skip
