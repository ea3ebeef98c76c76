"""The console at `/console`: what was asked, what it cost in time and tokens, and what there is. Grants decide who sees what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from nicegui import ui

from governance.call import Caller, CallError
from serving.ui.journal import Numbers, Usage, seconds_of, usage
from serving.ui.mount import SCOPE_KEY
from serving.ui.parts import button, icon, moment, tag
from serving.ui.plain import HEAD
from serving.ui.services import UiServices

SPANS = {"1 hour": (3600, 30), "24 hours": (86_400, 48), "7 days": (7 * 86_400, 42)}
"""Seconds looked back at, and columns of the chart."""
READ = 20_000
"""Rows the numbers are made from, at most; the newest."""
LISTED = 500

Row = Mapping[str, Any]


def milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


class ConsolePage:
    """One tab of the console. Each redraw authenticates again, so a revoked key shows nothing more."""

    def __init__(self, services: UiServices, credential: str) -> None:
        self.services, self._credential = services, credential
        self.span = "24 hours"
        self.client = ui.context.client

    def build(self, caller: Caller) -> None:
        with tag("div", "console"):
            with tag("header", "console-bar"):
                with tag("a", "brand", href="/", aria_label="Smalti, to the chat"):
                    tag("img", src="/ui/logo.svg", alt="")
                    tag("span", text="Smalti")
                with tag("nav", "console-nav", aria_label="Sections"):
                    for name in ("Overview", "Journal", "Indexes", "Keys"):
                        tag("a", text=name, href=f"#{name.lower()}")
                tag("span", "who", text=caller.name)
                with button("icon-button", "Dark mode", data_theme_toggle=True, aria_pressed="false"):
                    icon("moon", "moon")
                    icon("sun", "sun")
                with tag("a", "button quiet", href="/"):
                    tag("span", text="Chat")
            self.body = tag("main", "console-body")

    async def draw(self) -> None:
        data = self.services.console
        span, count = SPANS[self.span]
        now = time.time()
        try:
            caller = await asyncio.to_thread(self.services.identity.authenticate, self._credential)
            journal, endpoints, indexes, keys = await asyncio.gather(
                data.journal(caller, now - span, READ), data.endpoints(caller), data.indexes(caller), data.keys(caller)
            )
        except CallError as error:
            if error.status == 401:
                self.client.run_javascript("location.href = '/login?next=/console'")
                return
            with self.body:
                tag("p", "problem", text=error.message, role="alert")
            return
        numbers = usage(journal, now - span, now, count)
        self.body.clear()
        with self.body:
            self._overview(numbers, endpoints, caller, len(journal) >= READ)
            self._journal(journal[:LISTED])
            self._indexes(indexes)
            if keys or caller.admin:
                self._keys(keys)

    def _overview(self, numbers: Usage, endpoints: Sequence[Row], caller: Caller, cut: bool) -> None:
        total = numbers.total
        with tag("section", "panel-section", id="overview", aria_label="Overview"):
            with tag("div", "section-head"):
                with tag("div"):
                    tag("h1", text="Overview")
                    tag("p", text="Every call through the gateway." if caller.admin else "Your calls through the gateway.")
                with tag("div", "segments", role="group", aria_label="Time span"):
                    for name in SPANS:
                        tag("button", "segment", name, type="button", aria_pressed=str(name == self.span).lower()).on(
                            "click", self._choose(name), []
                        )
            if cut:
                tag("p", "hint", text=f"Made from the newest {READ:,} calls of this time.")
            with tag("div", "figures"):
                self._figure("Requests", f"{total.requests:,}", "1")
                self._figure("Errors", f"{total.errors:,}", "0", f"{total.refused:,} refused" if total.refused else "")
                self._figure("Tokens", f"{total.tokens:,}", "3")
                self._figure("Latency p50", milliseconds(total.percentile(0.5)), "2")
                self._figure("Latency p95", milliseconds(total.percentile(0.95)), "4")
            self._chart(numbers)
            known = {str(row["name"]): row for row in endpoints}
            rows = [
                _endpoint_row(name, known.get(name, {}), numbers.endpoints.get(name, Numbers()))
                for name in [*known, *(name for name in numbers.endpoints if name not in known)]
            ]
            columns = [
                ("name", "Endpoint"), ("task", "Task"), ("state", "State"), ("requests", "Requests"), ("errors", "Errors"),
                ("tokens", "Tokens"), ("p50", "p50 ms"), ("p95", "p95 ms"),
            ]  # fmt: skip
            self._table("Endpoints", "No endpoint can be asked by you yet.", columns, rows, key="name")

    def _choose(self, name: str) -> Any:
        async def choose() -> None:
            self.span = name
            await self.draw()

        return choose

    def _figure(self, label: str, value: str, colour: str, note: str = "") -> None:
        with tag("div", f"figure tile-{colour}"):
            tag("span", "figure-label", label)
            tag("strong", text=value)
            if note:
                tag("small", text=note)

    def _chart(self, numbers: Usage) -> None:
        """Columns of requests over time: answered calls, and those that failed on top."""
        top = max((n.requests for _, n in numbers.stretches), default=0)
        label = f"{numbers.total.requests} requests over the last {self.span}, at most {top} in one column"
        with tag("div", "chart", role="img", aria_label=label):
            for begin, n in numbers.stretches:
                with tag("div", "bar-col", title=f"{moment(begin)}: {n.requests} requests, {n.errors} errors"):
                    if n.errors:
                        tag("i", "bad").style(f"height:{100 * n.errors / top:.1f}%")
                    if n.requests - n.errors:
                        tag("i").style(f"height:{100 * (n.requests - n.errors) / top:.1f}%")
            if not top:
                tag("p", "chart-empty", text="No calls in this time.")
        with tag("div", "chart-axis", aria_hidden="true"):
            tag("span", text=f"{self.span} ago")
            tag("span", text="now")

    def _journal(self, rows: Sequence[Row]) -> None:
        shown = [
            {
                "request": row.get("request_id"),
                "time": _when(row.get("time"), "%Y-%m-%d %H:%M:%S"),
                "status": row.get("status") or "no answer",
                "endpoint": row.get("endpoint"),
                "task": row.get("task"),
                "caller": row.get("caller") or "–",
                "latency": round(row["latency_ms"], 1) if row.get("latency_ms") is not None else None,
                "tokens": ((row.get("input_tokens") or 0) + (row.get("output_tokens") or 0)) or None,
                "error": row.get("error") or "",
            }
            for row in rows
        ]
        columns = [
            ("time", "Time (UTC)"), ("status", "Status"), ("endpoint", "Endpoint"), ("task", "Task"), ("caller", "Caller"),
            ("latency", "ms"), ("tokens", "Tokens"), ("request", "Request"), ("error", "Error"),
        ]  # fmt: skip
        with tag("section", "panel-section", id="journal", aria_label="Journal"):
            self._table("Journal", "No calls in this time.", columns, shown, key="request", size=15)

    def _indexes(self, rows: Sequence[Row]) -> None:
        shown = [
            {
                "name": row.get("name"), "source": str(row.get("source") or ""), "documents": row.get("documents"),
                "chunks": row.get("chunks"), "synced": _when(row.get("synced_at")), "skipped": len(row.get("skipped") or ()),
            }
            for row in rows
        ]  # fmt: skip
        columns = [
            ("name", "Index"), ("source", "Source"), ("documents", "Documents"), ("chunks", "Chunks"), ("synced", "Last sync"),
            ("skipped", "Skipped"),
        ]  # fmt: skip
        with tag("section", "panel-section", id="indexes", aria_label="Indexes"):
            self._table(
                "Indexes",
                "There is no index yet. Add one with: smalti index add NAME FOLDER",
                columns,
                shown,
                key="name",
                level="h2",
            )
            for row in rows:
                if skipped := row.get("skipped"):
                    with tag("details", "how"):
                        tag("summary", text=f"{len(skipped)} skipped in {row.get('name')}")
                        with tag("ul", "skipped"):
                            for item in skipped[:LISTED]:
                                with tag("li"):
                                    tag("code", text=str(item.get("source")))
                                    tag("span", text=str(item.get("reason")))

    def _keys(self, rows: Sequence[Row]) -> None:
        shown = [
            {
                "id": row.get("id"), "name": row.get("name"), "kind": str(row.get("kind") or "").replace("_", " "),
                "groups": ", ".join(row.get("groups") or ()), "admin": "admin" if row.get("admin") else "",
                "label": row.get("label"), "created": _when(row.get("created_at")),
                "expires": _when(row.get("expires_at")) or "never",
                "state": "revoked" if row.get("revoked") else "in force",
            }
            for row in rows
        ]  # fmt: skip
        columns = [
            ("name", "Name"), ("kind", "Kind"), ("groups", "Groups"), ("admin", "Rights"), ("label", "Label"), 
            ("created", "Made"), ("expires", "Expires"), ("state", "State"), ("id", "Key id"),
        ]  # fmt: skip
        with tag("section", "panel-section", id="keys", aria_label="Keys"):
            self._table("Keys", "No keys.", columns, shown, key="id")

    def _table(
        self,
        title: str,
        empty: str,
        columns: Sequence[tuple[str, str]],
        rows: list[dict[str, Any]],
        *,
        key: str,
        size: int = 10,
        level: str = "h2",
    ) -> None:
        """A table that filters and sorts; every cell is text."""
        with tag("div", "section-head"):
            tag("h2", text=title)
            search = tag("input", "field filter", type="search", placeholder="Filter", aria_label=f"Filter {title.lower()}")
        if not rows:
            search.delete()
            tag("p", "hint", text=empty)
            return
        numeric = {name for name, _ in columns if all(isinstance(row.get(name), int | float | None) for row in rows)}
        table = ui.table(
            columns=[
                {"name": name, "label": label, "field": name, "sortable": True, "align": "right" if name in numeric else "left"}
                for name, label in columns
            ],
            rows=rows,
            row_key=key,
            pagination=size,
        ).classes("grid")
        table.props["flat"] = True
        table.props["hide-pagination"] = len(rows) <= size
        table.add_slot("body-cell-status", _STATUS)
        table.add_slot("body-cell-state", _STATE)
        search.on("input", lambda event: table.set_filter(str(event.args)), js_handler="(e) => emit(e.target.value)")


_STATUS = """<q-td :props="props"><span :class="'status ' + (props.value < 400 ? 'good' : props.value < 500 ? 'warn' : 'bad')">
{{ props.value }}</span></q-td>"""
_STATE = """<q-td :props="props"><span :class="'status ' + (['READY', 'in force'].includes(props.value) ? 'good' : 'warn')"
 v-if="props.value">{{ props.value }}</span></q-td>"""


def _endpoint_row(name: str, endpoint: Row, numbers: Numbers) -> dict[str, Any]:
    p50, p95 = numbers.percentile(0.5), numbers.percentile(0.95)
    return {
        "name": name, "task": str(endpoint.get("task") or ""), "state": str(endpoint.get("state") or ""),
        "requests": numbers.requests, "errors": numbers.errors, "tokens": numbers.tokens,
        "p50": None if p50 is None else round(p50, 1), "p95": None if p95 is None else round(p95, 1),
    }  # fmt: skip


def _when(value: Any, form: str = "%Y-%m-%d %H:%M") -> str:
    at = seconds_of(value) if value is not None else None
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime(form)


def register() -> None:
    """Make the page known to NiceGUI, once in a process."""

    @ui.page("/console", title="Console – Smalti")
    async def console(request: Request) -> None:
        services, caller, credential = request.scope[SCOPE_KEY]
        ui.add_head_html(HEAD + '<script src="/ui/chat.js"></script>')
        page = ConsolePage(services, credential)
        page.build(caller)
        await page.draw()
