"""What the pages are handed: everything they show or change comes through these, so they know no engine and no store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from governance.call import Call, Caller, Event
from serving.ui.api import Api
from serving.ui.pace import Pace
from serving.ui.running import Answers
from serving.ui.uploads import Uploads

if TYPE_CHECKING:
    from serving.ui.session import OneTimeCodes

Row = Mapping[str, Any]

SCOPE_KEY = "smalti.ui"
"""Where a page finds `(services, caller, credential)` in its request's scope."""


class Dispatcher(Protocol):
    """The gateway's door, the same one the API uses."""

    def stream(self, call: Call) -> AsyncIterator[Event]: ...

    async def invoke(self, call: Call) -> Mapping[str, Any]: ...


class Identity(Protocol):
    """Keys; all three may block and are called in a thread."""

    def authenticate(self, secret: str | None) -> Caller: ...

    @property
    def create_key(self) -> Callable[..., tuple[Any, str]]: ...

    def revoke(self, key_id: str, *, by: str | None = None, session: bool = False) -> Any: ...


@dataclass(frozen=True, slots=True)
class Thread:
    """A conversation as listed. `updated_at` is in Unix seconds."""

    id: str
    title: str
    updated_at: float
    agent: str | None = None


@dataclass(frozen=True, slots=True)
class ThreadMessage:
    """One stored message. `response` is the Response object of an answer, as far as it was kept: `status`, `custom_outputs`."""

    role: str
    text: str
    request_id: str | None = None
    response: Mapping[str, Any] | None = None


class Threads(Protocol):
    """Stored conversations; one of another owner is as good as none.

    `rename` and `delete` may raise `agents.runtime.ThreadNotFound` or `CallError`.
    """

    async def list(self, owner: str) -> Sequence[Thread]: ...

    async def messages(self, thread_id: str, owner: str) -> Sequence[ThreadMessage] | None:
        """The messages, oldest first; None when `owner` has no such thread."""
        ...

    async def rename(self, thread_id: str, owner: str, title: str) -> None: ...

    async def delete(self, thread_id: str, owner: str) -> None: ...


class File(Protocol):
    """A document of a conversation."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...


class ThreadFiles(Protocol):
    """Documents of conversations, each for its owner alone. Methods block, and raise `CallError`."""

    def list(self, owner: str, thread_id: str) -> Sequence[File]: ...

    def add(self, who: Caller, thread_id: str, name: str, content: bytes) -> Sequence[File]: ...

    def remove(self, owner: str, thread_id: str, name: str) -> Sequence[File]: ...

    def copy(self, who: Caller, thread_id: str, to: str) -> None: ...

    def forget(self, thread_id: str, owner: str) -> None: ...


class ConsoleData(Protocol):
    """What the console shows and changes. Each takes the signed-in caller, gives what that one may see, and raises `CallError`.

    Rows of calls are those of the inference table; no secret and, in lists, no payload is among them.
    """

    @property
    def mlflow(self) -> bool:
        """Whether MLflow's pages are there to be linked to."""
        ...

    async def usage(self, who: Caller, since: str) -> Sequence[Row]:
        """`governance.hourly.read` by hour and endpoint, from an hour on."""
        ...

    async def thumbs(self, who: Caller, since: str) -> Sequence[Row]:
        """Feedback from an hour on: `time` (Unix seconds), `helpful`, `endpoint`."""
        ...

    async def calls(self, who: Caller, query: Mapping[str, str], limit: int) -> Sequence[Row]:
        """The newest calls. `query`: `since`, `endpoint`, `caller`, `status` (whole, its first digit, or `none`), `text`."""
        ...

    async def call(self, who: Caller, request_id: str) -> Row | None:
        """One call with its payloads, verdicts and `inner` calls, and where its trace is (`traces`)."""
        ...

    async def endpoints(self, who: Caller) -> Sequence[Row]:
        """As the REST API gives them; `changeable` where the API made them."""
        ...

    async def indexes(self, who: Caller) -> Sequence[Row]:
        """`name`, `source`, `status`, `documents`, `chunks`, `encoder`, `synced_at`, `error`, `skipped` (`source`, `reason`)."""
        ...

    async def set_split(self, who: Caller, name: str, shares: Mapping[str, int]) -> None: ...

    async def set_limits(self, who: Caller, name: str, limits: Sequence[Row]) -> None: ...

    async def access(self, who: Caller) -> tuple[Sequence[Row], Sequence[Row], Sequence[Row], Sequence[Row]]:
        """Keys, grants, budgets (`governance.budgets.Budgets.standing`) and the audit log."""
        ...

    async def create_key(self, who: Caller, name: str, kind: str, groups: Sequence[str], label: str) -> str:
        """The new key's secret."""
        ...

    async def revoke_key(self, who: Caller, key_id: str) -> None: ...

    async def grant(self, who: Caller, principal: str, securable: str, level: str) -> None: ...

    async def revoke_grant(self, who: Caller, principal: str, securable: str) -> None: ...


@dataclass(frozen=True, slots=True)
class UiServices:
    """Everything the pages use.

    Parameters
    ----------
    agents: agents the caller may ask, the default one first.
    suggestions: titles of documents the caller may read; the empty chat asks about the first three.
    feedback: `(request_id, helpful, comment, caller)`. Called at once when a thumb is pressed, and again with the comment
        when one is added: the later call replaces the earlier one.
    api: the server's own HTTP API.
    files: documents of conversations; None where they take none.
    uploads: files that were handed to pages and not taken yet.
    answers: those that are coming; they outlive their pages.
    pace: turns at drawing them.
    session_ttl: seconds a browser stays signed in.
    """

    dispatcher: Dispatcher
    identity: Identity
    codes: OneTimeCodes
    threads: Threads
    agents: Callable[[Caller], Awaitable[Sequence[str]]]
    suggestions: Callable[[Caller], Awaitable[Sequence[str]]]
    feedback: Callable[[str, bool, str | None, Caller], Awaitable[None]]
    console: ConsoleData
    api: Api
    files: ThreadFiles | None = None
    uploads: Uploads = field(default_factory=Uploads)
    answers: Answers = field(default_factory=Answers)
    pace: Pace = field(default_factory=Pace)
    session_ttl: float = 7 * 24 * 3600.0
