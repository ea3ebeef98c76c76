"""Endpoints: what each serves, how its traffic is split and limited; both changed in place; two asked side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from nicegui import background_tasks, ui
from nicegui.element import Element

from governance.call import Call, CallError, Event, bad_request
from serving.ui.console.forms import choice, field, form
from serving.ui.console.frame import ConsolePage
from serving.ui.console.tables import table
from serving.ui.console.words import milliseconds
from serving.ui.pace import Growing
from serving.ui.parts import Prose, set_text, tag

Row = Mapping[str, Any]


def entities_of(endpoint: Row) -> Sequence[Row]:
    return (endpoint.get("config") or endpoint.get("pending_config") or {}).get("served_entities") or ()


def shares_of(endpoint: Row) -> dict[str, int]:
    """Percent of the traffic by served entity."""
    routes = ((endpoint.get("config") or {}).get("traffic_config") or {}).get("routes") or ()
    return {str(r.get("served_entity_name") or r.get("served_model_name")): int(r["traffic_percentage"]) for r in routes}


def limit_said(limit: Row) -> str:
    """A rate limit in words."""
    amounts = [f"{limit[metric]:,} {metric}" for metric in ("calls", "tokens") if limit.get(metric) is not None]
    if limit.get("cost") is not None:
        amounts.append(f"${limit['cost']:g}")
    key = str(limit.get("key", "endpoint")).replace("_", " ")
    of = f"{key} {limit['principal']}" if limit.get("principal") else "in all" if key == "endpoint" else f"each {key}"
    return f"{' and '.join(amounts)} a {limit.get('renewal_period', 'minute')}, {of}" + (" (soft)" if limit.get("soft") else "")


class EndpointsPage(ConsolePage):
    section = "Endpoints"
    chosen: str | None = None

    def open(self, asked: Mapping[str, str]) -> None:
        self.chosen = asked.get("name")

    async def load(self) -> Sequence[Row]:
        return await self.data.endpoints(await self.who())

    def draw(self, loaded: Sequence[Row]) -> None:
        self.head("Endpoints", "What can be called, what answers, and under which policy.")
        columns = [
            ("name", "Endpoint"), ("task", "Task"), ("state", "State"), ("entities", "Serves"), ("split", "Split"),
            ("limits", "Limits"), ("guards", "Guardrails"), ("description", "Description"),
        ]  # fmt: skip
        rows = [_row(each) for each in loaded]
        empty = "There is no endpoint you may see yet. An owner grants CAN_VIEW or CAN_QUERY on one."
        table("All endpoints", empty, columns, rows, key="name", size=15, opens="name", on_open=self._open)
        self.detail = tag("section", "detail", aria_label="Endpoint")
        chosen = next((each for each in loaded if each["name"] == self.chosen), None)
        if chosen:
            self._detail(chosen)
        askable = [str(each["name"]) for each in loaded if str(each["task"]).startswith(("agent/", "llm/v1/chat"))]
        if askable:
            Playground(self, {str(each["name"]): str(each["task"]) for each in loaded if each["name"] in askable})

    async def _open(self, name: str) -> None:
        self.chosen = name
        await self.show()
        self.client.run_javascript("smalti.to('.detail')")

    def _detail(self, endpoint: Row) -> None:
        name, shares = str(endpoint["name"]), shares_of(endpoint)
        manages = endpoint.get("permission_level") == "CAN_MANAGE"
        with self.detail:
            with tag("div", "section-head"):
                tag("h2", text=name)
                with tag("div", "head-tools"):
                    tag("a", "link", "Its numbers", href=f"/console?endpoint={name}")
                    tag("a", "link", "Its calls in the journal", href=f"/console/journal?endpoint={name}")
            update = (endpoint.get("state") or {}).get("config_update")
            if update == "IN_PROGRESS":
                tag("p", "hint", "A change is under way; what stands here answers until it is done.", role="status")
                ui.timer(1.0, self.show, once=True)
            elif update == "UPDATE_FAILED":
                tag("p", "problem", "The last change failed; what stands here goes on answering.")
            with tag("div", "cards"):
                with tag("div", "tile"):
                    tag("h3", text="Served entities and split")
                    self._split(name, endpoint, shares, manages)
                with tag("div", "tile"):
                    tag("h3", text="Limits")
                    self._limits(name, endpoint, manages)
                with tag("div", "tile"):
                    tag("h3", text="Guardrails")
                    self._guards(endpoint)

    def _split(self, name: str, endpoint: Row, shares: Mapping[str, int], manages: bool) -> None:
        with tag("dl", "facts"):
            for entity in entities_of(endpoint):
                state = entity.get("state") or {}
                what = " ".join(str(entity[key]) for key in ("entity_name", "entity_version") if entity.get(key))
                what = what or str((entity.get("external_model") or {}).get("name") or "built in")
                told = str(state.get("deployment_state_message") or "")
                ready = str(state.get("deployment") or "").replace("DEPLOYMENT_", "").lower()
                tag("dt", text=str(entity.get("name")))
                share = f"{shares[entity['name']]}% · " if entity.get("name") in shares else ""
                tag("dd", text=f"{share}{what} · {ready}" + (f" · {told}" if told else ""))
        if manages and endpoint.get("changeable") and len(shares) > 1:
            with form("Change the split", self.doing(partial(self._set_split, name), "The split is changed.")):
                for entity, share in shares.items():
                    field(f"{entity}, %", entity, type="number", min=0, max=100, step=1, value=share, required=True)

    async def _set_split(self, name: str, given: Mapping[str, str]) -> None:
        shares = {entity: int(share) for entity, share in given.items() if share.isdigit()}
        if sum(shares.values()) != 100 or len(shares) != len(given):
            raise bad_request("The shares must be whole numbers that add up to 100.", "traffic_config")
        await self.data.set_split(await self.who(), name, shares)

    def _limits(self, name: str, endpoint: Row, manages: bool) -> None:
        limits = (endpoint.get("ai_gateway") or {}).get("rate_limits") or []
        if not limits:
            tag("p", "hint", text="None: whoever is granted may call as often as the server can answer.")
        with tag("ul", "lines"):
            for i, limit in enumerate(limits):
                with tag("li"):
                    tag("span", text=limit_said(limit))
                    if manages:
                        others = [each for j, each in enumerate(limits) if j != i]
                        remove = self.doing(partial(self._set_limits, name, others), "The limit is removed.")
                        tag("button", "link", "Remove", type="button", aria_label=f"Remove {limit_said(limit)}").on(
                            "click", remove, []
                        )
        if manages:
            with form("Add", self.doing(partial(self._add_limit, name, limits), "The limit is in force.")):
                field("Amount", "amount", type="number", min=0, step="any", required=True)
                choice("Of", "metric", [("calls", "calls"), ("tokens", "tokens"), ("cost", "dollars")])
                choice("A", "renewal_period", [("minute", "minute"), ("day", "day"), ("month", "month")])
                choice("For", "key", [("endpoint", "all together"), ("user", "each user")])

    async def _add_limit(self, name: str, limits: Sequence[Row], given: Mapping[str, str]) -> None:
        try:
            amount = float(given.get("amount") or "")
        except ValueError:
            raise bad_request("The amount must be a number.", "rate_limits") from None
        metric = given.get("metric", "calls")
        limit = {metric: amount if metric == "cost" else int(amount), "key": given["key"]}
        await self._set_limits(name, [*limits, {**limit, "renewal_period": given["renewal_period"]}])

    async def _set_limits(self, name: str, limits: Sequence[Row]) -> None:
        await self.data.set_limits(await self.who(), name, limits)

    def _guards(self, endpoint: Row) -> None:
        told = guards_said(endpoint)
        if not told:
            tag("p", "hint", text="None: what is asked and answered passes as it is.")
        with tag("ul", "lines"):
            for line in told:
                tag("li", text=line)


def guards_said(endpoint: Row) -> list[str]:
    """The guardrails of an endpoint, a line each."""
    lines = []
    for where, guard in ((endpoint.get("ai_gateway") or {}).get("guardrails") or {}).items():
        guard = guard or {}
        if behavior := (guard.get("pii") or {}).get("behavior"):
            lines.append(f"{where}: personal data {behavior.lower()}")
        if guard.get("safety"):
            lines.append(f"{where}: safety")
        for key, label in (("invalid_keywords", "keywords"), ("valid_topics", "topics"), ("custom", "custom")):
            if guard.get(key):
                lines.append(f"{where}: {len(guard[key])} {label}")
    return lines


def _row(endpoint: Row) -> dict[str, Any]:
    shares = shares_of(endpoint)
    return {
        "name": endpoint["name"], "task": endpoint["task"], "state": (endpoint.get("state") or {}).get("ready", ""),
        "entities": ", ".join(str(each.get("entity_name") or each.get("name")) for each in entities_of(endpoint)),
        "split": " / ".join(f"{share}" for share in shares.values()) if len(shares) > 1 else "",
        "limits": "; ".join(map(limit_said, (endpoint.get("ai_gateway") or {}).get("rate_limits") or ())),
        "guards": ", ".join(guards_said(endpoint)), "description": endpoint.get("description") or "",
    }  # fmt: skip


class Playground:
    """One question to two endpoints, their answers side by side as they stream."""

    def __init__(self, page: ConsolePage, tasks: Mapping[str, str]) -> None:
        self.page, self.tasks = page, tasks
        self.running: list[asyncio.Task[None]] = []
        names = list(tasks)
        options = [(name, name) for name in names]
        with tag("section", "playground", aria_label="Playground"):
            with tag("div", "section-head"):
                tag("h2", text="Try it")
                tag("p", text="One question to two endpoints, with your key and their policies.")
            with form("Ask both", self.ask, "wide-form"):
                choice("First", "first", options, names[0])
                choice("Second", "second", options, names[min(1, len(names) - 1)])
                field("Question", "question", required=True, maxlength=20_000, placeholder="What is this about?")
            with tag("div", "versus"):
                self.sides = [self._side() for _ in range(2)]

    def _side(self) -> tuple[Element, Element, Element]:
        with tag("article", "tile versus-side"):
            return tag("h3", text=""), tag("p", "hint", text="The answer comes here."), tag("div")

    def ask(self, given: Mapping[str, str]) -> None:
        for task in self.running:
            task.cancel()
        names = [given.get("first", ""), given.get("second", "")]
        self.running = [
            background_tasks.create(self._run(side, name, given.get("question", "")), name=f"playground {name}")
            for side, name in zip(self.sides, names, strict=True)
            if name in self.tasks
        ]

    async def _run(self, side: tuple[Element, Element, Element], name: str, question: str) -> None:
        title, note, box = side
        with self.page.client:
            set_text(title, name)
            set_text(note, "Working on the answer …")
            box.clear()
            with box, tag("div") as drawn:
                prose = Prose()
        message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": question}]}
        call = Call(
            endpoint=name, task="agent" if self.tasks[name].startswith("agent/") else "chat", stream=True,
            credential=self.page.credential, payload={"model": name, "stream": True, "input": [message]},
        )  # fmt: skip
        text, began, first, told = "", time.monotonic(), None, ""

        def draw(*, whole: bool = False) -> None:
            growing.drawn()
            if not (self.page.client.is_deleted or drawn.is_deleted):
                with self.page.client:
                    prose.show(text, {}, whole=whole)

        growing = Growing(self.page.services.pace, draw)
        try:
            async with aclosing(self.page.services.dispatcher.stream(call)) as events:  # type: ignore[type-var]
                async for event in events:
                    if event.type == "response.output_text.delta":
                        first = first or time.monotonic() - began
                        text += str(event.data.get("delta", ""))
                        growing.changed()
                    elif event.terminal:
                        told = _trouble(event)
        except CallError as error:
            told = error.message
        if self.page.client.is_deleted:
            return
        took = milliseconds((time.monotonic() - began) * 1000)
        waited = f", first words after {milliseconds(first * 1000)}" if first else ""
        draw(whole=True)
        with self.page.client:
            set_text(note, told or f"{took}{waited} · request {call.request_id}")


def _trouble(event: Event) -> str:
    response = event.data.get("response") or {}
    problem = response.get("error") or {}
    return str(problem.get("message") or "") if response.get("status") in ("failed", "incomplete") else ""
