"""What the console's pages share: the bar, who is looking, errors in words, dialogs."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from nicegui import background_tasks, ui
from nicegui.element import Element

from governance.call import Caller, CallError
from serving.ui.mount import SCOPE_KEY
from serving.ui.parts import Latest, button, frameless, icon, set_text, tag
from serving.ui.plain import HEAD
from serving.ui.services import ConsoleData, UiServices

SECTIONS = {
    "Home": "/console",
    "Endpoints": "/console/endpoints",
    "Journal": "/console/journal",
    "Indexes": "/console/indexes",
    "Experiments": "/console/experiments",
    "Fine-tuning": "/console/finetuning",
    "Evaluations": "/console/evaluations",
    "Review": "/console/review",
    "Access": "/console/access",
}
OWNERS_ONLY = ("Evaluations", "Access")


PATIENCE = 1.0
"""Seconds a page is held back for its first rows; what takes longer is drawn when it comes."""


class ConsolePage:
    """One tab of the console. Each reading authenticates again, so that a revoked key shows nothing more.

    A page's `load` reads what its `draw` shows. What `load` raises as `CallError` is told in its place, and what it gives is
    dropped where a later load began meanwhile.
    """

    section = "Home"

    def __init__(self, services: UiServices, caller: Caller, credential: str) -> None:
        self.services, self.caller, self.credential = services, caller, credential
        self.client = ui.context.client
        self._loads = Latest()

    @property
    def data(self) -> ConsoleData:
        return self.services.console

    async def who(self) -> Caller:
        """The signed-in caller as of now. Raises `CallError` (401) where the key is good no more."""
        return await asyncio.to_thread(self.services.identity.authenticate, self.credential)

    async def api(self, method: str, path: str, **given: Any) -> Mapping[str, Any]:
        """What the server's own API answers this caller. Raises `CallError`."""
        return await self.services.api(self.credential, method, path, **given)

    def go(self, **asked: str | None) -> None:
        """Have the address say what is shown, so that it can be kept and sent."""
        query = urlencode({name: value for name, value in asked.items() if value})
        path = SECTIONS[self.section] + (f"?{query}" if query else "")
        self.client.run_javascript(f"smalti.url({json.dumps(path)})")

    def build(self) -> None:
        with tag("div", "console"):
            with tag("header", "console-bar"):
                with tag("a", "brand", href="/", aria_label="Smalti, to the chat"):
                    tag("img", src="/ui/logo.svg", alt="")
                    tag("span", text="Smalti")
                with tag("nav", "console-nav", aria_label="Sections"):
                    for name, path in SECTIONS.items():
                        if self.caller.admin or name not in OWNERS_ONLY:
                            tag("a", text=name, href=path, aria_current="page" if name == self.section else None)
                tag("span", "who", text=self.caller.name, title=self.caller.name)
                with button("icon-button", "Dark mode", data_theme_toggle=True, aria_pressed="false"):
                    icon("moon", "moon")
                    icon("sun", "sun")
                with tag("a", "button quiet", href="/"):
                    tag("span", text="Chat")
            with tag("main", "console-body") as self.body:
                tag("p", "hint loading", "Loading …", role="status")

    def open(self, asked: Mapping[str, str]) -> None:
        """Take in what the address asks for, before the first drawing."""

    async def load(self) -> Any:
        """What the page shows, as of now."""
        raise NotImplementedError

    def draw(self, loaded: Any) -> None:
        """Fill the page, inside `body`, with what `load` gave."""
        raise NotImplementedError

    async def show(self) -> None:
        """Fill the page, or say why it cannot be; unless a later call has overtaken this one."""
        latest = self._loads.begin()
        try:
            loaded = await self.load()
        except CallError as error:
            if latest():
                self.tell(error)
            return
        if latest() and not self.client.is_deleted:
            self.body.clear()
            with self.body:
                self.draw(loaded)

    def tell(self, error: CallError) -> None:
        """A refusal in words, at the top of the page; a key that is good no more leads to the sign-in."""
        if error.status == 401:
            here = f"/login?next={SECTIONS[self.section]}"
            self.client.run_javascript(f"location.href = {json.dumps(here)}")
            return
        with self.client, self.body:
            for old in [each for each in self.body.default_slot.children if {"problem", "loading"} & set(each.classes)]:
                old.delete()
            tag("p", "problem", text=error.message, role="alert").move(target_index=0)

    def doing(self, action: Callable[..., Awaitable[Any]], done: str = "", *given: Any) -> Callable[..., Awaitable[None]]:
        """A handler that does something, says so, and draws the page again; a refusal is told instead."""

        async def handler(*more: Any) -> None:
            try:
                await action(*given, *more)
            except CallError as error:
                if error.status == 401:
                    self.tell(error)
                else:
                    ui.notify(error.message, type="negative", position="bottom", multi_line=True)
                return
            if done:
                ui.notify(done, position="bottom")
            await self.show()

        return handler

    def confirmed(
        self, label: str, question: str, action: Callable[[], Awaitable[Any]], done: str, *, danger: bool = False
    ) -> None:
        """A button whose action is done only when a person says so a second time, in its place."""
        box = tag("span", "confirmed")

        def first() -> None:
            box.clear()
            with box:
                button(f"button small {'danger' if danger else 'quiet'}", label, ask, text=label)

        def ask() -> None:
            box.clear()
            with box, tag("span", "confirm", role="alertdialog", aria_label=label):
                tag("span", text=question)
                button(f"button small {'danger' if danger else ''}", label, self.doing(action, done), text=label)
                button("button quiet small", "Cancel", first, text="Cancel")

        first()

    def head(self, title: str, about: str) -> Element:
        """A page's heading; gives the place for what stands at its right."""
        with tag("div", "section-head"):
            with tag("div"):
                tag("h1", text=title)
                tag("p", text=about)
            return tag("div", "head-tools")


