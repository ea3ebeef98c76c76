"""Journal: calls found by caller, endpoint, status, time and text; one opens with its verdicts, inner calls, trace and cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from serving.ui.console.forms import choice, field, form
from serving.ui.console.frame import ConsolePage
from serving.ui.console.tables import table
from serving.ui.console.words import dollars, milliseconds, stamp
from serving.ui.parts import tag

LISTED = 500
SPANS = [("1", "1 hour"), ("24", "24 hours"), ("168", "7 days"), ("720", "30 days"), ("", "all time")]
STATUSES = [
    ("", "any"),
    ("2", "answered"),
    ("4", "refused (4xx)"),
    ("429", "limit hit (429)"),
    ("5", "failed (5xx)"),
    ("none", "no answer"),
]
_COLUMNS = [
    ("time", "Time (UTC)"), ("status", "Status"), ("endpoint", "Endpoint"), ("task", "Task"), ("caller", "Caller"),
    ("latency", "ms"), ("tokens", "Tokens"), ("cost", "Cost $"), ("error", "Error"), ("request", "Request"),
]  # fmt: skip

Row = Mapping[str, Any]


class JournalPage(ConsolePage):
    section = "Journal"

    def open(self, asked: Mapping[str, str]) -> None:
        names = ("caller", "endpoint", "status", "hours", "text")
        self.wanted: dict[str, str] = {"hours": "24"} | {name: asked[name][:500] for name in names if name in asked}
        self.chosen = asked.get("request")

    async def load(self) -> tuple[bool, Sequence[Row], Row | None]:
        who = await self.who()
        rows = await self.data.calls(who, self.query(), LISTED)
        return who.admin, rows, await self.data.call(who, self.chosen) if self.chosen else None

    def draw(self, loaded: tuple[bool, Sequence[Row], Row | None]) -> None:
        admin, rows, chosen = loaded
        self.head("Journal", "Every call through the gateway." if admin else "Your calls through the gateway.")
        with form("Search", self._search, "wide-form"):
            field("Text in request, answer or error", "text", value=self.wanted.get("text", ""), type="search", maxlength=500)
            field("Caller", "caller", value=self.wanted.get("caller", ""), maxlength=256)
            field("Endpoint", "endpoint", value=self.wanted.get("endpoint", ""), maxlength=256)
            choice("Status", "status", STATUSES, self.wanted.get("status", ""))
            choice("Time", "hours", SPANS, self.wanted.get("hours", "24"))
        if self.chosen:
            self._request(chosen)
        title = "Calls" if len(rows) < LISTED else f"Newest {LISTED} calls"
        empty = "No calls match. Widen the time, or leave a field empty."
        table(title, empty, _COLUMNS, shown(rows), key="request", size=15, opens="time", on_open=self._open)

    def query(self) -> dict[str, str]:
        """What is asked for, in the words of `ConsoleData.calls`."""
        query = {name: value for name, value in self.wanted.items() if value and name != "hours"}
        if (hours := self.wanted.get("hours", "")).isdigit():
            query["since"] = (datetime.now(UTC) - timedelta(hours=min(int(hours), 1_000_000))).strftime("%Y-%m-%dT%H:%M:%S")
        return query

    async def _search(self, given: Mapping[str, str]) -> None:
        self.wanted, self.chosen = {name: value.strip() for name, value in given.items()}, None
        self.go(**self.wanted)
        await self.show()

    async def _open(self, request_id: str) -> None:
        self.chosen = request_id
        self.go(**self.wanted, request=self.chosen)
        await self.show()
        self.client.run_javascript("smalti.to('.detail')")

    def _request(self, row: Row | None) -> None:
        with tag("section", "detail tile", aria_label="Request"):
            if row is None:
                tag("p", "hint", text=f"There is no call {self.chosen} that you may see.")
                return
            with tag("div", "section-head"):
                tag("h2", text=f"Request {row['databricks_request_id']}")
                if row.get("traces"):
                    tag("a", "link", "Its trace in MLflow", href=row["traces"], target="_blank", rel="noopener")
            facts = {
                "Time (UTC)": stamp(row["request_time"], "%Y-%m-%d %H:%M:%S"),
                "Endpoint": f"{row['endpoint_name']} · {row['served_entity_name'] or ''}".strip(" ·"),
                "Caller": f"{row['requester'] or 'nobody'} ({(row['requester_kind'] or '').replace('_', ' ')})",
                "Status": str(row["status_code"] or "no answer"),
                "Took": milliseconds(row["execution_duration_ms"]),
                "First words": milliseconds(row["time_to_first_byte_ms"]) if row["time_to_first_byte_ms"] else "",
                "Tokens": f"{row['input_tokens'] or 0:,} in, {row['output_tokens'] or 0:,} out" if row["total_tokens"] else "",
                "Cost": dollars(row["cost"]) if row["cost"] is not None else "",
                "Conversation": row["thread_id"] or "",
                "Trace": row["trace_id"] or "",
                "Asked by request": row["parent_request_id"] or "",
                "Error": row["error"] or "",
            }
            with tag("dl", "facts"):
                for name, value in facts.items():
                    if value:
                        tag("dt", text=name)
                        tag("dd", text=value)
            if verdicts := row.get("guardrail_verdicts"):
                tag("h3", text="Guardrails")
                with tag("ul", "lines"):
                    for each in verdicts:
                        what = f"{each.get('where')}: {each.get('guardrail')} – {each.get('action')}"
                        tag("li", text=f"{what}, {each['reason']}" if each.get("reason") else what)
            for name in ("request", "response"):
                if row.get(name):
                    with tag("details", "how", open=True if name == "request" else None):
                        tag("summary", text=name.capitalize())
                        tag("pre", "payload", text=_pretty(row[name]), tabindex="0")
            if inner := row.get("inner"):
                table("Inner calls", "", _COLUMNS, shown(inner), key="request", opens="time", on_open=self._open)


def shown(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of the inference table as they are listed."""
    return [
        {
            "request": row["databricks_request_id"], "time": stamp(row["request_time"], "%Y-%m-%d %H:%M:%S"),
            "status": row["status_code"] or "no answer", "endpoint": row["endpoint_name"], "task": row["task"],
            "caller": row["requester"] or "–", "cost": row["cost"],
            "latency": None if row["execution_duration_ms"] is None else round(row["execution_duration_ms"], 1),
            "tokens": ((row["input_tokens"] or 0) + (row["output_tokens"] or 0)) or None, "error": row["error"] or "",
        }
        for row in rows
    ]  # fmt: skip


def _pretty(text: str, most: int = 20_000) -> str:
    with suppress(ValueError):
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return text if len(text) <= most else f"{text[:most]}\n… {len(text) - most:,} characters more"
