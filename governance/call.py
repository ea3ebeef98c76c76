"""The two types that cross rooms: what is asked (`Call`) and what comes back (`Event`).

A chat or agent call carries a request in the shape of the OpenAI Responses API
(https://platform.openai.com/docs/api-reference/responses/create), whatever protocol it came in by. Its answer is
that API's event sequence. A unary call (embeddings, search, a document) is answered by one `result` event; before it come
`predictions.delta` events where a model's predictions are streamed.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, dataclass_transform

Task = Literal["agent", "chat", "embeddings", "search", "document", "classify", "predict", "http"]
"""What a call asks for; `agent` and `chat` stream Responses events, `predict` may stream chunks before its one `result`, the
others give one `result`."""

TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed", "result"})
"""Event types that end a call; every answered call has exactly one, as its last event."""

CHUNK = "predictions.delta"
"""Type of an event that carries a chunk of a model's streamed predictions: any JSON, as `delta`; the `result` has them all."""

STEP = "smalti.step"
"""Type of an event that tells what an agent's node did; traced and drawn, never sent to API clients."""


_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def _value(cls: type[_T]) -> type[_T]:
    """A dataclass that type checkers hold to be frozen. That Python looks after it too would make each call and each event take
    five times as long to make."""
    return dataclass(slots=True)(cls)


def new_id() -> str:
    """An id of a call: 32 hex digits, the first twelve of them the millisecond, so that rows come in the order of their index
    (as UUID version 7 does, RFC 9562). Unique, not secret."""
    return f"{time.time_ns() // 1_000_000:012x}{random.getrandbits(80):020x}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a user or a service principal, with its groups.

    `admin` may do everything. `key_id` names the key that was presented (never its secret); None within the process.
    """

    name: str
    kind: Literal["user", "service_principal"] = "user"
    groups: frozenset[str] = frozenset()
    admin: bool = False
    key_id: str | None = None
    scopes: frozenset[str] | None = None
    """Securables that the presented key is good for; None for all its owner's. Inner calls are not narrowed by it."""

    @property
    def principal(self) -> str:
        """`KIND:NAME`: whose a thing is. A user and a service principal may bear the same name."""
        return f"{self.kind}:{self.name}"


@_value
class Call:
    """One call of one endpoint or index.

    Parameters
    ----------
    endpoint: name of the endpoint (`assistant`) or full name of the index (`main.default.docs`).
    task: what is asked for.
    payload: for `agent` and `chat` a Responses API request; for `embeddings` `{"input": [str, …]}`;
        for `search` `{"query": str, "k": int, …}`; for `document` `{"id": str}`; for `predict` rows in one of MLflow's formats;
        for `http`, whose endpoint is `connection:NAME`, `{"method", "path", "headers", "params", "json"}`.
    credential: the bearer token as presented; the gateway turns it into `caller` and drops it.
    caller: set by the gateway, or by the caller of an inner call, which acts on behalf of the same caller.
    request_id: `x-request-id` of the answer and `databricks_request_id` of its journal row.
    parent_id: request id of the call this one was made for.
    thread_id: conversation the call belongs to.
    usage_context: the client's own tags, kept in the journal row.
    served_entity: the one entity of the endpoint that is to answer, whatever the traffic; None for the traffic's choice.
    """

    endpoint: str
    task: Task
    payload: Mapping[str, Any]
    credential: str | None = field(default=None, repr=False)
    caller: Caller | None = None
    request_id: str = field(default_factory=new_id)
    client_request_id: str | None = None
    parent_id: str | None = None
    thread_id: str | None = None
    stream: bool = False
    usage_context: Mapping[str, str] = field(default_factory=dict)
    served_entity: str | None = None


@_value
class Event:
    """One event of an answer: a Responses API event, a `smalti.step`, or a unary `result`.

    `data` is the event's body without `type` and `sequence_number`; encoders add those.
    """

    type: str
    data: Mapping[str, Any]

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL


Engine = Callable[[Call], AsyncIterator[Event]]
"""What the gateway is handed to run a call: an async generator function. It raises `CallError` on failure."""


