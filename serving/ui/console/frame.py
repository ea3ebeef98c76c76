"""What the console's pages share: the bar, who is looking, errors in words, dialogs."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from nicegui import ui
from nicegui.element import Element

from governance.call import Caller, CallError
from serving.ui.mount import SCOPE_KEY
from serving.ui.parts import button, icon, tag
from serving.ui.plain import HEAD
from serving.ui.services import ConsoleData, UiServices

SECTIONS = {
    "Home": "/console",
    "Endpoints": "/console/endpoints",
    "Journal": "/console/journal",
    "Indexes": "/console/indexes",
    "Access": "/console/access",
}
OWNERS_ONLY = ("Access",)


class ConsolePage:
    """One tab of the console. Each reading authenticates again, so that a revoked key shows nothing more.

    A page's `draw` fills `body`; what it raises as `CallError` is told in its place.
    """

    section = "Home"

    def __init__(self, services: UiServices, caller: Caller, credential: str) -> None:
        self.services, self.caller, self.credential = services, caller, credential
        self.client = ui.context.client

    @property
    def data(self) -> ConsoleData:
        return self.services.console

    async def who(self) -> Caller:
        """The signed-in caller as of now. Raises `CallError` (401) where the key is good no more."""
        return await asyncio.to_thread(self.services.identity.authenticate, self.credential)

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
            self.body = tag("main", "console-body")

    def open(self, asked: Mapping[str, str]) -> None:
        """Take in what the address asks for, before the first drawing."""

    async def draw(self) -> None:
        raise NotImplementedError

    async def show(self) -> None:
        """Fill the page, or say why it cannot be."""
        try:
            await self.draw()
        except CallError as error:
            self.tell(error)

    def tell(self, error: CallError) -> None:
        """A refusal in words, at the top of the page; a key that is good no more leads to the sign-in."""
        if error.status == 401:
            here = f"/login?next={SECTIONS[self.section]}"
            self.client.run_javascript(f"location.href = {json.dumps(here)}")
            return
        with self.client, self.body:
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
                    ui.notify(error.message, type="negative", position="top", multi_line=True)
                return
            if done:
                ui.notify(done, position="top")
            await self.show()

        return handler

    def head(self, title: str, about: str) -> Element:
        """A page's heading; gives the place for what stands at its right."""
        with tag("div", "section-head"):
            with tag("div"):
                tag("h1", text=title)
                tag("p", text=about)
            return tag("div", "head-tools")


class _Form(Element):
    """A form; its button comes after the fields that are built inside `with`."""

    def __init__(self, label: str) -> None:
        super().__init__("form")
        self._label = label

    def __exit__(self, *given: Any) -> None:
        tag("button", "button", self._label, type="submit")
        super().__exit__(*given)


def form(label: str, send: Callable[[dict[str, str]], Any], classes: str = "") -> Element:
    """A form whose named fields reach `send` as text; build its fields inside `with`."""
    element = _Form(label).classes(f"inline-form {classes}")

    async def sent(event: Any) -> None:
        given = {str(key): str(value) for key, value in dict(event.args or {}).items()}
        result = send(given)
        if inspect.isawaitable(result):
            await result

    element.on("submit", sent, js_handler="(e) => { e.preventDefault(); emit(Object.fromEntries(new FormData(e.target))); }")
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
    from serving.ui.console.home import HomePage
    from serving.ui.console.indexes import IndexesPage
    from serving.ui.console.journal import JournalPage

    for kind in (HomePage, EndpointsPage, JournalPage, IndexesPage, AccessPage):
        _register(kind)


def _register(kind: type[ConsolePage]) -> None:
    async def shown(request: Request) -> None:
        services, caller, credential = request.scope[SCOPE_KEY]
        ui.context.client.page_container.props["role"] = "presentation"
        ui.add_head_html(HEAD + '<script src="/ui/chat.js"></script>')
        page = kind(services, caller, credential)
        page.build()
        page.open(dict(request.query_params))
        await page.show()

    ui.page(SECTIONS[kind.section], title=f"{kind.section} – Smalti console")(shown)
