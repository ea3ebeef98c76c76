"""Review: queues of answers for people to judge; the next one with its labels, how far it is done, how far people agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from nicegui import ui

from governance.call import bad_request
from serving.ui.console.forms import choice, field, form, progress
from serving.ui.console.frame import ConsolePage
from serving.ui.console.journal import SPANS
from serving.ui.console.tables import table
from serving.ui.console.words import stamp
from serving.ui.parts import Prose, button, tag

AT = "/api/2.0/smalti/reviews"
LISTED = 200
"""Answers that are listed."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Opened:
    """A queue as its reviewer sees it. `call` is the item's row of the journal where this person may read it."""

    queue: Row
    item: Row | None
    items: Sequence[Row]
    agreement: Sequence[Row]
    call: Row | None


class ReviewPage(ConsolePage):
    section = "Review"
    chosen: str | None = None
    item: str | None = None
    """The answer that was opened; none for the next one."""

    def open(self, asked: Mapping[str, str]) -> None:
        self.chosen, self.item = asked.get("queue"), asked.get("item")

    async def load(self) -> tuple[Sequence[Row], Opened | None, Sequence[str]]:
        managed = [
            str(each["name"])
            for each in await self.data.endpoints(await self.who())
            if each.get("permission_level") == "CAN_MANAGE" and str(each["task"]).startswith(("agent/", "llm/v1/chat"))
        ]
        queues = (await self.api("GET", AT))["queues"]
        return queues, await self._opened(f"{AT}/{quote(self.chosen, safe='')}") if self.chosen else None, managed

    async def _opened(self, at: str) -> Opened:
        queue = await self.api("GET", at)
        items = (await self.api("GET", f"{at}/items", params={"limit": LISTED}))["items"]
        item = next((each for each in items if each["id"] == self.item), None)
        item = item or (await self.api("GET", f"{at}/next"))["item"]
        agreement = (await self.api("GET", f"{at}/agreement"))["agreement"] if queue["manages"] else ()
        request = item["content"].get("request_id") if item else None
        call = await self.data.call(await self.who(), request) if isinstance(request, str) else None
        return Opened(queue, item, items, agreement, call)

    def draw(self, loaded: tuple[Sequence[Row], Opened | None, Sequence[str]]) -> None:
        queues, opened, managed = loaded
        self.head("Review", "Answers that people judge, and what most of them say as a dataset.")
        if opened is not None:
            self._queue(opened)
        columns = [
            ("name", "Queue"), ("endpoint", "Endpoint"), ("items", "Answers"), ("done", "Reviewed"), ("mine", "By you"),
            ("labels", "Labels"), ("created", "Made (UTC)"),
        ]  # fmt: skip
        rows = [
            {
                **{key: each[key] for key in ("name", "endpoint", "items", "done")}, "created": stamp(each["created"]),
                "mine": each["reviews_by"].get(self.caller.name, 0), "labels": ", ".join(map(titled, each["labels"])),
            }
            for each in queues
        ]  # fmt: skip
        empty = "No queue for you to review. Whoever manages an endpoint makes one for its answers."
        table("All queues", empty, columns, rows, key="name", opens="name", on_open=self._open)
        if managed:
            self._new(managed)

    def _new(self, managed: Sequence[str]) -> None:
        async def create(given: Mapping[str, str]) -> None:
            asked = {
                "name": given.get("name", "").strip(), "endpoint": given.get("endpoint", ""),
                "labels": [label_of(each) for each in given.get("labels", "").split(",") if each.strip()],
                "reviewers": [each.strip() for each in given.get("reviewers", "").split(",") if each.strip()],
                "instruction": given.get("instruction", "").strip(),
            }  # fmt: skip
            await self.who()
            self.chosen, self.item = (await self.api("POST", AT, json=asked))["name"], None
            self.go(queue=self.chosen)

        with tag("section", "panel-section", id="new-queue", aria_label="Make a queue"):
            with tag("div", "section-head"):
                tag("h2", text="Make a queue")
                tag("p", text="A label is a name and its kind: boolean, numeric, text, text_list, or choices as kind|rude.")
            with form("Make", self.doing(create, "The queue is made. Add answers to it."), "wide-form"):
                field("Name", "name", required=True, maxlength=64)
                choice("Endpoint", "endpoint", [(name, name) for name in managed])
                field("Labels, by comma", "labels", required=True, value="correct:boolean", maxlength=2000)
                field("Reviewers, by comma", "reviewers", placeholder="user:ann, group:legal", maxlength=2000)
                field("What they are told", "instruction", maxlength=2000)

    async def _open(self, name: str, item: str | None = None) -> None:
        self.chosen, self.item = name, item
        self.go(queue=name, item=item)
        await self.show()
        self.client.run_javascript("smalti.to('.detail')")

    def _queue(self, opened: Opened) -> None:
        queue = opened.queue
        with tag("section", "detail tile", aria_label="Queue"):
            with tag("div", "section-head"):
                tag("h2", text=queue["name"])
                if queue["manages"]:
                    with tag("div", "head-tools"):
                        button("button quiet small", "Dataset", self._dataset, text="Dataset")
            self._progress(queue)
            if queue["instruction"]:
                tag("p", "verdict calm", queue["instruction"])
            if opened.item is None:
                said = "Nothing is left for you to review here." if queue["items"] else "No answer is in this queue yet."
                tag("p", "hint empty-state", said)
            else:
                self._item(opened, opened.item)
            self._listed(opened.items)
            if queue["manages"]:
                self._agreement(opened.agreement, {each["name"]: titled(each) for each in queue["labels"]})
                self._adding(queue)

    def _progress(self, queue: Row) -> None:
        items, done, mine = queue["items"], queue["done"], queue["reviews_by"].get(self.caller.name, 0)
        each = f", {queue['reviews_per_item']} reviews each" if queue["reviews_per_item"] > 1 else ""
        told = f"{done:,} of {items:,} answers of {queue['endpoint']} reviewed{each}; {mine:,} by you"
        progress(told, round(100 * done / items) if items else 0)

    def _item(self, opened: Opened, item: Row) -> None:
        content, own = item["content"], item["labels"].get(self.caller.name, {})
        with tag("article", "review-item", aria_label="Answer to review"):
            with tag("div", "section-head"):
                tag("h3", text=f"Answer {item['position'] + 1}" + (", which you reviewed" if own else ""))
                with tag("div", "head-tools"):
                    if opened.call is not None:
                        at = f"/console/journal?request={quote(str(content['request_id']), safe='')}"
                        tag("a", "link", "In the journal", href=at)
                        if opened.call["traces"]:
                            traces = opened.call["traces"]
                            tag("a", "link", "Its trace in MLflow", href=traces, target="_blank", rel="noopener")
            with tag("div", "question"):
                tag("p", text=_text(content.get("question") or content.get("inputs")))
            if content.get("answer"):
                Prose().show(_text(content["answer"]), {}, whole=True)
            else:
                tag("p", "hint", text="It gave no answer.")
            self._passages(content)
            self._judge(opened.queue, item, own)

    def _passages(self, content: Row) -> None:
        passages = content.get("passages")
        if isinstance(passages, list) and passages:
            with tag("details", "how", open=True if len(passages) <= 3 else None):
                tag("summary", text=f"{len(passages)} passage{'s' if len(passages) > 1 else ''}")
                for passage in passages:
                    given = passage if isinstance(passage, Mapping) else {"text": passage}
                    if where := given.get("source") or given.get("title") or given.get("id"):
                        tag("b", text=_text(where))
                    tag("pre", "payload", _text(given.get("text") or given.get("content") or given), tabindex="0")
        elif sources := content.get("answer_sources"):
            tag("p", "hint", text=f"From {', '.join(map(_text, sources)) if isinstance(sources, list) else _text(sources)}")

    def _judge(self, queue: Row, item: Row, own: Row) -> None:
        at = f"{AT}/{quote(queue['name'], safe='')}/items/{quote(item['id'], safe='')}/labels"

        async def send(given: Mapping[str, str]) -> None:
            values = {each["name"]: value for each in queue["labels"] if (value := said(each, given)) is not None}
            comment = given.get("comment", "").strip()
            await self.who()
            await self.api("POST", at, json={"labels": values, **({"comment": comment} if comment else {})})
            self.item = None
            self.go(queue=queue["name"])
            self.client.run_javascript("smalti.to('.detail')")

        with form("Save and go on", self.doing(send, "It is kept."), "review-form"):
            for label in queue["labels"]:
                _draw(label, own.get(label["name"], {}).get("value"))
            with tag("label", "labelled"):
                tag("span", text="Comment")
                comment = next((each["comment"] for each in own.values() if each["comment"]), "")
                tag("textarea", "field", name="comment", rows=2, maxlength=10_000, value=comment)

    def _listed(self, items: Sequence[Row]) -> None:
        if not items:
            return
        columns = [
            ("position", "No."), ("asked", "Question"), ("reviews", "Reviews"), ("mine", "You said"), ("added", "Added (UTC)"),
        ]  # fmt: skip
        rows = [
            {
                "id": each["id"], "position": each["position"] + 1, "reviews": each["reviews"], "added": stamp(each["added"]),
                "asked": _text(each["content"].get("question") or each["content"].get("inputs"))[:300],
                "mine": ", ".join(
                    f"{name}: {shown(told['value'])}" for name, told in each["labels"].get(self.caller.name, {}).items()
                ),
            }
            for each in items
        ]  # fmt: skip
        title = "Answers" if len(items) < LISTED else f"First {LISTED} answers"

        async def opened(item: str) -> None:
            await self._open(self.chosen or "", item)

        table(title, "", columns, rows, key="id", size=5, opens="asked", on_open=opened)

    def _agreement(self, pairs: Sequence[Row], titles: Mapping[str, str]) -> None:
        columns = [("label", "Label"), ("between", "Between"), ("n", "Both judged"), ("same", "Same"), ("kappa", "Cohen's kappa")]
        rows = [
            {
                "id": str(i), "label": titles.get(each["label"], each["label"]), "between": " and ".join(each["reviewers"]),
                "n": each["n"], "same": "–" if each["agreement"] is None else f"{each['agreement']:.0%}",
                "kappa": "–" if each["kappa"] is None else f"{each['kappa']:.3f}",
            }
            for i, each in enumerate(pairs)
        ]  # fmt: skip
        table("Agreement", "No answer was judged by two people yet.", columns, rows, key="id")

    def _adding(self, queue: Row) -> None:
        at = f"{AT}/{quote(queue['name'], safe='')}"

        async def add(given: Mapping[str, str]) -> None:
            wanted: dict[str, Any] = {}
            if match := given.get("match", "").strip():
                wanted["match"] = match
            if sample := given.get("sample", "").strip():
                if not sample.isdigit() or int(sample) < 1:
                    raise bad_request("How many at most must be a number from 1.", "sample")
                wanted["sample"] = int(sample)
            if hours := given.get("hours"):
                wanted["since"] = (datetime.now(UTC) - timedelta(hours=int(hours))).isoformat()
            await self.who()
            told = await self.api("POST", f"{at}/items", json={"journal": wanted})
            ui.notify(f"{told['added']:,} answers are new in the queue.", position="bottom")

        async def drop() -> None:
            await self.who()
            await self.api("DELETE", at)
            self.chosen = self.item = None
            self.go()

        tag("h3", text="Add answers from the journal")
        with form("Add", self.doing(add)):
            field("Questions that match (regular expression)", "match", maxlength=500)
            field("How many at most", "sample", type="number", min=1, max=10_000, step=1, value="50")
            choice("Time", "hours", SPANS, "168")
        with tag("div", "decide-more"):
            question = f"Delete {queue['name']} with all that was said in it?"
            self.confirmed("Delete the queue", question, drop, "The queue is deleted.", danger=True)

    async def _dataset(self) -> None:
        """What most people say, as a file; what was left out is told."""

        async def download() -> None:
            await self.who()
            name = self.chosen or ""
            answer = await self.services.api.answer(self.credential, "GET", f"{AT}/{quote(name, safe='')}/dataset")
            rows, disputed = len(answer.text.splitlines()), int(answer.headers.get("x-smalti-disputed", 0))
            if not rows:
                raise bad_request("There is nothing in the dataset yet: nobody has judged an answer, or nobody agrees.")
            ui.download.content(answer.content, f"{name}.jsonl", "application/x-ndjson")
            left = f"; {disputed} labels without a majority are left out" if disputed else ""
            ui.notify(f"{rows:,} rows{left}.", position="bottom")

        await self.doing(download)()


