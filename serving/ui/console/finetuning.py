"""Fine-tuning: runs with their progress, curves and baseline; one is watched, cancelled, resumed and served; a new one begun."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from nicegui import ui
from nicegui.element import Element

from governance.call import CallError, bad_request
from serving.ui.console.charts import COLOURS, line, plot
from serving.ui.console.forms import field, form, progress
from serving.ui.console.frame import ConsolePage
from serving.ui.console.recipe import NewRun, duration
from serving.ui.console.tables import table
from serving.ui.console.words import stamp
from serving.ui.parts import tag

AT = "/api/2.0/smalti/finetune"
ACTIVE = ("PENDING", "RUNNING")
POINTS = 400
"""Points of a curve that are drawn."""
EVERY = 2.0
"""Seconds between looks at a run that is going on."""
TOLD = 60
"""Last events that are listed."""

Row = Mapping[str, Any]


class FineTuningPage(ConsolePage):
    section = "Fine-tuning"
    chosen: str | None = None

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.new = NewRun(self)

    def open(self, asked: Mapping[str, str]) -> None:
        self.chosen = asked.get("run")

    async def load(self) -> tuple[Sequence[Row], tuple[Row, Sequence[Row]] | None]:
        await self.who()
        runs = (await self.api("GET", f"{AT}/runs"))["runs"]
        if not self.new.recipes:
            self.new.recipes = (await self.api("GET", f"{AT}/recipes"))["recipes"]
        return runs, await self._run() if self.chosen else None

    async def _run(self) -> tuple[Row, Sequence[Row]]:
        at = f"{AT}/runs/{quote(self.chosen or '', safe='')}"
        events = (await self.api("GET", f"{at}/events", params={"follow": "false"}))["events"]
        return await self.api("GET", at), events

    def draw(self, loaded: tuple[Sequence[Row], tuple[Row, Sequence[Row]] | None]) -> None:
        runs, chosen = loaded
        self.head("Fine-tuning", "From your rows to a model that is registered and can be served.")
        if chosen is not None:
            self.watched = tag("section", "detail tile", aria_label="Run")
            self._seen = _state(*chosen)
            with self.watched:
                self._one(*chosen)
            if chosen[0]["status"] in ACTIVE:
                ui.timer(EVERY, self._look, immediate=False)
        columns = [
            ("id", "Run"), ("task", "Task"), ("state", "State"), ("done", "Done"), ("message", "Why"),
            ("registered", "Registered"), ("created", "Begun (UTC)"), ("created_by", "By"),
        ]  # fmt: skip
        rows = [
            {
                **{key: run[key] for key in ("id", "task", "created_by", "message")}, "state": run["status"],
                "done": share_done(run), "created": stamp(run["created"]), "registered": registered(run),
            }
            for run in runs
        ]  # fmt: skip
        table("All runs", "No run of yours yet. Begin one below.", columns, rows, key="id", opens="id", on_open=self.watch,
              wraps=("message", "registered"))  # fmt: skip
        self.new.draw()

    async def watch(self, run_id: str) -> None:
        """Open a run and follow it."""
        self.chosen = run_id
        self.go(run=run_id)
        await self.show()
        self.client.run_javascript("smalti.to('.detail')")

    async def _look(self) -> None:
        """Draw the run again where it went on; once it has ended, the whole page."""
        try:
            await self.who()
            run, events = await self._run()
        except CallError as error:
            self.tell(error)
            return
        if self.watched.is_deleted or run["id"] != self.chosen or _state(run, events) == self._seen:
            return
        if run["status"] not in ACTIVE:
            await self.show()
            return
        self._seen = _state(run, events)
        for old in [each for each in self.watched.default_slot.children if each is not self.actions]:
            old.delete()
        with self.watched:
            self._one(run, events, self.actions)

    def _one(self, run: Row, events: Sequence[Row], actions: Element | None = None) -> None:
        """A run. Its actions stay as they are where they were drawn before: a person may be asked for a second word there."""
        with tag("div", "section-head"):
            tag("h2", text=run["name"])
            with tag("div", "head-tools"):
                if run["mlflow_run_id"] and self.data.mlflow:
                    tag("a", "link", "Run in MLflow", href=mlflow_url(run), target="_blank", rel="noopener")
                good = run["status"] in ("COMPLETED", "RUNNING")
                tag("span", f"status {'good' if good else 'bad' if run['status'] == 'FAILED' else 'warn'}", run["status"])
        if run["message"]:
            tag("p", f"verdict {'bad' if run['status'] == 'FAILED' else 'calm'}", run["message"])
        done, steps = share_done(run), run["steps"]
        if run["status"] in ACTIVE or steps:
            told = f"Step {run['step'] or 0:,} of {steps:,}" if steps else "It is getting ready."
            progress(told, done)
        self._facts(run)
        if actions is None:
            self.actions = self._actions(run)
        else:
            actions.move(target_index=-1)
        self._curves(events)
        self._result(run)
        with tag("details", "how"):
            tag("summary", text=f"{len(events):,} events")
            tag("pre", "payload", "\n".join(map(event_said, events[-TOLD:])), tabindex="0", aria_label="Events")
        with tag("details", "how"):
            tag("summary", text="Recipe")
            tag("pre", "payload", json.dumps(run["recipe"], indent=2, ensure_ascii=False), tabindex="0", aria_label="Recipe")

    def _facts(self, run: Row) -> None:
        result = run["result"] or {}
        facts = {
            "Run": run["id"], "Task": run["task"], "Base model": run["recipe"].get("base_model", ""),
            "Begun": f"{stamp(run['created'])} (UTC) by {run['created_by']}", "Registered": registered(run),
            "Why": (result.get("registered") or {}).get("reason", ""),
            "Training": f"{duration(result['training_seconds'])}, {result['tokens']:,} tokens" if result else "",
        }  # fmt: skip
        with tag("dl", "facts"):
            for name, value in facts.items():
                if value:
                    tag("dt", text=name)
                    tag("dd", text=str(value))

    def _actions(self, run: Row) -> Element:
        at = f"{AT}/runs/{quote(run['id'], safe='')}"

        async def post(what: str) -> None:
            await self.who()
            await self.api("POST", f"{at}/{what}")

        with tag("div", "decide-more") as actions:
            if run["status"] in ACTIVE:
                question = "End this run after the step it is in? It keeps a checkpoint."
                self.confirmed("Cancel the run", question, lambda: post("cancel"), "It ends after its step.")
            elif run["status"] in ("FAILED", "CANCELED"):
                question = "Go on from its newest checkpoint?"
                self.confirmed("Resume", question, lambda: post("resume"), "The run goes on.")
        made = (run["result"] or {}).get("registered")
        if run["registrable"]:

            async def register(given: Mapping[str, str]) -> None:
                await self.who()
                await self.api("POST", f"{at}/register", json={"name": given.get("name", "").strip()})

            proposed = f"main.default.{re.sub('[^a-z0-9]+', '_', run['name'].lower()).strip('_')}"
            with form("Register", self.doing(register, "The model is judged once more and registered."), "decide"):
                field("As model (catalog.schema.model)", "name", value=proposed, required=True, maxlength=300)
        elif made:
            name = made["name"].rsplit(".", 1)[-1]

            async def serve(given: Mapping[str, str]) -> None:
                endpoint = given.get("endpoint", "").strip()
                if not endpoint:
                    raise bad_request("Say what the endpoint is to be called.", "name")
                await self.who()
                entity = {"entity_name": made["name"], "entity_version": str(made["version"])}
                await self.api(
                    "POST", "/api/2.0/serving-endpoints", json={"name": endpoint, "config": {"served_entities": [entity]}}
                )
                self.client.open(f"/console/endpoints?name={quote(endpoint, safe='')}")

            with form("Serve", self.doing(serve), "decide"):
                field("As endpoint", "endpoint", value=name.replace("_", "-"), required=True, maxlength=63)
        return actions

    def _curves(self, events: Sequence[Row]) -> None:
        drawn = curves(events)
        if not drawn:
            return
        with tag("div", "charts"):
            for title, lines in drawn.items():
                series = [line(name, points, colour, symbol="circle" if len(points) < 30 else "none")
                          for colour, (name, points) in zip(COLOURS * 4, lines.items(), strict=False)]  # fmt: skip
                said = "; ".join(f"{name} now {points[-1][1]:.4g}" for name, points in lines.items())
                plot(title, f"{title} by step: {said}", series, x_name="step")

    def _result(self, run: Row) -> None:
        result = run["result"] or {}
        if metrics := result.get("metrics"):
            baseline, name = result.get("baseline") or {}, str(result.get("baseline_name", "baseline"))
            columns = [
                ("metric", "Metric"),
                ("this", "This model"),
                ("baseline", f"{name[:1].upper()}{name[1:]}"),
                ("difference", "Difference"),
            ]
            rows = [
                {
                    "metric": metric, "this": round(value, 4),
                    "baseline": None if metric not in baseline else round(baseline[metric], 4),
                    "difference": None if metric not in baseline else round(value - baseline[metric], 4),
                }
                for metric, value in metrics.items()
            ]  # fmt: skip
            table("Beside the baseline", "", columns, rows, key="metric")
        for warning in result.get("warnings") or ():
            tag("p", "hint", f"Warning: {warning}")


def share_done(run: Row) -> int:
    """Percent of its steps that a run has done."""
    if run["status"] == "COMPLETED":
        return 100
    return min(100, round(100 * (run["step"] or 0) / run["steps"])) if run["steps"] else 0


def registered(run: Row) -> str:
    """The model that came of a run."""
    made = (run["result"] or {}).get("registered")
    return f"{made['name']} version {made['version']}{', champion' if made['champion'] else ''}" if made else ""


def mlflow_url(run: Row) -> str:
    """Where MLflow shows a run; of a run that does not know its experiment, MLflow finds it."""
    experiment = quote(run.get("mlflow_experiment_id") or "0", safe="")
    return f"/mlflow/#/experiments/{experiment}/runs/{quote(run['mlflow_run_id'], safe='')}"


def curves(events: Sequence[Row]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """By chart and line: (step, value), thinned to `POINTS`; of steps that were done again after a resume, the last."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for event in events:
        told = {key: value for key, value in event.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        step = told.get("step")
        if step is None:
            continue
        if event["event"] == "progress":
            for chart, name in (("Loss", "loss"), ("Learning rate", "learning_rate")):
                if name in told:
                    found.setdefault(chart, {}).setdefault("training" if name == "loss" else "rate", {})[int(step)] = told[name]
        elif event["event"] == "evaluation":
            for name, value in told.items():
                if name in ("step", "time"):
                    continue
                chart = "Loss" if name in ("loss", "eval_loss") else "Evaluation"
                found.setdefault(chart, {}).setdefault("held out" if chart == "Loss" else name, {})[int(step)] = value
    return {chart: {name: _thinned(sorted(points.items())) for name, points in lines.items()} for chart, lines in found.items()}


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    every = -(-len(points) // POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def event_said(event: Row) -> str:
    """An event as a line."""
    rest = {key: value for key, value in event.items() if key not in ("time", "event")}
    said = "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in rest.items())
    return f"{stamp(event.get('time'), '%H:%M:%S')}  {event['event']}  {said}".rstrip()


def _state(run: Row, events: Sequence[Row]) -> tuple[Any, ...]:
    return run["id"], run["status"], run["step"], len(events)
