"""The one way to an endpoint: who asks, may they, how much is left, and a record of it that is never missing."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from contextvars import Token
from dataclasses import replace
from typing import Any

from governance import choices
from governance.admission import Admission
from governance.budgets import LeaseNeeded
from governance.call import (
    STEP,
    TERMINAL,
    Call,
    Caller,
    CallError,
    Engine,
    Event,
    Observer,
    bad_request,
    current_call,
    new_id,
    not_found,
    unauthenticated,
    unavailable,
)
from governance.flight import CLIENT_GONE, MAX_PAYLOAD, MAX_REFUSED_PAYLOAD, Began, Flight
from governance.frames import payload
from governance.grants import Grants
from governance.guardrails.guard import Guard, Refused, compiled
from governance.guardrails.judges import Toolkit, judging
from governance.identity import NO_KEY, Identity
from governance.journal import Journal, JournalError
from governance.limits import DEFAULT_OUTPUT_TOKENS, Limits, Reservation
from governance.policies import AiGatewayConfig
from governance.prices import Prices
from governance.record import body_of, failed_status, request_of

__all__ = ["CLIENT_GONE", "MAX_PAYLOAD", "MAX_REFUSED_PAYLOAD", "Gateway", "securable"]

logger = logging.getLogger("smalti.gateway")

MAX_MIRRORS = 64
"""Copies for shadows that run at a time; past it they are left out, so that they never delay an answer."""
MIRROR_SECONDS = 300.0
MAX_GUARDS = 1_024
"""Endpoints whose guardrails are kept compiled."""


class Gateway:
    """Every call of every endpoint and index, from outside and from within an agent, goes through `call`.

    Parameters
    ----------
    identity, grants, limits, journal: what decides and what records.
    observers: told of each finished call, refused ones too; they must return at once.
    prices: what tokens cost; without them no call has a cost.
    toolkit: what guardrails need that look at the meaning.
    admission: how many calls from outside may be answered at a time, and how many may wait. Without it there is no bound.
    """

    def __init__(
        self,
        identity: Identity,
        grants: Grants,
        limits: Limits,
        journal: Journal,
        observers: Sequence[Observer] = (),
        *,
        prices: Prices | None = None,
        toolkit: Toolkit | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.identity, self.grants, self.limits, self.journal = identity, grants, limits, journal
        self.observers: list[Observer] = list(observers)
        self.prices = prices or Prices()
        self.toolkit = toolkit or Toolkit()
        self.admission = admission or Admission()
        self.warnings: dict[str, str] = {}
        """Soft budgets that calls found used up, by request id; whoever answers takes it out and tells it in a header."""
        self._flights: dict[str, Flight] = {}  # calls in flight by request id
        self._guards: dict[str, tuple[AiGatewayConfig, Guard]] = {}
        self._mirrors: set[asyncio.Task[None]] = set()
        self.mirrors_dropped = 0
        """Copies that were not made because enough of them were running."""

    @property
    def in_flight(self) -> int:
        """Calls being answered now."""
        return len(self._flights)

    async def call(self, call: Call, engine: Engine | None, *, mirrors: Flight | None = None) -> AsyncGenerator[Event, None]:
        """Answer a call: its engine's events, the last of which is the only terminal one.

        Parameters
        ----------
        call: with `credential`, or for an inner call with `caller`.
        engine: what answers it; None when there is no such endpoint.
        mirrors: the call that this one is a copy of, for a shadow; a copy takes nothing from the caller's limits.

        Raises
        ------
        CallError: 401, 403, 404 and 429 for a refused call; 503 when it cannot be recorded; and what the engine failed
            with before its first event. Later failures end a streamed answer with `response.failed`, and raise otherwise.

        Close the generator (or let it be collected) when the client is gone: that is recorded as 499 and ends the engine.
        """
        if not self.identity.changes.inline:
            await asyncio.to_thread(self.identity.changes.versions)
        flight = await self._admit(call, engine, mirrors)
        call = flight.call
        if engine is not None and flight.guard is not None:
            engine = flight.guard.around(engine, flight.verdicts)
        if engine is not None and "n" in call.payload and choices.asked(call) > 1:
            engine = choices.noted(engine, flight.choices)
        stream: AsyncIterator[Event] | None = None
        last: Event | None = None
        try:
            try:
                assert engine is not None
                if self.journal.fsync:
                    await self._durable()
                stream = engine(call)
                while True:
                    # an async generator's body runs in the context of whoever asks for its next item
                    token = current_call.set(call)
                    try:
                        event = await stream.__anext__()
                    except StopAsyncIteration:
                        raise CallError(f"{call.endpoint} ended without an answer; ask again", status=500) from None
                    finally:
                        _reset(token)
                    kind = event.type
                    if kind in TERMINAL:
                        flight.answered(event)
                        last = event
                        if self.journal.fsync:
                            await self._durable()
                        break
                    if kind == STEP:
                        flight.steps.append(event.data)
                    else:
                        if flight.first_ns is None:
                            flight.first_ns = flight.began.now()
                        if kind == "response.output_text.delta":
                            flight.text.append(event.data.get("delta", ""))
                        elif kind.endswith(".delta"):
                            flight.aside += len(str(event.data.get("delta") or ""))
                        elif kind == "response.created":
                            flight.created = event.data.get("response")
                            flight.served = event.data.get("served_entity_name")
                    yield event
            except (GeneratorExit, asyncio.CancelledError):
                flight.abandoned()
                raise
            except Exception as error:
                failure = self._failure(call, error)
                with suppress(CallError):  # a failure that cannot be recorded is told all the same
                    flight.failed(failure)
                    if self.journal.fsync:
                        await self._durable()
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
        events = self.call(call, engine)
        try:
            async for event in events:
                last = event
        finally:
            await events.aclose()
        assert last is not None
        body = body_of(last)
        if last.type == "response.failed":
            error = body.get("error") or {}
            raise CallError(error.get("message") or f"{call.endpoint} failed", status=failed_status(body))
        return body

    def expose(self, request_id: str, exposure: Mapping[str, str]) -> None:
        """Note in the row of a call that is being answered what of an experiment it was shown (`governance.flight.EXPOSURE`)."""
        if (flight := self._flights.get(request_id)) is not None:
            flight.exposure = exposure

    def mirror(self, call: Call, engine: Engine) -> None:
        """Send a copy of a call that is being answered to another engine: governed and journalled as the call's child, its answer
        given to nobody. Returns at once; where many copies run already it is left out."""
        if len(self._mirrors) >= MAX_MIRRORS:
            self.mirrors_dropped += 1
            return
        copy = replace(
            call,
            request_id=new_id(),
            parent_id=call.request_id,
            client_request_id=None,
            thread_id=None,
            stream=False,
            usage_context={**call.usage_context, "smalti_traffic": "shadow"},
        )
        of = self._flights.get(call.request_id)
        if of is None:
            return
        task = asyncio.create_task(self._mirrored(copy, engine, of), context=contextvars.Context())
        self._mirrors.add(task)
        task.add_done_callback(self._mirrors.discard)

    async def _mirrored(self, call: Call, engine: Engine, of: Flight) -> None:
        try:
            async with asyncio.timeout(MIRROR_SECONDS), aclosing(self.call(call, engine, mirrors=of)) as events:
                async for _ in events:
                    pass
        except (CallError, TimeoutError):
            pass  # the row says so
        except Exception:
            logger.exception("the copy of call %s failed", call.parent_id)

    async def close(self) -> None:
        """End the copies that run."""
        for task in self._mirrors:
            task.cancel()
        if self._mirrors:
            await asyncio.wait(self._mirrors)

    # --- within ---

    async def _admit(self, call: Call, engine: Engine | None, mirrors: Flight | None = None) -> Flight:
        """Everything that is decided before the engine is called, INTENT included."""
        began, secret = Began(), call.credential
        outer = mirrors or self._flights.get(call.parent_id or "")
        root, outer_secret = (outer.root, outer.secret) if outer else (call.request_id, None)
        secret = secret or outer_secret
        reservation: Reservation | None = None
        verdicts: list[dict[str, str]] = []
        admitted = False
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
            if caller.scopes is not None:  # what the call needs inside is its owner's to use
                caller = replace(caller, scopes=None)
                call = _of(call, caller)
            if outer is None and not judging.get():
                await self.admission.enter()
                admitted = True
            policy = self.limits.policies.get(call.endpoint)
            guard = self.guard(call.endpoint, policy) if policy is not None and policy.guarded else None
            request = payload(request_of(call), MAX_PAYLOAD)
            if guard is not None and (shown := await guard.admit(call, verdicts, len(request))) is not call:
                call, request = shown, payload(request_of(shown), MAX_PAYLOAD)
            output = call.payload.get("max_output_tokens") if call.task in ("agent", "chat") else 0
            output = output if isinstance(output, int) and not isinstance(output, bool) and output >= 0 else None
            if "n" in call.payload and (count := choices.asked(call)) > 1:
                output = count * (DEFAULT_OUTPUT_TOKENS if output is None else output)
            if mirrors is not None:
                reservation = Reservation(self.limits, [], 0, 0)
            while reservation is None:
                try:
                    reservation = self.limits.reserve(caller, call.endpoint, len(request), output, policy=policy)
                except LeaseNeeded as needed:
                    await asyncio.to_thread(needed.fetch)
            if reservation.warnings:
                self.warnings[call.request_id] = "; ".join(reservation.warnings)
                if len(self.warnings) > 1_000:
                    self.warnings.pop(next(iter(self.warnings)))
            flight = Flight(self, call, began, root, secret, policy, reservation, verdicts, guard, mirrored=mirrors is not None)
            flight.intent(request)
            flight.admitted = admitted
        except BaseException as error:
            if admitted:
                self.admission.leave()
            self._refused(error, call, began, root, secret, reservation, verdicts)
            if self.journal.fsync and isinstance(error, CallError):
                with suppress(JournalError):
                    await self.journal.durable()
            raise
        self._flights[call.request_id] = flight
        return flight

    def _refused(
        self,
        error: BaseException,
        call: Call,
        began: Began,
        root: str,
        secret: str | None,
        reservation: Reservation | None,
        verdicts: list[dict[str, str]],
    ) -> None:
        """Record a call that is not made. Raises `CallError` 503 for one that cannot be recorded."""
        if isinstance(error, JournalError):
            if reservation is not None:
                reservation.release()
            logger.error("call %s of %s refused: %s", call.request_id, call.endpoint, error)
            raise unavailable(
                "the call cannot be recorded, so it is not made; tell whoever runs this server, and try again"
            ) from None
        if isinstance(error, CallError):
            shown = error.call if isinstance(error, Refused) else call
            policy = None
            with suppress(CallError):  # one that cannot be read may be why
                policy = self.limits.policies.get(call.endpoint)
            Flight(self, _of(shown, shown.caller), began, root, secret, policy, None, verdicts).refused(error)
        elif isinstance(error, asyncio.CancelledError):
            Flight(self, _of(call, call.caller), began, root, secret, None, None, verdicts).abandoned()

    def guard(self, endpoint: str, policy: AiGatewayConfig) -> Guard:
        """The policy's guardrails, compiled when it first counts. Raises `CallError` 503 where they cannot be."""
        held = self._guards.get(endpoint)
        if held is None or held[0] is not policy:
            assert policy.guardrails is not None
            if len(self._guards) >= MAX_GUARDS:  # of endpoints that are gone, too
                self._guards.clear()
            held = self._guards[endpoint] = (policy, compiled(policy.guardrails, self.toolkit, endpoint))
        return held[1]

    async def _durable(self) -> None:
        """Raises `CallError` 503 where the record cannot be put on the disk."""
        try:
            await self.journal.durable()
        except JournalError as error:
            logger.error("%s", error)
            raise unavailable("the call cannot be recorded, so it is not answered; tell whoever runs this server") from None

    @staticmethod
    def _failure(call: Call, error: Exception) -> CallError:
        if isinstance(error, CallError):
            return error
        if isinstance(error, TypeError) and str(error) == "Recursion limit reached":  # as orjson says it
            return bad_request("the request is nested too deeply to be passed on; send fewer than 250 levels")
        logger.error("call %s of %s failed", call.request_id, call.endpoint, exc_info=error)
        return CallError(
            f"{call.endpoint} failed inside the server; ask again, or quote request {call.request_id} to whoever runs it"
        )


def securable(call: Call) -> str:
    """What a caller needs CAN_QUERY on to make this call."""
    if call.task == "http":
        return call.endpoint
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
        call.served_entity,
    )


def _reset(token: Token[Call | None]) -> None:
    try:  # noqa: SIM105 - runs for every chunk, where contextlib.suppress costs twice as much
        current_call.reset(token)
    except ValueError:  # closed from another context by the garbage collector: that context never had it
        pass


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
