"""An answer on the page: prose that grows, then its sources, thumbs and how it came to be."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nicegui.client import Client
from nicegui.element import Element

from serving.ui.pace import Growing, Pace
from serving.ui.parts import Prose, button, how_answered, set_text, source_row, tag, thinking
from serving.ui.turn import Ask, Turn

Decide = Callable[[list[dict[str, Any]]], Any]
Rate = Callable[[Turn, bool, str | None], Awaitable[bool]]


class Approvals:
    """Cards for what an answer waits for; all are decided before anything is sent, as the run goes on once."""

    def __init__(self, asks: Sequence[Ask], decide: Decide) -> None:
        self._asks, self._decide = asks, decide
        self._said: dict[str, dict[str, Any]] = {}
        self._box = tag("div", "asks")
        with self._box:
            for ask in asks:
                self._card(ask)

    def _card(self, ask: Ask) -> None:
        what = f"May {ask.name} be called?" if ask.approval else str(ask.arguments.get("question") or "The agent asks you:")
        given = json.dumps(ask.arguments, indent=2, ensure_ascii=False) if ask.approval else ""
        with tag("form", "ask", aria_label=what) as card:
            tag("strong", text=what)
            label = f"Arguments of {ask.name}" if ask.approval else "Your reply"
            tag(
                "textarea",
                "field",
                name="text",
                aria_label=label,
                rows=min(8, given.count("\n") + 1),
                value=given,
                spellcheck="false",
            )
            with tag("div", "row-of"):
                if ask.approval:
                    tag("button", "button quiet", "Reject", type="submit", value="no")
                tag("button", "button", "Approve" if ask.approval else "Reply", type="submit", value="yes")
            note = tag("small", role="alert")

        def said(event: Any) -> None:
            approve, text = bool(event.args[0]), str(event.args[1])
            if ask.approval and approve:
                try:
                    edited = json.loads(text)
                except ValueError:
                    edited = None
                if not isinstance(edited, dict):
                    set_text(note, "The arguments must be a JSON object.")
                    return
                text = "" if edited == ask.arguments else text
            elif ask.approval:
                text = ""
            self._said[ask.id] = ask.answer(approve=approve, text=text)
            card.delete()
            with self._box:
                verb = "Approved" if approve else "Rejected"
                tag("p", "decided", f"{verb}: {ask.name}" if ask.approval else f"You replied: {text}")
            if len(self._said) == len(self._asks):
                self._decide([self._said[each.id] for each in self._asks])

        sends = "(e) => { e.preventDefault(); emit(e.submitter.value === 'yes', e.target.elements.text.value); }"
        card.on("submit", said, js_handler=sends)


class AnswerView:
    """A drawn answer: prose that grows, then sources, thumbs and how it was answered."""

    def __init__(
        self,
        client: Client,
        turn: Turn,
        pace: Pace,
        rate: Rate,
        again: Callable[[], Any] | None,
        decide: Decide | None = None,
    ) -> None:
        self.client, self.turn, self._rated, self._again, self._decide = client, turn, rate, again, decide
        self._growing = Growing(pace, self._draw)
        self.changed = self._growing.changed
        self.box = tag("article", "answer", aria_label="Answer")
        with self.box:
            with tag("div", "answer-head"):
                tag("img", src="/ui/logo.svg", alt="")
                self._badge = tag("span", text="")
            self._prose = Prose()
            self._wait: Element | None = thinking()
            self._tail = tag("div")

    def _draw(self, *, whole: bool = False) -> None:
        self._growing.drawn()
        if self.client.is_deleted or self.box.is_deleted:
            return
        with self.client:
            if self._wait is not None and (self.turn.text or whole):
                self._wait.delete()
                self._wait = None
            self._prose.show(self.turn.text, self.turn.sources, whole=whole)

    def finish(self) -> None:
        """The answer is complete, stopped or failed: draw what belongs under it."""
        turn = self.turn
        self._draw(whole=True)
        if turn.status == "completed":
            set_text(self._badge.classes("badge"), turn.badge)
        with self._tail:
            if turn.status == "failed":
                self._trouble()
                return
            if turn.status == "stopped":
                tag("p", "stopped", text="This answer was stopped.")
            if turn.sources:
                source_row(turn)
            if turn.asks and self._decide is not None:
                Approvals(turn.asks, self._decide)
            with tag("div", "tools"):
                if turn.text and self._again is not None:
                    button("copy", "Answer again", self._again, text="Again")
                if turn.text:
                    tag("button", "copy", "Copy", type="button", data_copy="answer")
                if turn.status == "completed" and turn.request_id:
                    self._thumbs()
            if turn.status == "completed" and (turn.steps or turn.route or turn.mode):
                how_answered(turn)

    def _trouble(self) -> None:
        with tag("div", "trouble", role="alert"):
            tag("p", text=self.turn.error)
            with tag("div", "row-of"):
                if self._again is not None:
                    button("button quiet", "Try again", self._again, text="Try again")
            if self.turn.request_id:
                tag("small", text=f"request {self.turn.request_id}")

    def _thumbs(self) -> None:
        self._up = button("icon-button up", "Helpful", lambda: self._rate(True), glyph="thumb-up", aria_pressed="false")
        self._down = button(
            "icon-button down", "Not helpful", lambda: self._rate(False), glyph="thumb-down", aria_pressed="false"
        )
        self._said = tag("span", "said", role="status")
        with self._tail:
            self._form = tag("div")

    async def _rate(self, helpful: bool) -> None:
        if not await self._rated(self.turn, helpful, None):
            return
        self._up.props["aria-pressed"], self._down.props["aria-pressed"] = str(helpful).lower(), str(not helpful).lower()
        set_text(self._said, "Thank you.")
        self._form.clear()
        with self._form, tag("form", "comment") as form:
            label = "What was good? (optional)" if helpful else "What was wrong or missing? (optional)"
            tag("input", "field", placeholder=label, aria_label=label, maxlength=2000, autofocus=True)
            tag("button", "button quiet", "Send", type="submit")

        async def comment(event: Any) -> None:
            text = str(event.args).strip()
            if not text or await self._rated(self.turn, helpful, text):
                self._form.clear()
                set_text(self._said, "Thank you for the comment." if text else "Thank you.")

        form.on("submit", comment, js_handler="(e) => { e.preventDefault(); emit(e.target.querySelector('input').value); }")
        self.client.run_javascript(f"document.querySelector('#c{form.id} input')?.focus()")
