"""Answers that go on without their page: a tab that is reloaded or left finds them again, as far as they have come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from governance.call import Call, CallError
from serving.ui.turn import Turn

if TYPE_CHECKING:
    from serving.ui.services import Dispatcher

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Answer:
    """One answer as it comes. `changed` and `ended` are called for each page that watches it.

    Parameters
    ----------
    owner: principal who asked.
    question: what was asked; "" where a decision was sent.
    """

    call: Call
    owner: str
    question: str
    turn: Turn
    watchers: list[tuple[Callable[[], None], Callable[[], None]]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def watch(self, changed: Callable[[], None], ended: Callable[[], None]) -> Callable[[], None]:
        """Be told from now on; gives what ends that."""
        watcher = (changed, ended)
        self.watchers.append(watcher)
        return lambda: self.watchers.remove(watcher) if watcher in self.watchers else None

    def stop(self) -> None:
        """Cancel the call; what was streamed so far stays."""
        if self.task is not None:
            self.task.cancel()


class Answers:
    """The answers that are being streamed to pages of this server, by conversation."""

    def __init__(self) -> None:
        self._of: dict[str, Answer] = {}

    def find(self, thread_id: str, owner: str) -> Answer | None:
        """The answer that is coming on the owner's conversation."""
        answer = self._of.get(thread_id)
        return answer if answer is not None and answer.owner == owner else None

    def begin(self, dispatcher: Dispatcher, call: Call, owner: str, question: str) -> Answer:
        """Ask, in a task of the server's own."""
        answer = Answer(call, owner, question, Turn(request_id=call.request_id))
        self._of[call.thread_id or ""] = answer
        answer.task = asyncio.create_task(self._run(dispatcher, answer), name=f"answer {call.request_id}")
        return answer

    async def _run(self, dispatcher: Dispatcher, answer: Answer) -> None:
        turn, call = answer.turn, answer.call
        try:
            async with aclosing(dispatcher.stream(call)) as events:  # type: ignore[type-var]
                async for event in events:
                    if turn.apply(event):
                        for changed, _ in list(answer.watchers):
                            changed()
            if turn.status == "running":
                turn.fail(CallError("The answer ended early. Try again."))
        except asyncio.CancelledError:
            turn.status = "stopped"
        except Exception as error:
            if not isinstance(error, CallError):
                logger.exception("answer %s failed in the chat page", call.request_id)
            turn.fail(error)
        if self._of.get(call.thread_id or "") is answer:
            del self._of[call.thread_id or ""]
        for _, ended in list(answer.watchers):
            ended()