def label_of(text: str) -> dict[str, Any]:
    """A label as a queue takes it, of `name:kind` or `name:one|two`. Other kinds are refused by the API."""
    name, _, kind = (part.strip() for part in text.partition(":"))
    options = [each.strip() for each in kind.split("|") if each.strip()]
    given = {"type": "categorical", "options": options} if len(options) > 1 else {"type": kind or "boolean"}
    return {"name": name, "input": given}


def titled(label: Row) -> str:
    text = label["title"] or label["name"].replace("_", " ")
    return text[:1].upper() + text[1:]


def said(label: Row, given: Mapping[str, str]) -> Any:
    """A label's value as the API takes it; None where nothing was said. What is no number stays text, which it refuses."""
    text, kind = given.get(f"label-{label['name']}", "").strip(), label["input"]["type"]
    if not text:
        return None
    if kind == "boolean":
        return text == "yes"
    if kind == "numeric":
        try:
            return float(text)
        except ValueError:
            return text
    return [line.strip() for line in text.splitlines() if line.strip()] if kind == "text_list" else text


def shown(value: Any) -> str:
    """A label's value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}"
    return "; ".join(value) if isinstance(value, list) else str(value)


def _draw(label: Row, value: Any) -> None:
    """A label's field, with what this person said before."""
    given, name = label["input"], f"label-{label['name']}"
    needed = True if label["required"] else None
    about = label["instruction"]
    if given["type"] in ("boolean", "categorical"):
        options = ["yes", "no"] if given["type"] == "boolean" else given["options"]
        chosen = ("yes" if value else "no") if isinstance(value, bool) else value
        with tag("fieldset", "picks"):
            _named("legend", label)
            for option in options:
                with tag("label", "pick"):
                    now = True if option == chosen else None
                    tag("input", type="radio", name=name, value=option, required=needed, checked=now)
                    tag("span", text=option)
            if about:
                tag("small", text=about)
        return
    with tag("label", "labelled"):
        _named("span", label)
        if given["type"] == "numeric":
            bounds = {"min": given["min"], "max": given["max"]}
            before = "" if value is None else shown(value)
            tag("input", "field", type="number", step="any", name=name, value=before, required=needed, **bounds)
        else:
            many = given["type"] == "text_list"
            before = "\n".join(value or ()) if many else value or ""
            hint = "one a line" if many else None
            tag("textarea", "field", name=name, rows=3, maxlength=10_000, value=before, placeholder=hint, required=needed)
        if about:
            tag("small", text=about)


def _named(kind: str, label: Row) -> None:
    with tag(kind, text=titled(label)):
        if label["required"]:
            tag("span", "needed", " needed")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
