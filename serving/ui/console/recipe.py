"""The form that begins a fine-tuning run: a recipe's schema, its files, what it would take, what is wrong with its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from governance.call import CallError, bad_request
from serving.ui.console.charts import COLOURS
from serving.ui.console.forms import field, form, handed
from serving.ui.console.schema_form import SchemaField, fields, values
from serving.ui.console.tables import table
from serving.ui.console.words import dollars
from serving.ui.parts import Latest, tag

if TYPE_CHECKING:
    from serving.ui.console.finetuning import FineTuningPage

AT = "/api/2.0/smalti/finetune"
FIRST = (
    "name", "base_model", "register_to", "training_duration", "learning_rate", "batch_size", "data.text_column",
    "data.label_column", "context_length", "max_length",
)  # fmt: skip
"""Fields that are shown at once; the others fold open."""
FILES = {"data.train": "Rows to train on", "data.eval": "Rows to judge it on"}
_ABOUT = {
    "register_to": "A name in the registry, catalog.schema.model; without it only an administrator may begin.",
    "training_duration": "3ep, 200ba (batches) or 10Mtok",
}
_LEAST = {"classify linear"}
"""Trained in seconds on the command line, and not over HTTP."""

Row = Mapping[str, Any]


class NewRun:
    """The form and what it found out. What was written stays over new drawings of the page."""

    def __init__(self, page: FineTuningPage) -> None:
        self.page = page
        self.recipes: Sequence[Row] = ()
        self.kind = "classify full"
        self.given: dict[str, str] = {}
        self.files: dict[str, Mapping[str, Any]] = {}
        self._answers = Latest()

    def draw(self) -> None:
        kinds = [f"{each['task']} {each['method']}" for each in self.recipes]
        offered = [kind for kind in kinds if kind not in _LEAST]
        if self.kind not in offered:
            self.kind = offered[0] if offered else ""
        with tag("section", "panel-section", id="new-run", aria_label="Begin a run"):
            with tag("div", "section-head"):
                with tag("div"):
                    tag("h2", text="Begin a run")
                    tag("p", text="Files of JSON lines. What is left empty has its default.")
                with tag("label", "labelled"):
                    tag("span", text="Task and method")
                    with tag("select", "field") as chosen:
                        for kind in offered:
                            tag("option", text=kind, value=kind, selected=True if kind == self.kind else None)
            chosen.on("change", self._choose, js_handler="(e) => emit(e.target.value)")
            self.box = tag("div")
            self.told = tag("div", aria_live="polite")
        if self.kind:
            self._form()

    def _choose(self, event: Any) -> None:
        self.kind = str(event.args)
        self.told.clear()
        self._form()

    def _fields(self) -> list[SchemaField]:
        recipe = next(each for each in self.recipes if f"{each['task']} {each['method']}" == self.kind)
        return list(fields(recipe["schema"]))

    def _form(self) -> None:
        known = [each for each in self._fields() if each.name not in ("task", "method")]
        shown = [each for name in FIRST for each in known if each.name == name]
        shown += [each for each in known if each.required and each not in shown and each.name not in FILES]
        self.box.clear()
        others = [("plan", "Estimate"), ("validate", "Check the data")]
        with self.box, form("Begin", self._sent, "wide-form recipe-form", others):
            with tag("div", "files"):
                for name, label in FILES.items():
                    if any(each.name == name for each in known):
                        held = str(self.files[name]["name"]) if name in self.files else ""
                        handed(label, ".jsonl,.json,.txt,.md,.csv", lambda answer, name=name: self._file(name, answer), told=held)
            for each in shown:
                about = _ABOUT.get(each.name, each.about)
                SchemaField(each.name, each.kind, each.required, each.default, each.options, about).draw(
                    self.given.get(each.name, "")
                )
            with tag("details", "how"):
                tag("summary", text=f"{len(known) - len(shown) - (0 if self.page.caller.admin else 2)} more settings")
                with tag("div", "more-fields"):
                    for each in known:
                        if each.name in FILES and self.page.caller.admin:
                            about = "In place of a file that is handed in: one of the server's."
                            SchemaField(each.name, each.kind, False, None, (), about).draw(self.given.get(each.name, ""))
                        elif each.name not in FILES and each not in shown:
                            each.draw(self.given.get(each.name, ""))
                    field(
                        "Price of an hour here, $", "price", type="number", min=0, step="any", value=self.given.get("price", "")
                    )

    def _file(self, name: str, answer: Mapping[str, Any]) -> None:
        if "id" in answer:
            self.files[name] = answer
        else:
            self.page.tell(bad_request(str(answer.get("message") or "The file was not taken.")))

    async def _sent(self, given: Mapping[str, str]) -> None:
        self.given, do = dict(given), given.get("do", "begin")
        latest = self._answers.begin()
        self.told.clear()
        with self.told:
            tag(
                "p",
                "hint",
                {"plan": "Taking its measure …", "validate": "Looking at the rows …"}.get(do, "Beginning …"),
                role="status",
            )
        try:
            who = await self.page.who()
            asked = self._asked(given, who.principal)
            if do == "plan":
                price = given.get("price", "").strip()
                found = await self.page.api("POST", f"{AT}/plan", json=asked, params={"price": price} if price else {})
            elif do == "validate":
                found = await self.page.api("POST", f"{AT}/validate", json=asked)
            else:
                found = await self.page.api("POST", f"{AT}/runs", json=asked)
        except CallError as error:
            if latest() and not self.told.is_deleted:
                self.told.clear()
                with self.told:
                    tag("p", "problem", error.message, role="alert")
            return
        if not latest() or self.told.is_deleted:
            return
        if do not in ("plan", "validate"):
            self.given, self.files = {}, {}
            await self.page.watch(found["id"])
            return
        self.told.clear()
        with self.told, tag("section", "detail tile", aria_label="What it would take" if do == "plan" else "The data"):
            (draw_plan if do == "plan" else draw_findings)(found)

    def _asked(self, given: Mapping[str, str], owner: str) -> dict[str, Any]:
        """The body of the API's calls; files that were handed in go with it, by a name of their own."""
        task, _, method = self.kind.partition(" ")
        recipe = {**values(self._fields(), given), "task": task, "method": method}
        files = {}
        for slot, answer in self.files.items():
            held = self.page.services.uploads.get(str(answer["id"]), owner)
            if held is None:
                raise bad_request(f"{answer['name']} is held no more: choose it again.")
            try:
                content = held.content.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise bad_request(f"{held.name} is not UTF-8 text: save it as JSON lines.") from None
            name = f"{slot.rsplit('.', 1)[-1]}.{_ending(held.name)}"
            files[name] = content
            recipe.setdefault("data", {})[slot.rsplit(".", 1)[-1]] = name
        return {"recipe": recipe, "files": files}


