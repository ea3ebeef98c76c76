"""The one way to an endpoint: who asks, may they, how much is left, and a record of it that is never missing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

import orjson

from governance.call import (
    STEP,
    TERMINAL,
    Call,
    Caller,
    CallError,
    CallRecord,
    Engine,
    Event,
    Observer,
    current_call,
    not_found,
    unauthenticated,
    unavailable,
)
from governance.frames import payload
from governance.grants import Grants
from governance.identity import NO_KEY, Identity
from governance.journal import Journal, JournalError
from governance.limits import Limits, Reservation
from governance.policies import AiGatewayConfig
from governance.record import body_of, failed_status, lean, request_of, short, usage_of

logger = logging.getLogger("smalti.gateway")

MAX_PAYLOAD = 16 << 20
"""Bytes of a request or an answer that the journal keeps whole."""
MAX_REFUSED_PAYLOAD = 4_096
"""The same for a call that was refused: refusals are cheap to cause."""
CLIENT_GONE = 499
"""Status of a call whose client went away before the end."""


class Gateway:
    """Every call of every endpoint and index, from outside and from within an agent, goes through `call`.

    Parameters
    ----------
    identity, grants, limits, journal: what decides and what records.
    observers: told of each finished call, refused ones too; they must return at once.
    """

    def __init__(
        self, identity: Identity, grants: Grants, limits: Limits, journal: Journal, observers: Sequence[Observer] = ()
    ) -> None:
        self.identity, self.grants, self.limits, self.journal = identity, grants, limits, journal
        self.observers: list[Observer] = list(observers)
        self._roots: dict[str, tuple[str, str | None]] = {}  # calls in flight: outermost request id, and the secret it came with

    @property
    def in_flight(self) -> int:
        """Calls being answered now."""
        return len(self._roots)

    async def call(self, call: Call, engine: Engine | None) -> AsyncGenerator[Event, None]:
        """Answer a call: its engine's events, the last of which is the only terminal one.

        Parameters
        ----------
        call: with `credential`, or for an inner call with `caller`.
        engine: what answers it; None when there is no such endpoint.

        Raises
        ------
        CallError: 401, 403, 404 and 429 for a refused call; 503 when it cannot be recorded; and what the engine failed
            with before its first event. Later failures end a streamed answer with `response.failed`, and raise otherwise.

        Close the generator (or let it be collected) when the client is gone: that is recorded as 499 and ends the engine.
        """
        if not self.identity.changes.inline:
            await asyncio.to_thread(self.identity.changes.versions)
        flight = self._admit(call, engine)
        call = flight.call
        stream: AsyncIterator[Event] | None = None
        last: Event | None = None
        try:
            try:
                assert engine is not None
                stream = engine(call)
                while True:
                    # an async generator's body runs in the context of whoever asks for its next item
                    token = current_call.set(call)
                    try:
                        event = await stream.__anext__()
                    except StopAsyncIteration:
                        raise CallError(f"{call.endpoint} ended without an answer; ask again", status=500) from None
                    finally:
                        try:  # noqa: SIM105 - runs for every chunk, where contextlib.suppress costs twice as much
                            current_call.reset(token)
                        except ValueError:  # closed from another context by the garbage collector
                            pass
                    kind = event.type
                    if kind in TERMINAL:
                        flight.answered(event)
                        last = event
                        break
                    if kind == STEP:
                        flight.steps.append(event.data)
                    else:
                        if flight.first_ns is None:
                            flight.first_ns = time.time_ns()
                        if kind == "response.output_text.delta":
                            flight.text.append(event.data.get("delta", ""))
                        elif kind == "response.created":
                            flight.created = event.data.get("response")
                    yield event
            except (GeneratorExit, asyncio.CancelledError):
                flight.abandoned()
                raise
            except Exception as error:
                failure = self._failure(call, error)
                with suppress(CallError):  # a failure that cannot be recorded is told all the same
                    flight.failed(failure)
                if flight.first_ns is None or not call.stream or call.task not in ("agent", "chat"):
                    raise failure from None
                last = Event("response.failed", {"response": flight.failed_response(failure)})
            except BaseException:
                with suppress(CallError):
                    flight.failed(CallError("the server is stopping; ask again", status=503))
                raise
            yield last
        finally:
            await _close(stream, call)

    async def invoke(self, call: Call, engine: Engine | None) -> Mapping[str, Any]:
        """Run `call` to its end and give the `result`, or the `response` of an agent or chat. Raises `CallError` if it failed."""
        last: Event | None = None
        async with aclosing(self.call(call, engine)) as events:
            async for event in events:
                last = event
        assert last is not None
        body = body_of(last)
        if last.type == "response.failed":
            error = body.get("error") or {}
            raise CallError(error.get("message") or f"{call.endpoint} failed", status=failed_status(body))
        return body

    # --- within ---

    def _admit(self, call: Call, engine: Engine | None) -> _Flight:
        """Everything that is decided before the engine is called, INTENT included."""
        start, secret = time.time_ns(), call.credential
        root, outer_secret = self._roots.get(call.parent_id or "", (call.request_id, None))
        secret = secret or outer_secret
        reservation: Reservation | None = None
        try:
            if call.credential is not None:
                caller = self.identity.authenticate(call.credential)
                call = _of(call, caller)
            elif call.caller is not None:
                caller = call.caller
            else:
                raise unauthenticated(NO_KEY)
            if engine is None:
                raise not_found(
                    f"there is no endpoint or index {call.endpoint!r} here; ask an admin, or list them with `smalti endpoints`"
                )
            self.grants.check(caller, securable(call))
            policy = self.limits.policies.get(call.endpoint)
            request = payload(request_of(call), MAX_PAYLOAD)
            output = call.payload.get("max_output_tokens") if call.task in ("agent", "chat") else 0
            output = output if isinstance(output, int) and not isinstance(output, bool) and output >= 0 else None
            reservation = self.limits.reserve(caller, call.endpoint, len(request), output)
            flight = _Flight(self, call, start, root, secret, policy, reservation)
            flight.intent(request)
        except JournalError as error:
            if reservation is not None:
                reservation.release()
            logger.error("call %s of %s refused: %s", call.request_id, call.endpoint, error)
            raise unavailable(
                "the call cannot be recorded, so it is not made; tell whoever runs this server, and try again"
            ) from None
        except CallError as refusal:
            _Flight(self, _of(call, call.caller), start, root, secret, None, None).refused(refusal)
            raise
        self._roots[call.request_id] = (root, secret)
        return flight

    @staticmethod
    def _failure(call: Call, error: Exception) -> CallError:
        if isinstance(error, CallError):
            return error
        logger.error("call %s of %s failed", call.request_id, call.endpoint, exc_info=error)
        return CallError(
            f"{call.endpoint} failed inside the server; ask again, or quote request {call.request_id} to whoever runs it"
        )


class _Flight:
    """One call between INTENT and COMPLETION."""

    __slots__ = (
        "call", "created", "done", "first_ns", "gateway", "policy", "reservation", "root", "secret", "start_ns", "steps", "text"
    )  # fmt: skip

    def __init__(
        self,
        gateway: Gateway,
        call: Call,
        start_ns: int,
        root: str,
        secret: str | None,
        policy: AiGatewayConfig | None,
        reservation: Reservation | None,
    ) -> None:
        self.gateway, self.call, self.start_ns, self.root, self.secret = gateway, call, start_ns, root, secret
        self.policy, self.reservation = policy, reservation
        self.first_ns: int | None = None
        self.steps: list[Mapping[str, Any]] = []
        self.text: list[str] = []
        self.created: Mapping[str, Any] | None = None
        self.done = False

    def intent(self, request: bytes) -> None:
        logged = self.policy is None or self.policy.payload_logged
        self._append({**self._columns(), "request": orjson.Fragment(request)} if logged else self._columns())

    def answered(self, event: Event) -> None:
        """Record the engine's terminal event. Raises `CallError` 503 when that cannot be done."""
        body = body_of(event)
        status = failed_status(body) if event.type == "response.failed" else 200
        error = (body.get("error") or {}).get("message") if event.type == "response.failed" else None
        if self.first_ns is None:
            self.first_ns = time.time_ns()
        self._finish(status, body, usage_of(body), error, event.data)

    def failed(self, error: CallError) -> None:
        self._finish(error.status, self._partial("failed"), {}, error.message)

    def abandoned(self) -> None:
        with suppress(CallError):
            self._finish(CLIENT_GONE, self._partial("cancelled"), {}, "the client went away before the answer was complete")

    def refused(self, refusal: CallError) -> None:
        """Record a call that was not made: INTENT and COMPLETION in one frame, and of an unknown caller no payload at all."""
        request = payload(request_of(self.call), MAX_REFUSED_PAYLOAD) if self.call.caller is not None else None
        with suppress(CallError):
            self._finish(refusal.status, None, {}, refusal.message, request=request)

    def failed_response(self, error: CallError) -> dict[str, Any]:
        """The Response object of a `response.failed` event."""
        code = "rate_limit_exceeded" if error.status == 429 else "invalid_prompt" if error.status < 500 else "server_error"
        base = {
            "id": f"resp_{self.call.request_id}",
            "object": "response",
            "created_at": self.start_ns // 1_000_000_000,
            "model": self.call.endpoint,
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "metadata": {},
        }
        return {**base, **(self.created or {}), "status": "failed", "error": {"code": code, "message": error.message}}

    def _partial(self, status: str) -> dict[str, Any] | None:
        """What had been sent when it ended early, as a Response."""
        if not self.text:
            return None
        content = [{"type": "output_text", "text": "".join(self.text), "annotations": []}]
        message = {"type": "message", "role": "assistant", "status": "incomplete", "content": content}
        return {"id": f"resp_{self.call.request_id}", "object": "response", "status": status, "output": [message]}

    def _finish(
        self,
        status: int,
        response: Mapping[str, Any] | None,
        usage: Mapping[str, int],
        error: str | None,
        event: Mapping[str, Any] | None = None,
        request: bytes | None = None,
    ) -> None:
        if self.done:
            return
        self.done = True
        end = time.time_ns()
        call, gateway = self.call, self.gateway
        gateway._roots.pop(call.request_id, None)
        if self.reservation is not None:
            self.reservation.settle(self._tokens(usage, status))
        columns: dict[str, Any] = {
            **(self._columns() if self.reservation is None else self._key()),  # a refused call has no INTENT before this
            "status_code": status,
            "execution_duration_ms": (end - self.start_ns) / 1e6,
            "time_to_first_byte_ms": (self.first_ns - self.start_ns) / 1e6 if self.first_ns is not None else None,
            "error": error,
        }
        if self.policy is None or self.policy.usage_tracked:
            columns.update(usage)
        if response is not None:
            columns["served_entity_id"] = short((event or {}).get("served_entity_id") or response.get("served_entity_id"))
            columns["served_entity_name"] = short((event or {}).get("served_entity_name") or response.get("model"))
            if self.policy is None or self.policy.payload_logged:
                columns["response"] = orjson.Fragment(payload(lean(response, call.task), MAX_PAYLOAD))
        if request is not None:
            columns["request"] = orjson.Fragment(request)
        unrecorded: JournalError | None = None
        try:
            self._append(columns)
        except JournalError as trouble:
            logger.error("call %s of %s could not be recorded: %s", call.request_id, call.endpoint, trouble)
            unrecorded, status, error = trouble, 503, str(trouble)
        record = CallRecord(call, status, self.start_ns, end, self.first_ns, response, error, usage, tuple(self.steps))
        for observer in gateway.observers:
            try:
                observer(record)
            except Exception:
                logger.exception("an observer of call %s failed", call.request_id)
        if unrecorded is not None:
            raise unavailable("the answer cannot be recorded, so it is not given; tell whoever runs this server") from None

    def _key(self) -> dict[str, Any]:
        call = self.call
        return {
            "databricks_request_id": call.request_id,
            "request_time": self.start_ns,
            "endpoint_name": call.endpoint[:256],
            "task": call.task,
            "requester": call.caller.name if call.caller else None,
        }

    def _columns(self) -> dict[str, Any]:
        call = self.call
        known = call.caller is not None
        return {
            **self._key(),
            "client_request_id": short(call.client_request_id),
            "requester_kind": call.caller.kind if call.caller else None,
            "usage_context": call.usage_context or None if known else None,
            "parent_request_id": short(call.parent_id),
            "thread_id": short(call.thread_id) if known else None,
            "trace_id": f"tr-{self.root}",
        }

    def _append(self, columns: Mapping[str, Any]) -> None:
        self.gateway.journal.append(columns, secrets=(self.secret,) if self.secret else ())

    def _tokens(self, usage: Mapping[str, int], status: int) -> int:
        """Tokens to charge: the real ones, or what can be told from the texts."""
        if usage:
            return usage.get("total_tokens") or usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
        if status != 200 and self.first_ns is None:
            return 0  # nothing was answered
        return (self.reservation.input_estimate if self.reservation else 0) + sum(map(len, self.text)) // 4


def securable(call: Call) -> str:
    """What a caller needs CAN_QUERY on to make this call."""
    return f"index:{call.endpoint}" if call.task in ("search", "document") else f"endpoint:{call.endpoint}"


def _of(call: Call, caller: Caller | None) -> Call:
    """The call without its credential, made by this caller; what `dataclasses.replace` does, in a third of its time."""
    return Call(
        call.endpoint,
        call.task,
        call.payload,
        None,
        caller,
        call.request_id,
        call.client_request_id,
        call.parent_id,
        call.thread_id,
        call.stream,
        call.usage_context,
    )


def _reset(token: Any) -> None:
    with suppress(ValueError):  # closed from another context by the garbage collector: that context never had it
        current_call.reset(token)


async def _close(stream: AsyncIterator[Event] | None, call: Call) -> None:
    """End the engine's generator, so that what it holds is let go now."""
    close = getattr(stream, "aclose", None)
    if close is None:
        return
    token = current_call.set(call)
    try:
        await close()
    except Exception:
        logger.warning("the engine of %s did not end cleanly (call %s)", call.endpoint, call.request_id, exc_info=True)
    finally:
        _reset(token)
