"""The documents of the open conversation: handed in, listed above the question, taken out again."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from nicegui import background_tasks, ui

from governance.call import CallError
from serving.ui.parts import Latest, button, icon, tag

if TYPE_CHECKING:
    from serving.ui.chat import ChatPage
    from serving.ui.services import File


class Attached:
    """What stands above the question; drawn anew for each conversation."""

    def __init__(self, page: ChatPage) -> None:
        self.page = page
        self.files: Sequence[File] = ()
        self._reading: list[str] = []
        self._loads = Latest()

    def build(self) -> None:
        self.box = tag("ul", "attached", aria_label="Documents of this conversation", role="list")

    async def show(self) -> None:
        """List the documents of the conversation that is open now."""
        latest, files, thread = self._loads.begin(), self.page.services.files, self.page.thread_id
        found: Sequence[File] = ()
        if files is not None and thread is not None:
            found = await asyncio.to_thread(files.list, self.page.caller.principal, thread)
        if latest():
            self.files = found
            self._draw()

    async def add(self, answer: Mapping[str, Any]) -> None:
        """Take in a file that was uploaded; what is wrong with it is said."""
        page, files = self.page, self.page.services.files
        if files is None:
            return
        if "id" not in answer:
            self._say(str(answer.get("message") or "The file was not taken. Try again."))
            return
        thread = page.thread_id = page.thread_id or uuid.uuid4().hex
        name = str(answer.get("name"))
        self._reading.append(name)
        self._draw()
        try:
            who = await page.who()
            held = page.services.uploads.take(str(answer["id"]), who.principal)
            if held is not None:
                await asyncio.to_thread(files.add, who, thread, held.name, held.content)
        except CallError as error:
            if error.status == 401:
                page.notice(error)
            else:
                self._say(error.message)
        finally:
            self._reading.remove(name)
        if page.client.is_deleted and not page.said:
            await asyncio.to_thread(files.forget, thread, page.caller.principal)
        elif page.thread_id == thread:
            await self.show()

    async def remove(self, name: str) -> None:
        files, thread = self.page.services.files, self.page.thread_id
        if files is not None and thread is not None:
            await asyncio.to_thread(files.remove, self.page.caller.principal, thread, name)
        await self.show()

    async def take_along(self, before: str, to: str) -> None:
        """Have a conversation that another goes on in hold the same documents."""
        files = self.page.services.files
        if files is not None and self.files:
            await asyncio.to_thread(files.copy, await self.page.who(), before, to)

    def leave(self) -> None:
        """Drop what was handed to a conversation in which nothing was said."""
        files, thread = self.page.services.files, self.page.thread_id
        if files is not None and thread is not None and self.files and not self.page.said:
            forget = asyncio.to_thread(files.forget, thread, self.page.caller.principal)
            background_tasks.create(forget, name="documents of a conversation that was not begun")
        self.files = ()
        if not self.page.client.is_deleted:
            self._draw()

    def _draw(self) -> None:
        self.box.clear()
        with self.page.client, self.box:
            for each in self.files:
                if each.name not in self._reading:
                    with tag("li"):
                        icon("clip")
                        tag("span", text=each.name, title=each.name)
                        button("icon-button", f"Remove {each.name}", partial(self.remove, each.name), text="✕")
            for name in self._reading:
                with tag("li", "reading", role="status"):
                    icon("clip")
                    tag("span", text=f"Reading {name} …", title=name)

    def _say(self, message: str) -> None:
        with self.page.client:
            ui.notify(message, type="negative", position="top", multi_line=True, timeout=10_000)
