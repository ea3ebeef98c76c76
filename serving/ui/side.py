"""The side bar: the caller's conversations, and the way to the console, the other theme and out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nicegui import ui

from agents.runtime import ThreadNotFound
from governance.call import CallError
from serving.ui.parts import Latest, age_group, button, icon, moment, set_text, tag
from serving.ui.services import Thread, ThreadMessage
from serving.ui.turn import Turn

if TYPE_CHECKING:
    from serving.ui.chat import ChatPage


TITLE_CHARS = 80


def markdown_of(title: str, messages: Sequence[ThreadMessage]) -> str:
    """A conversation as Markdown."""
    lines = [f"# {title}"]
    for message in messages:
        turn = Turn.stored(message) if message.role != "user" else None
        lines.append(f"## {'You' if turn is None else 'Smalti'}\n\n{message.text if turn is None else turn.text}")
        if turn is not None and turn.sources:
            sources = sorted(turn.sources.values(), key=lambda source: source.number)
            lines.append("\n".join(f"[{s.number}] {s.title} ({s.source})" for s in sources))
    return "\n\n".join(lines) + "\n"


_OPEN = """(e) => {
  const link = e.target.closest?.("a.thread-open");
  if (!link || e.ctrlKey || e.metaKey) return;
  e.preventDefault();
  emit(new URL(link.href).searchParams.get("thread"));
}"""


class SideBar:
    """Lists, opens, renames and deletes the caller's conversations."""

    def __init__(self, page: ChatPage) -> None:
        self.page = page
        self.sought = ""
        self._loads = Latest()
        self._agents: dict[str, str | None] = {}

    def build(self) -> None:
        with tag("aside", id="side", aria_label="Conversations"):
            with tag("a", "brand", href="/", aria_label="Smalti, new chat"):
                tag("img", src="/ui/logo.svg", alt="")
                tag("span", text="Smalti")
            with button("", "New chat", self.page.new_chat, id="new-chat"):
                icon("plus")
                tag("span", text="New chat")
            find = tag("input", "field find", type="search", placeholder="Search", aria_label="Search conversations")
            find.on("input", self._search, js_handler="(e) => emit(e.target.value)")
            self.list = tag("nav", "threads", aria_label="Conversations")
            # Here and not on the links, which are made anew whenever the list is: a click in that moment would be lost.
            self.list.on("click", lambda event: self.page.open(str(event.args)), js_handler=_OPEN)
            with tag("div", "side-foot"):
                tag("span", "who", text=self.page.caller.name, title=self.page.caller.name)
                with tag("a", "icon-button", href="/console", aria_label="Console", title="Console"):
                    icon("chart")
                with button("icon-button", "Dark mode", data_theme_toggle=True, aria_pressed="false"):
                    icon("moon", "moon")
                    icon("sun", "sun")
                with (
                    tag("form", method="post", action="/logout"),
                    tag("button", "icon-button", type="submit", aria_label="Sign out", title="Sign out"),
                ):
                    icon("out")

    async def _search(self, event: Any) -> None:
        self.sought = " ".join(str(event.args).lower().split())
        await self.refresh()

    def agent_of(self, thread_id: str) -> str | None:
        """Who answered last in a conversation of the list."""
        return self._agents.get(thread_id)

    async def refresh(self) -> None:
        latest = self._loads.begin()
        try:
            threads = sorted(await self.page.services.threads.list(await self.page.owner()), key=lambda each: -each.updated_at)
        except CallError as error:
            self.page.notice(error)
            return
        if not latest():
            return
        self._agents = {each.id: each.agent for each in threads}
        self.list.clear()
        set_text(self.page.title, next((t.title for t in threads if t.id == self.page.thread_id), "New chat"))
        heading = ""
        with self.list:
            if not threads:
                tag("p", "empty-list", text="Your conversations will be listed here.")
            found = [each for each in threads if self.sought in each.title.lower()]
            if threads and not found:
                tag("p", "empty-list", text="No conversation has this in its title.")
            for thread in found:
                if (group := age_group(thread.updated_at)) != heading:
                    tag("h2", text=(heading := group))
                self._thread_row(thread)

    def _thread_row(self, thread: Thread) -> None:
        current = thread.id == self.page.thread_id
        title = thread.title or "Untitled"
        with tag("div", "thread current" if current else "thread"):
            link = tag(
                "a",
                "thread-open",
                href=f"/?thread={quote(thread.id, safe='')}",
                title=title,
                aria_current="page" if current else None,
            )
            with link:
                tag("span", text=title)
                tag("time", text=moment(thread.updated_at))
            with tag("div", "thread-tools"):
                button("icon-button rename", f"Rename {title}", lambda: self._rename(thread), glyph="pencil")
                button("icon-button export", f"Export {title}", lambda: self._export(thread), glyph="down")
                button("icon-button delete", f"Delete {title}", lambda: self._delete(thread), glyph="trash")

    async def _rename(self, thread: Thread) -> None:
        with self._dialog("Rename this conversation") as dialog, tag("form") as form:
            field = tag("input", "field", value=thread.title, maxlength=TITLE_CHARS, aria_label="Title", autofocus=True)
            with tag("div", "row-of"):
                button("button quiet", "Cancel", dialog.close, text="Cancel")
                tag("button", "button", "Rename", type="submit")
        form.on(
            "submit",
            lambda event: dialog.submit(str(event.args)),
            js_handler="(e) => { e.preventDefault(); emit(e.target.querySelector('input').value); }",
        )
        field.on("focus", js_handler="(e) => e.target.select()")
        title = " ".join(str(await self._result(dialog) or "").split())[:TITLE_CHARS]
        if title and title != thread.title:
            await self._change(self.page.services.threads.rename, thread.id, title)

    async def _export(self, thread: Thread) -> None:
        """The conversation as a Markdown file, its sources listed under each answer."""
        try:
            messages = await self.page.services.threads.messages(thread.id, await self.page.owner())
        except CallError as error:
            self.page.notice(error)
            return
        name = re.sub(r"[^\w-]+", "-", thread.title).strip("-")[:60] or "conversation"
        with self.page.client:
            ui.download.content(markdown_of(thread.title, messages or ()), f"{name}.md", "text/markdown")

    async def _delete(self, thread: Thread) -> None:
        with self._dialog("Delete this conversation?") as dialog:
            tag("p", text=f"“{thread.title}” and its answers are removed for good.")
            with tag("div", "row-of"):
                button("button quiet", "Cancel", dialog.close, text="Cancel", autofocus=True)
                button("button danger", "Delete", lambda: dialog.submit(True), text="Delete")
        if await self._result(dialog):
            if thread.id == self.page.thread_id:
                await self.page.new_chat()
            await self._change(self.page.services.threads.delete, thread.id)

    async def _change(self, change: Callable[..., Any], thread_id: str, *given: Any) -> None:
        try:
            await change(thread_id, await self.page.owner(), *given)
        except ThreadNotFound:
            pass  # gone already; the list shows it
        except CallError as error:
            self.page.notice(error)
        await self.refresh()

    async def _result(self, dialog: ui.dialog) -> Any:
        """What the dialog was closed with; None where it was left, also with the whole page."""
        result = await dialog
        if self.page.client.is_deleted:
            return None
        dialog.delete()
        return result

    def _dialog(self, title: str) -> ui.dialog:
        with self.page.client:
            dialog = _Sheet(title)
        dialog.open()
        return dialog


class _Sheet(ui.dialog):
    """A dialog with a heading; its content is what is built inside `with`."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.props["aria-label"] = title
        with self.default_slot:
            self.sheet = tag("div", "sheet", role="document")
        with self.sheet:
            tag("h2", text=title)

    def __enter__(self) -> _Sheet:
        self.sheet.__enter__()
        return self

    def __exit__(self, *given: Any) -> None:
        self.sheet.__exit__(*given)