class Single:
    """An answer of one event, as an engine may give it instead of a generator, whose machinery costs more than many a model.

    Parameters
    ----------
    event: awaited when the event is asked for. It raises `CallError` on failure.
    """

    __slots__ = ("_event",)

    def __init__(self, event: Coroutine[Any, Any, Event]) -> None:
        self._event: Coroutine[Any, Any, Event] | None = event

    def __aiter__(self) -> Single:
        return self

    async def __anext__(self) -> Event:
        event, self._event = self._event, None
        if event is None:
            raise StopAsyncIteration
        return await event

    async def aclose(self) -> None:
        """Let go of an answer that nobody asked for."""
        if self._event is not None:
            self._event.close()
            self._event = None


Observer = Callable[["CallRecord"], None]
"""Told of each finished call; must return at once and never raise."""


@_value
class CallRecord:
    """A finished call: what the journal's completion holds and what a trace is made from. Times are Unix nanoseconds."""

    call: Call
    status_code: int
    start_ns: int
    end_ns: int
    first_event_ns: int | None = None
    response: Mapping[str, Any] | None = None
    """The terminal event's `response` or `result`."""
    error: str | None = None
    usage: Mapping[str, int] = field(default_factory=dict)
    """`input_tokens`, `output_tokens`, `total_tokens` where known."""
    steps: tuple[Mapping[str, Any], ...] = ()
    """Bodies of the `smalti.step` events: name, kind, start_ns, end_ns, inputs, outputs, attributes."""
    cost: float | None = None
    """US dollars, where the model has a price."""
    verdicts: tuple[Mapping[str, str], ...] = ()
    """What guardrails did: guardrail, where, action, reason."""
    served_entity_name: str | None = None
    """Which of the endpoint's served entities answered, or failed."""


MODEL_FAILED = "The model failed"
"""How the message of an error begins that was raised within a model: answered with 400 as MLflow does, it is the model's."""


class CallError(Exception):
    """A call that cannot be answered. Each protocol encodes it in its own error shape.

    Parameters
    ----------
    message: one line: what is wrong, and what to do.
    status: HTTP status.
    code: Databricks `error_code`, e.g. `BAD_REQUEST` (https://docs.databricks.com/api/workspace/introduction).
    retry_after: seconds, where waiting helps.
    param: the request field at fault.

    `served_entity_name` is the entity that failed, set by whoever chose it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 500,
        code: str = "INTERNAL_ERROR",
        retry_after: float | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.retry_after, self.param = message, status, code, retry_after, param
        self.served_entity_name: str | None = None


def bad_request(message: str, param: str | None = None) -> CallError:
    return CallError(message, status=400, code="BAD_REQUEST", param=param)


def unauthenticated(message: str) -> CallError:
    return CallError(message, status=401, code="UNAUTHENTICATED")


def forbidden(message: str) -> CallError:
    return CallError(message, status=403, code="PERMISSION_DENIED")


def not_found(message: str) -> CallError:
    return CallError(message, status=404, code="RESOURCE_DOES_NOT_EXIST")


def limit_exceeded(message: str, retry_after: float) -> CallError:
    return CallError(message, status=429, code="REQUEST_LIMIT_EXCEEDED", retry_after=retry_after)


DEPENDENCY_FAILED = 424
"""Status of a call that a model elsewhere refuses for what is set here: a wrong key, a wrong name, no credit. No client tries it
again, as each does with a 5xx; the code is one that `databricks-sdk` knows, which takes all others for a passing failure."""


def misconfigured(message: str) -> CallError:
    return CallError(message, status=DEPENDENCY_FAILED, code="INVALID_STATE")


def is_failure(status: int) -> bool:
    """Whether a call ended so for a fault on this side, or behind it, and not for what was asked."""
    return status >= 500 or status == DEPENDENCY_FAILED


def unavailable(message: str, *, status: int = 503, retry_after: float | None = None) -> CallError:
    return CallError(message, status=status, code="TEMPORARILY_UNAVAILABLE", retry_after=retry_after)


current_call: ContextVar[Call | None] = ContextVar("smalti_current_call", default=None)
"""The call being answered by the engine that runs in this context; inner calls take caller, thread and parent from it."""

Invoke = Callable[[str, Task, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""`invoke(endpoint, task, payload)`: an inner unary call through the gateway on behalf of `current_call`'s caller."""