def _ending(name: str) -> str:
    ending = name.rsplit(".", 1)[-1].lower()
    return ending if ending in ("jsonl", "json", "txt", "md", "csv") else "jsonl"


def draw_plan(plan: Row) -> None:
    """What a run would take: memory by what holds it, time, cost, and what would make it fit."""
    memory, available = plan["memory"], plan["available"]
    fits = "It fits" if plan["fits"] else "It does not fit"
    told = f"{fits}: {size(memory['total'])} of {size(available)} that are free."
    if plan["seconds"] is not None:
        told += f" Training takes {duration(plan['seconds'])}"
        told += f", {dollars(plan['cost'])}." if plan["cost"] is not None else "."
    tag("h3", text="What it would take")
    tag("p", f"verdict {'good' if plan['fits'] else 'bad'}", told)
    parts = [(name, memory[name]) for name in ("weights", "optimizer", "averages", "gradients", "activations") if memory[name]]
    whole = max(available, sum(held for _, held in parts))
    with tag("div", "memory", role="img", aria_label=", ".join(f"{name} {size(held)}" for name, held in parts)):
        for colour, (_, held) in zip(COLOURS, parts, strict=False):
            tag("span").style(f"width: {100 * held / whole:.2f}%; background: {colour}")
    with tag("ul", "keys-of"):
        for colour, (name, held) in zip(COLOURS, parts, strict=False):
            with tag("li"):
                tag("i").style(f"background: {colour}")
                tag("span", text=f"{name} {size(held)}")
    share = plan["trained_parameters"] / plan["parameters"]
    facts = {
        "Parameters": f"{plan['parameters']:,}, of which {share:.1%} are trained",
        "Rows": f"{plan['rows']:,}",
        "Training": f"{plan['steps']:,} steps, {plan['tokens']:,} tokens",
        "Speed": f"{plan['tokens_per_second']:,.0f} tokens a second, measured here" if plan["tokens_per_second"] else "",
    }
    with tag("dl", "facts"):
        for name, value in facts.items():
            if value:
                tag("dt", text=name)
                tag("dd", text=value)
    if plan["knobs"]:
        rows = [{"change": knob["change"], "memory": size(knob["total"]), "fits": "yes" if knob["fits"] else "not yet"}
                for knob in plan["knobs"]]  # fmt: skip
        table("Instead", "", [("change", "Change"), ("memory", "Memory"), ("fits", "Fits")], rows, key="change")
    for warning in plan["warnings"]:
        tag("p", "hint", f"Warning: {warning}")


def draw_findings(found: Row) -> None:
    """What is wrong with the data."""
    tag("h3", text="The data")
    said = f"{found['rows']:,} rows: {found['errors']:,} errors, {found['warnings']:,} warnings."
    tag(
        "p",
        f"verdict {'good' if found['ok'] else 'bad'}",
        said if found["problems"] else f"{found['rows']:,} rows, and nothing is wrong.",
    )
    if found["problems"]:
        shown = list(dict.fromkeys(key for problem in found["problems"] for key in problem))
        columns = [(key, key.replace("_", " ").capitalize()) for key in shown]
        rows = [{**problem, "id": str(number)} for number, problem in enumerate(found["problems"])]
        table("Findings", "", columns, rows, key="id")


def size(value: float) -> str:
    """Bytes in words."""
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s" if seconds >= 1 else "less than 1 s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
