"""One call between its INTENT and its COMPLETION: what is kept of it, and how it is recorded."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from governance.call import Call, CallError, CallRecord, Event, unavailable
from governance.choices import MORE
from governance.frames import payload
from governance.journal import JournalError
from governance.limits import Reservation
from governance.policies import AiGatewayConfig
from governance.record import body_of, failed_code, failed_status, lean, request_of, short, usage_of
from governance.redact import redacted

if TYPE_CHECKING:
    from governance.gateway import Gateway
    from governance.guardrails.guard import Guard

logger = logging.getLogger("smalti.gateway")

MAX_PAYLOAD = 16 << 20
"""Bytes of a request or an answer that the journal keeps whole."""
MAX_REFUSED_PAYLOAD = 4_096
"""The same for a call that was refused: refusals are cheap to cause."""
EXPOSURE = ("smalti_experiment", "smalti_arm", "smalti_unit")
"""Keys of `usage_context` that only the gateway writes: the experiment a call was part of, the arm it was dealt, its unit."""
CLIENT_GONE = 499
"""Status of a call whose client went away before the end."""


class Began:
    """When a call began, and the time since by a clock that nobody puts forward or back; nanoseconds of Unix time."""

    __slots__ = ("_ahead", "ns")

    def __init__(self) -> None:
        self.ns = time.time_ns()
        self._ahead = self.ns - time.perf_counter_ns()

    def now(self) -> int:
        return time.perf_counter_ns() + self._ahead


class Flight:
    """One call between INTENT and COMPLETION."""

    __slots__ = (
        "admitted",
        "aside",
        "began",
        "call",
        "choices",
        "created",
        "done",
        "exposure",
        "first_ns",
        "gateway",
        "guard",
        "inner_cost",
        "mirrored",
        "policy",
        "reservation",
        "root",
        "secret",
        "served",
        "steps",
        "text",
        "verdicts",
    )

    def __init__(
        self,
        gateway: Gateway,
        call: Call,
        began: Began,
        root: str,
        secret: str | None,
        policy: AiGatewayConfig | None,
        reservation: Reservation | None,
        verdicts: list[dict[str, str]] | None = None,
        guard: Guard | None = None,
        *,
        mirrored: bool = False,
    ) -> None:
        self.gateway, self.call, self.began, self.root, self.secret = gateway, call, began, root, secret
        self.policy, self.reservation = policy, reservation
        self.first_ns: int | None = None
        self.steps: list[Mapping[str, Any]] = []
        self.text: list[str] = []
        self.choices: dict[int, list[str]] = {}
        """The same of each of several choices."""
        self.aside = 0
        """Characters of what is no text of the answer: arguments of tools, reasoning."""
        self.created: Mapping[str, Any] | None = None
        self.verdicts: list[dict[str, str]] = [] if verdicts is None else verdicts
        self.guard = guard
        self.mirrored = mirrored
        self.admitted = False
        """Whether it holds a turn of the gateway's `admission`."""
        self.served: str | None = None
        """The served entity that answers, as far as it is known."""
        self.inner_cost = 0.0
        """US dollars that the calls made for this one have cost."""
        self.exposure: Mapping[str, str] | None = None
        """What of a live experiment the call was shown; `EXPOSURE`'s keys."""
        self.done = False

    def intent(self, request: bytes) -> None:
        columns = self._columns()
        if self.policy is None or self.policy.logs_payload(self.call.request_id):
            columns["request"] = self._kept("request", request)
        self._append(columns)

    def _kept(self, side: str, raw: bytes) -> orjson.Fragment:
        """A request or answer as it may be written."""
        paths = self.policy.redactions if self.policy is not None else ()
        if not paths:
            return orjson.Fragment(raw)
        body = orjson.loads(raw)
        if isinstance(body, dict) and body.get("smalti_truncated"):
            del body["head"]  # in which nothing can be told apart
        return orjson.Fragment(payload(redacted(body, side, paths), MAX_PAYLOAD))

    def answered(self, event: Event) -> None:
        """Record the engine's terminal event. Raises `CallError` 503 when that cannot be done."""
        body = body_of(event)
        status = failed_status(body) if event.type == "response.failed" else 200
        error = (body.get("error") or {}).get("message") if event.type == "response.failed" else None
        if self.first_ns is None:
            self.first_ns = self.began.now()
        self.served = event.data.get("served_entity_name") or self.served
        self._finish(status, body, usage_of(body), error, event.data)

    def failed(self, error: CallError) -> None:
        self.served = error.served_entity_name or self.served
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
        code = failed_code(error.status)
        base = {
            "id": f"resp_{self.call.request_id}",
            "object": "response",
            "created_at": self.began.ns // 1_000_000_000,
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
        base = {"id": f"resp_{self.call.request_id}", "object": "response", "status": status}
        made = [{**base, "output": [_broken_off(text)]} for _, text in sorted(self.choices.items())]
        return {**made[0], MORE: made[1:]} if len(made) > 1 else {**base, "output": [_broken_off(self.text)]}

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
        end, start = self.began.now(), self.began.ns
        call, gateway = self.call, self.gateway
        gateway._flights.pop(call.request_id, None)
        if self.admitted:
            gateway.admission.leave()
        cost = self._cost(usage, response)
        if self.reservation is not None:
            spent = usage if usage else self._guessed(status)
            dollars = cost if usage else self._cost(spent, response)
            self.reservation.settle(_total(spent), (dollars or 0.0) + self.inner_cost)
        if cost and not self.mirrored and (outer := gateway._flights.get(call.parent_id or "")) is not None:
            outer.inner_cost += cost + self.inner_cost
        columns = self._columns() if self.reservation is None else self._key()  # a refused call has no INTENT before this
        columns["status_code"], columns["execution_duration_ms"] = status, (end - start) / 1e6
        if self.first_ns is not None:
            columns["time_to_first_byte_ms"] = (self.first_ns - start) / 1e6
        if error is not None:
            columns["error"] = error
        if self.policy is None or self.policy.usage_tracked:
            columns.update(usage)
            if cost is not None:
                columns["cost"], columns["price_version"] = cost, gateway.prices.version
        if self.exposure:
            columns["usage_context"] = {**_own(call.usage_context), **self.exposure}
        if self.verdicts:
            columns["guardrail_verdicts"] = self.verdicts
        if response is not None:
            columns["served_entity_id"] = short((event or {}).get("served_entity_id") or response.get("served_entity_id"))
            columns["served_entity_name"] = short(self.served or response.get("model"))
            if self.policy is None or self.policy.logs_payload(call.request_id):
                columns["response"] = self._kept("response", payload(lean(response, call.task), MAX_PAYLOAD))
        elif self.served:
            columns["served_entity_name"] = short(self.served)
        if request is not None and (self.policy is None or self.policy.logs_payload(call.request_id)):
            columns["request"] = self._kept("request", request)
        unrecorded: JournalError | None = None
        try:
            self._append(columns)
        except JournalError as trouble:
            logger.error("call %s of %s could not be recorded: %s", call.request_id, call.endpoint, trouble)
            unrecorded, status, error = trouble, 503, str(trouble)
        if gateway.observers:
            self._tell(status, end, response, error, usage, cost)
        if unrecorded is not None:
            raise unavailable("the answer cannot be recorded, so it is not given; tell whoever runs this server") from None

    def _tell(
        self,
        status: int,
        end: int,
        response: Mapping[str, Any] | None,
        error: str | None,
        usage: Mapping[str, int],
        cost: float | None,
    ) -> None:
        record = CallRecord(
            self.call,
            status,
            self.began.ns,
            end,
            self.first_ns,
            response,
            error,
            usage,
            tuple(self.steps),
            cost,
            tuple(self.verdicts),
            self.served,
        )
        for observer in self.gateway.observers:
            try:
                observer(record)
            except Exception:
                logger.exception("an observer of call %s failed", self.call.request_id)

    def _cost(self, usage: Mapping[str, int], response: Mapping[str, Any] | None) -> float | None:
        """US dollars, where tokens are known and the model has a price."""
        if not usage:
            return None
        model = (response or {}).get("model")
        return self.gateway.prices.cost(self.call.endpoint, model if isinstance(model, str) else None, usage)

    def _key(self) -> dict[str, Any]:
        call = self.call
        return {
            "databricks_request_id": call.request_id,
            "request_time": self.began.ns,
            "endpoint_name": call.endpoint[:256],
            "task": call.task,
            "requester": call.caller.name if call.caller else None,
        }

    def _columns(self) -> dict[str, Any]:
        call, columns = self.call, self._key()
        columns["trace_id"] = f"tr-{self.root}"
        if call.client_request_id:
            columns["client_request_id"] = short(call.client_request_id)
        if call.parent_id:
            columns["parent_request_id"] = short(call.parent_id)
        if call.caller is not None:
            columns["requester_kind"] = call.caller.kind
            if call.usage_context:
                columns["usage_context"] = _own(call.usage_context) or None
            if call.thread_id:
                columns["thread_id"] = short(call.thread_id)
        return columns

    def _append(self, columns: Mapping[str, Any]) -> None:
        self.gateway.journal.append(columns, secrets=(self.secret,) if self.secret else ())

    def _guessed(self, status: int) -> Mapping[str, int]:
        """Usage that nobody told of, as can be told from the texts: whoever hangs up before the end has used what came before."""
        if status not in (200, CLIENT_GONE) and self.first_ns is None:
            return {}  # nothing was answered
        given = self.reservation.input_estimate if self.reservation else 0
        return {"input_tokens": given, "output_tokens": (sum(map(len, self.text)) + self.aside) // 4}


def _broken_off(text: list[str]) -> dict[str, Any]:
    content = [{"type": "output_text", "text": "".join(text), "annotations": []}]
    return {"type": "message", "role": "assistant", "status": "incomplete", "content": content}


def _total(usage: Mapping[str, int]) -> int:
    return usage.get("total_tokens") or usage.get("input_tokens", 0) + usage.get("output_tokens", 0)


def _own(context: Mapping[str, str]) -> Mapping[str, str]:
    """The client's tags, without those that tell of experiments."""
    return {key: value for key, value in context.items() if key not in EXPOSURE} if context else context
