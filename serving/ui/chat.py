"""The chat at `/`: one `ChatPage` a browser tab. It asks through the gateway with the signed-in caller's key."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import Request
from nicegui import background_tasks, ui
from nicegui.client import Client
from nicegui.element import Element

from governance.call import Call, Caller, CallError
from serving.ui.answer import AnswerView
from serving.ui.attached import Attached
from serving.ui.parts import Composer, Latest, button, frameless, tag
from serving.ui.plain import HEAD
from serving.ui.running import Answer
from serving.ui.services import SCOPE_KEY, ThreadMessage, UiServices
from serving.ui.side import SideBar
from serving.ui.turn import Turn

HELLO = "Ask in your own words. Every answer names the passages it rests on; a citation opens its document there."
NO_AGENT = "There is no agent you may ask yet. An administrator grants CAN_QUERY on one, in the console under Access."
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


@dataclass
class _Said:
    """One message of the open conversation, and where it is drawn, if it is."""

    role: str
    text: str
    element: Element | None = None


def _message(role: str, text: str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}] if role == "user" else text
    return {"type": "message", "role": role, "content": content}


class ChatPage:
    """One tab: its thread, its running answer and what is drawn."""

    def __init__(self, services: UiServices, caller: Caller, credential: str, client: Client, agents: Sequence[str]) -> None:
        self.services, self.caller, self.client, self.agents = services, caller, client, agents
        self._credential = credential
        self.agent = agents[0] if agents else ""
        self.thread_id: str | None = None
        self.running: Answer | None = None
        self._unwatch: Callable[[], None] = lambda: None
        self._loads = Latest()
        self.said: list[_Said] = []
        self.side, self.attached = SideBar(self), Attached(self)
        self.choice: Element | None = None
        client.on_delete(self._gone)

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
                    self.attached.build()
                    attach = self.attached.add if self.services.files is not None else None
                    self.composer = Composer("Ask about your documents", self.ask, self.stop, attach)
                    self._build_note()
        tag("div", "hidden-text", id="live", role="status", aria_live="polite")

    def _build_note(self) -> None:
        with tag("div", "foot-note"):
            if len(self.agents) > 1:
                with tag("select", aria_label="Agent") as self.choice:
                    for name in self.agents:
                        tag("option", text=name, value=name)
                self.choice.on(
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

    def _answers(self, agent: str | None) -> None:
        """Have a conversation go on with the agent that answered it last, where it can still be asked."""
        if agent is not None and agent in self.agents and agent != self.agent and self.choice is not None:
            self.agent = agent
            self.client.run_javascript(f"document.querySelector('#c{self.choice.id}').value = {json.dumps(agent)}")

    # --- threads

    async def open(self, thread_id: str) -> None:
        """Show a stored conversation, and the answer that is coming on it."""
        self.leave()
        latest = self._loads.begin()
        try:
            owner = await self.owner()
            turns = await self.services.threads.messages(thread_id, owner)
        except CallError as error:
            self.notice(error)
            return
        if not latest():
            return
        coming = self.services.answers.find(thread_id, owner)
        if turns is None and coming is None:
            await self.new_chat()
            ui.notify("This conversation does not exist any more.", position="top")
            return
        self.thread_id = thread_id
        self._go(f"/?thread={quote(thread_id, safe='')}")
        self._draw([turn for turn in turns or () if coming is None or turn.request_id != coming.call.request_id])
        if coming is not None:
            with self.messages:
                if coming.question:
                    self._question(coming.question)
                self._follow(coming)
        await self.attached.show()
        await self.side.refresh()
        if latest():
            self._answers(coming.call.endpoint if coming is not None else self.side.agent_of(thread_id))

    def _draw(self, turns: Sequence[ThreadMessage], shown: int = SHOWN) -> None:
        self.messages.clear()
        self.said = [_Said(message.role, message.text) for message in turns]
        with self.messages:
            if len(turns) > shown:
                with tag("div", "earlier"):
                    button(
                        "button quiet",
                        "Show earlier messages",
                        lambda: self._draw(turns, shown + SHOWN),
                        text="Show earlier messages",
                    )
            for place, message in list(enumerate(turns))[-shown:]:
                if message.role == "user":
                    self._draw_question(place)
                    continue
                view = AnswerView(
                    self.client, Turn.stored(message), self.services.pace, self.rate, self._asker(place), self.decide
                )
                self.said[place].element = view.box
                view.finish()
        self.client.run_javascript("smalti.pin()")

    async def new_chat(self) -> None:
        self.leave()
        latest = self._loads.begin()
        self.thread_id = None
        self.said = []
        self._go("/")
        self.messages.clear()
        with self.messages, tag("section", "hello"):
            tag("img", "mosaic", src="/ui/mosaic.svg", alt="")
            tag("h1", text="What would you like to know?")
            tag("p", text=HELLO if self.agents else NO_AGENT)
            ideas = tag("div", "ideas")
        await self.side.refresh()
        try:
            titles = await self.services.suggestions(self.caller)
        except CallError:
            titles = ()
        if not latest() or ideas.is_deleted:
            return
        with ideas:
            for i, text in enumerate(questions(titles)):
                tag("button", f"idea tile-{(i + 1) % 5}", text, type="button").on("click", partial(self.ask, text), [])

    # --- asking

    def ask(self, text: str) -> None:
        """Send a question and stream its answer into the page."""
        text = text.strip()
        if not text or self.running is not None:
            return
        if not self.agent:
            ui.notify(NO_AGENT, position="top")
            return
        self._loads.begin()  # what was being opened is not drawn over it
        self.thread_id = self.thread_id or uuid.uuid4().hex
        if not self.said:
            self.messages.clear()
        self._send([_message("user", text)], text)

    def decide(self, items: list[dict[str, Any]]) -> None:
        """Send what a person decided; the run that asked goes on."""
        if self.running is None and self.thread_id is not None:
            self._send(items, "")

    def again(self, place: int, text: str) -> None:
        """Ask a question of this conversation again, or another in its place: what follows it goes on in a new conversation.

        The conversation as it was stays in the list.
        """
        text = text.strip()
        if not text or self.running is not None:
            return
        before, dropped = self.said[:place], self.said[place:]
        for each in dropped:
            if each.element is not None:
                each.element.delete()
        former, self.thread_id = self.thread_id, uuid.uuid4().hex
        self.said = before
        items = [*(_message(each.role, each.text) for each in before if each.text), _message("user", text)]
        if former is None or not self.attached.files:
            self._send(items, text)
            return
        goes_on = self._with_documents(former, self.thread_id, items, text)
        background_tasks.create(goes_on, name=f"documents of {former} for {self.thread_id}")

    async def _with_documents(self, former: str, thread_id: str, items: Sequence[Mapping[str, Any]], text: str) -> None:
        try:
            await self.attached.take_along(former, thread_id)
        except CallError as error:
            self.notice(error)
            return
        if self.thread_id == thread_id and self.running is None:
            self._send(items, text)

    def _asker(self, place: int) -> Callable[[], None] | None:
        """What asks again for the answer at a place of the conversation; None where no question stands before it."""
        if place == 0 or self.said[place - 1].role != "user":
            return None
        return lambda: self.again(place - 1, self.said[place - 1].text)

    def _send(self, items: Sequence[Mapping[str, Any]], question: str) -> None:
        thread_id = self.thread_id or ""
        call = Call(
            endpoint=self.agent, task="agent", credential=self._credential, thread_id=thread_id, stream=True,
            payload={"model": self.agent, "stream": True, "conversation": {"id": thread_id}, "input": list(items)},
        )  # fmt: skip
        with self.messages:
            if question:
                self._question(question)
            self._go(f"/?thread={thread_id}")
            self._follow(self.services.answers.begin(self.services.dispatcher, call, self.caller.principal, question))

    def _follow(self, answer: Answer) -> None:
        """Draw an answer as it comes."""
        self.said.append(_Said("assistant", ""))
        said, asker = self.said[-1], self._asker(len(self.said) - 1)
        view = AnswerView(self.client, answer.turn, self.services.pace, self.rate, asker, self.decide)
        said.element, self.running = view.box, answer

        def ended() -> None:
            said.text = answer.turn.text
            background_tasks.create(self._ended(answer, view), name=f"end of {answer.call.request_id}")

        self._unwatch = answer.watch(view.changed, ended)
        view.changed()
        self.composer.busy(True)
        self.client.run_javascript("smalti.pin(); smalti.say('Working on the answer')")

    async def _ended(self, answer: Answer, view: AnswerView) -> None:
        if self.running is answer:
            self.running = None
        if self.client.is_deleted or view.box.is_deleted:
            return
        with self.client:
            view.finish()
            self.composer.busy(False)
            said = {"completed": "Answer ready", "stopped": "Stopped", "failed": "The answer failed"}[answer.turn.status]
            self.client.run_javascript(f"smalti.say('{said}')")
            await self.side.refresh()

    def stop(self) -> None:
        """End the running answer: the call is cancelled and what it streamed so far stays."""
        if self.running is not None:
            self.running.stop()

    def leave(self) -> None:
        """Look away from the answer that is coming; it goes on, and is there when its conversation is opened."""
        self.attached.leave()
        if self.running is not None:
            self._unwatch()
            self.running = None
            self.composer.busy(False)

    async def rate(self, turn: Turn, helpful: bool, comment: str | None) -> bool:
        """Hand a thumb on; whether it was taken."""
        try:
            await self.services.feedback(turn.request_id or "", helpful, comment, await self.who())
        except CallError as error:
            self.notice(error)
            return False
        return True

    # --- small things

    async def who(self) -> Caller:
        """The caller, as long as the session's key is in force."""
        return await asyncio.to_thread(self.services.identity.authenticate, self._credential)

    async def owner(self) -> str:
        return (await self.who()).principal

    def _gone(self) -> None:
        self._unwatch()
        self.attached.leave()

    def _question(self, text: str) -> None:
        self.said.append(_Said("user", text))
        self._draw_question(len(self.said) - 1)

    def _draw_question(self, place: int) -> None:
        said = self.said[place]
        said.element = tag("div", "question", role="group", aria_label="You asked")
        self._redraw(place, said)

    def _edit(self, place: int, said: _Said) -> None:
        assert said.element is not None
        said.element.clear()
        with said.element, tag("form", "edit-form") as form:
            tag("textarea", "field", name="text", value=said.text, rows=3, aria_label="Edit your question", autofocus=True)
            with tag("div", "row-of"):
                button("button quiet small", "Cancel", lambda: self._redraw(place, said), text="Cancel")
                tag("button", "button small", "Send", type="submit")
        sends = "(e) => { e.preventDefault(); emit(e.target.elements.text.value); }"
        form.on("submit", lambda event: self.again(place, str(event.args)), js_handler=sends)
        self.client.run_javascript(f"document.querySelector('#c{form.id} textarea')?.focus()")

    def _redraw(self, place: int, said: _Said) -> None:
        assert said.element is not None
        said.element.clear()
        with said.element:
            tag("p", text=said.text, dir="auto")
            button("icon-button edit", "Edit and send again", lambda: self._edit(place, said), glyph="pencil")

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
        frameless(client)
        ui.add_head_html(HEAD + '<script src="/ui/chat.js"></script>')
        try:
            agents = await services.agents(caller)
        except CallError:
            agents = ()
        wanted = request.query_params.get("agent")
        agents = sorted(agents, key=lambda name: name != wanted)  # the one that a link names is first
        page = ChatPage(services, caller, credential, client, agents)
        page.build()
        thread = request.query_params.get("thread")
        await (page.open(thread) if thread else page.new_chat())
