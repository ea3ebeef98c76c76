"""What the console's pages share: the bar, who is looking, errors in words, dialogs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from nicegui import ui
from nicegui.element import Element

from governance.call import Caller, CallError
from serving.ui.parts import Latest, button, icon, tag
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
