"""The chat at `/`: one `ChatPage` a browser tab. It asks through the gateway with the signed-in caller's key."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from urllib.parse import quote

from fastapi import Request
from nicegui import background_tasks, ui
from nicegui.client import Client
from nicegui.element import Element

from governance.call import Call, Caller, CallError
from serving.ui.answer import AnswerView
from serving.ui.mount import SCOPE_KEY
from serving.ui.parts import Composer, button, tag
from serving.ui.plain import HEAD
from serving.ui.services import ThreadMessage, UiServices
from serving.ui.side import SideBar
from serving.ui.turn import Turn

logger = logging.getLogger(__name__)

SHOWN = 60
"""Messages of a stored thread that are drawn at once; earlier ones on request."""


def questions(titles: Sequence[str]) -> list[str]:
    """Up to three questions about documents with these titles."""
    shapes = ("What does “{}” say?", "What should I know about “{}”?", "What is explained in “{}”?")
    asked = []
    for title in dict.fromkeys(" ".join(title.split()) for title in titles if title.strip()):
        short = title if len(title) <= 70 else title[:69].rstrip() + "…"
        if short.lower().startswith("how to "):
            asked.append(f"How do I {short[7:8].lower()}{short[8:].rstrip('?')}?")
        else:
            asked.append(short if short.endswith("?") else shapes[len(asked)].format(short))
        if len(asked) == 3:
            break
    return asked


class ChatPage:
    """One tab: its thread, its running answer and what is drawn."""

    def __init__(self, services: UiServices, caller: Caller, credential: str, client: Client, agents: Sequence[str]) -> None:
        self.services, self.caller, self.client, self.agents = services, caller, client, agents
        self._credential = credential
        self.agent = agents[0] if agents else ""
        self.thread_id: str | None = None
        self.running: asyncio.Task[None] | None = None
        self.side = SideBar(self)
        client.on_delete(self.stop)

    # --- the frame

    def build(self) -> None:
        with tag("div", "app"):
            tag("div", "veil", data_side_close=True)
            self.side.build()
            with tag("main", "main"):
                with tag("div", "top"):
                    button(
                        "icon-button",
                        "Show conversations",
                        glyph="menu",
                        data_side_open=True,
                        aria_expanded="false",
                        aria_controls="side",
                    )
                    self.title = tag("div", "title", text="New chat")
                with tag("div", id="scroller", tabindex="-1"):
                    self.messages = tag("div", id="messages")
                with tag("div", "foot"), tag("div", "foot-in"):
                    button("", "Go to the end", glyph="down", id="to-end")
                    self.composer = Composer("Ask about your documents", self.ask, self.stop)
                    self._build_note()
        tag("div", "hidden-text", id="live", role="status", aria_live="polite")

    def _build_note(self) -> None:
        with tag("div", "foot-note"):
            if len(self.agents) > 1:
                with tag("select", aria_label="Agent") as choice:
                    for name in self.agents:
                        tag("option", text=name, value=name)
                choice.on(
                    "change", lambda event: setattr(self, "agent", str(event.args)), js_handler="(e) => emit(e.target.value)"
                )
            else:
                tag("span", text="Answers cite your documents. Check what matters.")
            with tag("span", "keys"):
                tag("kbd", text="Enter")
                tag("span", text=" sends · ")
                tag("kbd", text="Shift+Enter")
                tag("span", text=" new line · ")
                tag("kbd", text="/")
                tag("span", text=" writes")

    # --- threads

    async def open(self, thread_id: str) -> None:
        """Show a stored conversation."""
        self.stop()
        try:
            turns = await self.services.threads.messages(thread_id, await self.owner())
        except CallError as error:
            self.notice(error)
            return
        if turns is None:
            await self.new_chat()
            ui.notify("This conversation does not exist any more.", position="top")
            return
        self.thread_id = thread_id
        self._go(f"/?thread={quote(thread_id, safe='')}")
        self._draw(turns)
        await self.side.refresh()

    def _draw(self, turns: Sequence[ThreadMessage], shown: int = SHOWN) -> None:
        self.messages.clear()
        with self.messages:
            if len(turns) > shown:
                with tag("div", "earlier"):
                    button(
                        "button quiet",
                        "Show earlier messages",
                        lambda: self._draw(turns, shown + SHOWN),
                        text="Show earlier messages",
                    )
            for message in turns[-shown:]:
                if message.role == "user":
                    self._question(message.text)
                    continue
                AnswerView(self.client, Turn.stored(message), self.rate, None).finish()
        self.client.run_javascript("smalti.pin()")

    async def new_chat(self) -> None:
        self.stop()
        self.thread_id = None
        self._go("/")
        self.messages.clear()
        with self.messages, tag("section", "hello"):
            tag("img", "mosaic", src="/ui/mosaic.svg", alt="")
            tag("h1", text="What would you like to know?")
            tag(
                "p",
                text="Ask in your own words. Every answer names the passages it rests on; a citation opens its document there.",
            )
            ideas = tag("div", "ideas")
        await self.side.refresh()
        try:
            titles = await self.services.suggestions(self.caller)
        except CallError:
            titles = ()
        with ideas:
            for i, text in enumerate(questions(titles)):
                tag("button", f"idea tile-{(i + 1) % 5}", text, type="button").on("click", partial(self.ask, text), [])

    # --- asking

    def ask(self, text: str) -> None:
        """Send a question and stream its answer into the page."""
        text = text.strip()
        if not text or self.running is not None:
            return
        first = self.thread_id is None
        if first:
            self.thread_id = uuid.uuid4().hex
            self.messages.clear()
        thread_id = self.thread_id or ""
        call = Call(
            endpoint=self.agent, task="agent", credential=self._credential, thread_id=thread_id, stream=True,
            payload={
                "model": self.agent, "stream": True, "conversation": {"id": thread_id},
                "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}],
            },
        )  # fmt: skip
        with self.messages:
            question = self._question(text)
            view = AnswerView(
                self.client, Turn(request_id=call.request_id), self.rate, lambda: self._again((question, view.box), text)
            )
        self.composer.busy(True)
        self.client.run_javascript("smalti.pin(); smalti.say('Working on the answer')")
        self.running = background_tasks.create(self._run(call, view, first), name=f"answer {call.request_id}")

    async def _run(self, call: Call, view: AnswerView, first: bool) -> None:
        turn = view.turn
        try:
            async with aclosing(self.services.dispatcher.stream(call)) as events:  # type: ignore[type-var]
                async for event in events:
                    if turn.apply(event):
                        view.changed()
            if turn.status == "running":
                turn.fail(CallError("The answer ended early. Try again."))
        except asyncio.CancelledError:
            turn.status = "stopped"
        except Exception as error:
            if not isinstance(error, CallError):
                logger.exception("answer %s failed in the chat page", call.request_id)
            turn.fail(error)
        self.running = None
        if self.client.is_deleted:
            return
        with self.client:
            if not view.box.is_deleted:
                view.finish()
            self.composer.busy(False)
            said = {"completed": "Answer ready", "stopped": "Stopped", "failed": "The answer failed"}[turn.status]
            self.client.run_javascript(f"smalti.say('{said}')")
            if first and self.thread_id == call.thread_id:
                self._go(f"/?thread={call.thread_id}")
            await self.side.refresh()

    def _again(self, failed: Sequence[Element], text: str) -> None:
        if self.running is None:
            for element in failed:
                element.delete()
            self.ask(text)

    def stop(self) -> None:
        """End the running answer: the call is cancelled and what it streamed so far stays."""
        if self.running is not None:
            self.running.cancel()

    async def rate(self, turn: Turn, helpful: bool, comment: str | None) -> bool:
        """Hand a thumb on; whether it was taken."""
        try:
            caller = await asyncio.to_thread(self.services.identity.authenticate, self._credential)
            await self.services.feedback(turn.request_id or "", helpful, comment, caller)
        except CallError as error:
            self.notice(error)
            return False
        return True

    # --- small things

    async def owner(self) -> str:
        """The caller's name, as long as the session's key is in force."""
        return (await asyncio.to_thread(self.services.identity.authenticate, self._credential)).name

    def _question(self, text: str) -> Element:
        with tag("div", "question", role="group", aria_label="You asked") as box:
            tag("p", text=text, dir="auto")
        return box

    def notice(self, error: CallError) -> None:
        if error.status == 401:
            self.client.run_javascript("location.href = '/login?next=' + encodeURIComponent(location.pathname + location.search)")
        else:
            ui.notify(error.message, type="negative", position="top")

    def _go(self, path: str) -> None:
        self.client.run_javascript(f"smalti.url({json.dumps(path)})")


def register() -> None:
    """Make the page known to NiceGUI, once in a process."""

    @ui.page("/", title="Smalti")
    async def chat(request: Request) -> None:
        services, caller, credential = request.scope[SCOPE_KEY]
        client = ui.context.client
        client.page_container.props["role"] = "presentation"
        ui.add_head_html(HEAD + '<script src="/ui/chat.js"></script>')
        try:
            agents = await services.agents(caller)
        except CallError:
            agents = ()
        page = ChatPage(services, caller, credential, client, agents)
        page.build()
        thread = request.query_params.get("thread")
        await (page.open(thread) if thread else page.new_chat())