class _Form(Element):
    """A form; its buttons come after the fields that are built inside `with`."""

    def __init__(self, label: str, others: Sequence[tuple[str, str]]) -> None:
        super().__init__("form")
        self._label, self._others = label, others

    def __exit__(self, *given: Any) -> None:
        with tag("div", "form-buttons"):
            tag("button", "button", self._label, type="submit")
            for value, label in self._others:
                tag("button", "button quiet", label, type="submit", name="do", value=value)
        super().__exit__(*given)


def form(label: str, send: Callable[[dict[str, str]], Any], classes: str = "", others: Sequence[tuple[str, str]] = ()) -> Element:
    """A form whose named fields reach `send` as text; build its fields inside `with`.

    `others` are further buttons, by what they send as `do` and by what stands on them.
    """
    element = _Form(label, others).classes(f"inline-form {classes}")

    async def sent(event: Any) -> None:
        given = {str(key): str(value) for key, value in dict(event.args or {}).items()}
        result = send(given)
        if inspect.isawaitable(result):
            await result

    element.on("submit", sent, js_handler=_SENT)
    return element


_SENT = """(e) => {
    e.preventDefault();
    emit(Object.fromEntries([...new FormData(e.target, e.submitter)].filter((each) => typeof each[1] === "string")));
}"""


def handed(label: str, accept: str, on_file: Callable[[Mapping[str, Any]], Any], *, told: str = "") -> Element:
    """A button that has a person choose a file and sends it to `/uploads`; `on_file` gets what that answered."""
    with tag("label", "button quiet small handed") as element:
        said = tag("span", text=told or label)
        chosen = tag("input", "hidden-file", type="file", accept=accept, aria_label=label, data_upload=True)

    async def done(event: Any) -> None:
        answer = dict(event.args or {})
        set_text(said, str(answer.get("name") or label))
        result = on_file(answer)
        if inspect.isawaitable(result):
            await result

    chosen.on("uploaded", done, js_handler="(e) => emit(e.detail)")
    return element


def field(label: str, name: str, **props: Any) -> None:
    with tag("label", "labelled"):
        tag("span", text=label)
        tag("input", "field", name=name, **props)


def choice(label: str, name: str, options: Sequence[tuple[str, str]], chosen: str = "") -> None:
    with tag("label", "labelled"):
        tag("span", text=label)
        with tag("select", "field", name=name):
            for value, text in options:
                tag("option", text=text, value=value, selected=True if value == chosen else None)


def progress(told: str, done: int) -> None:
    """A bar under the words that say how far something is; `done` is in percent."""
    tag("p", "hint", told)
    with tag("div", "progress", role="progressbar", aria_label=told, aria_valuenow=done, aria_valuemin=0, aria_valuemax=100):
        tag("span").style(f"width: {done}%")


def stamp(value: Any, form: str = "%Y-%m-%d %H:%M") -> str:
    """A time (Unix seconds or ISO 8601) as text in UTC; "" for none."""
    if value is None or value == "":
        return ""
    if not isinstance(value, int | float):
        with suppress(ValueError):
            moment = datetime.fromisoformat(str(value))
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).strftime(form)
        return str(value)
    return datetime.fromtimestamp(value, UTC).strftime(form)


def milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def dollars(value: float) -> str:
    return f"${value:,.2f}" if value >= 0.01 or not value else f"${value:.4f}"


def compact(value: float) -> str:
    """A count as short as a figure has room for."""
    if value < 100_000:
        return f"{value:,.0f}"
    return f"{value / 1e6:,.1f} M" if value >= 999_500 else f"{value / 1e3:,.0f} k"


def register() -> None:
    """Make the console's pages known to NiceGUI, once in a process."""
    from serving.ui.console.access import AccessPage
    from serving.ui.console.endpoints import EndpointsPage
    from serving.ui.console.evaluations import EvaluationsPage
    from serving.ui.console.experiments import ExperimentsPage
    from serving.ui.console.finetuning import FineTuningPage
    from serving.ui.console.home import HomePage
    from serving.ui.console.indexes import IndexesPage
    from serving.ui.console.journal import JournalPage
    from serving.ui.console.review import ReviewPage

    pages = (HomePage, EndpointsPage, JournalPage, IndexesPage, ExperimentsPage, FineTuningPage, EvaluationsPage)
    for kind in (*pages, ReviewPage, AccessPage):
        _register(kind)


def _register(kind: type[ConsolePage]) -> None:
    async def shown(request: Request) -> None:
        services, caller, credential = request.scope[SCOPE_KEY]
        frameless(ui.context.client)
        ui.add_head_html(HEAD + '<script src="/ui/chat.js"></script>')
        page = kind(services, caller, credential)
        page.build()
        page.open(dict(request.query_params))
        showing = background_tasks.create(page.show(), name=f"first drawing of {kind.section}")
        await asyncio.wait([showing], timeout=PATIENCE)

    ui.page(SECTIONS[kind.section], title=f"{kind.section} – Smalti console")(shown)
