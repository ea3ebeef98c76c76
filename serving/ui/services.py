"""What the pages are handed: everything they show or change comes through these, so they know no engine and no store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from governance.call import Call, Caller, Event

if TYPE_CHECKING:
    from serving.ui.session import OneTimeCodes

Row = Mapping[str, Any]


class Dispatcher(Protocol):
    """The gateway's door, the same one the API uses."""

    def stream(self, call: Call) -> AsyncIterator[Event]: ...

    async def invoke(self, call: Call) -> Mapping[str, Any]: ...


class Identity(Protocol):
    """Keys; all three may block and are called in a thread."""

    def authenticate(self, secret: str | None) -> Caller: ...

    @property
    def create_key(self) -> Callable[..., tuple[Any, str]]: ...

    def revoke(self, key_id: str) -> Any: ...


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


async def _nothing(*_: Any) -> Sequence[Row]:
    return ()


@dataclass(frozen=True, slots=True)
class ConsoleData:
    """What the console shows. Each is called with the signed-in caller and answers with what that caller may see.

    Parameters
    ----------
    journal: `(caller, since, limit)`, newest first, without payloads: `request_id`, `time` (Unix seconds), `endpoint`, `task`,
        `caller`, `status` (HTTP; None where the answer never ended), `latency_ms`, `input_tokens`, `output_tokens`, `error`, and
        `parent_id` for calls an answer made itself. `serving.ui.journal.reader` makes it. Numbers come from these rows.
    endpoints: `name`, `task`, `state`, `description`, `entities`.
    indexes: `name`, `source`, `documents`, `chunks`, `synced_at` (Unix seconds), `skipped` (list of `{source, reason}`).
    keys: `id`, `name`, `kind`, `groups`, `admin`, `label`, `created_at`, `expires_at`, `revoked` – never a secret.
    """

    journal: Callable[[Caller, float, int], Awaitable[Sequence[Row]]] = _nothing
    endpoints: Callable[[Caller], Awaitable[Sequence[Row]]] = _nothing
    indexes: Callable[[Caller], Awaitable[Sequence[Row]]] = _nothing
    keys: Callable[[Caller], Awaitable[Sequence[Row]]] = _nothing


@dataclass(frozen=True, slots=True)
class UiServices:
    """Everything the pages use.

    Parameters
    ----------
    agents: agents the caller may ask, the default one first.
    suggestions: titles of documents the caller may read; the empty chat asks about the first three.
    feedback: `(request_id, helpful, comment, caller)`. Called at once when a thumb is pressed, and again with the comment
        when one is added: the later call replaces the earlier one.
    session_ttl: seconds a browser stays signed in.
    """

    dispatcher: Dispatcher
    identity: Identity
    codes: OneTimeCodes
    threads: Threads
    agents: Callable[[Caller], Awaitable[Sequence[str]]]
    suggestions: Callable[[Caller], Awaitable[Sequence[str]]]
    feedback: Callable[[str, bool, str | None, Caller], Awaitable[None]]
    console: ConsoleData = field(default_factory=ConsoleData)
    session_ttl: float = 7 * 24 * 3600.0
