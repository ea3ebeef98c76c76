"""Which served entity answers a call: shares of the traffic, the same unit always the same arm, ordered fallbacks, shadows.

`traffic_config.routes` are Databricks'. Beside them, Smalti's own: `sticky` (`thread`, `user` or `request`) and `salt` keep a
unit with its arm; `shadow` lists entities that get a copy of a share of the calls, whose answers nobody waits for; `experiment`
names the live experiment that the calls' rows tell of (`serving.experiments.live`).
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from governance.call import TERMINAL, Call, CallError, Engine, Event, Single
from governance.resilience import Candidate, first_to_answer
from serving.endpoint import answered_by, not_served

UNITS = ("thread", "user", "request")
Mirror = Callable[[Call, Engine], None]
"""`governance.gateway.Gateway.mirror`."""

Expose = Callable[[str, Mapping[str, str]], None]
"""`governance.gateway.Gateway.expose`."""

_GOLDEN = 0.6180339887498949


def position(salt: str, unit: str) -> float:
    """Where a unit lies in [0, 1): evenly spread over units, the same for the same salt, unrelated for another."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{unit}".encode()).digest()[:7], "big") / (1 << 56)


def unit_of(call: Call, kind: str) -> str:
    """What stays with its arm: the conversation, the user, or the request by the client's own id for it.

    A call without a conversation is its user's, and a request that its client gave no id is by itself. A user is the caller, and
    where a caller asks for people of its own (`user` in OpenAI's requests, `context.user_id` in Databricks'), each of these.
    """
    custom, context = (_mapping(call.payload.get(key)) for key in ("custom_inputs", "context"))
    if kind == "thread" and (thread := call.thread_id or custom.get("thread_id") or context.get("conversation_id")):
        return f"thread:{thread}"
    if kind != "request" and call.caller is not None:
        person = call.payload.get("user") or context.get("user_id")
        return f"{call.caller.principal}/{person}" if isinstance(person, str) else call.caller.principal
    return f"request:{call.client_request_id or call.request_id}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


@dataclass(frozen=True)
class Traffic:
    """A checked `traffic_config` of an endpoint; shares and shadows by entity's name, in percent."""

    routes: tuple[tuple[str, int], ...]
    sticky: str | None = None
    salt: str = ""
    shadow: tuple[tuple[str, int], ...] = ()
    experiment: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], endpoint: str) -> Traffic:
        """`config` as `serving.config.parse` gives it; the endpoint's name is the salt where none is set."""
        traffic = config["traffic_config"]
        shares = ((route["served_entity_name"], route["traffic_percentage"]) for route in traffic["routes"])
        shadow = ((copy["served_entity_name"], copy["traffic_percentage"]) for copy in traffic.get("shadow", ()))
        return cls(
            tuple(shares), traffic.get("sticky"), traffic.get("salt") or endpoint, tuple(shadow), traffic.get("experiment")
        )

    def at(self, place: float) -> str:
        """The entity whose share covers a place in [0, 1)."""
        reached = 0.0
        for name, share in self.routes:
            reached += share / 100
            if place < reached:
                return name
        return max(self.routes, key=lambda route: route[1])[0]


class Arms:
    """The engine of an endpoint of one or several served entities. Immutable but for whose turn it is: a change makes another.

    Parameters
    ----------
    candidates: the entities by name, in the order in which they stand in for one another.
    fallback: whether they may now (`fallback_config.enabled`).
    mirror: starts a copy of a call; None where nothing is shadowed.
    expose: notes in a call's row which arm of the experiment it was dealt.
    """

    def __init__(
        self,
        traffic: Traffic,
        candidates: Mapping[str, Candidate],
        *,
        fallback: Callable[[], bool] = lambda: False,
        mirror: Mirror | None = None,
        expose: Expose | None = None,
    ) -> None:
        self.traffic, self.candidates = traffic, dict(candidates)
        self._fallback, self._mirror, self._expose = fallback, mirror, expose
        self._turn = 0.5
        shadows = {name for name, _ in traffic.shadow} - {name for name, share in traffic.routes if share}
        self._reserves = [name for name in candidates if name not in shadows]

    def pick(self, call: Call) -> str:
        """The entity of the call's unit; without `sticky` the next of a low-discrepancy sequence, whose shares are right over any
        stretch and which no client's own rhythm can fall in with."""
        if self.traffic.sticky:
            return self.traffic.at(position(self.traffic.salt, unit_of(call, self.traffic.sticky)))
        self._turn = (self._turn + _GOLDEN) % 1
        return self.traffic.at(self._turn)

    def health(self) -> dict[str, bool]:
        """Of each entity whether it is asked, or left alone because it failed several times in a row."""
        return {name: each.breaker.closed for name, each in self.candidates.items()}

    def answer(self, call: Call) -> AsyncIterator[Event]:
        """Answer by the picked entity or what stands in for it; copies go to the shadows.

        An entity that the call asks for answers alone, outside of experiments. Raises `CallError` (404) where there is none.
        """
        if call.served_entity is not None:
            if call.served_entity not in self.candidates:
                raise not_served(call, self.candidates)
            return self.candidates[call.served_entity].engine(call)
        picked = self.pick(call)
        self._note(call.request_id, call, picked)
        if self.traffic.shadow and self._mirror is not None:
            self._copy(call)
        chosen = [self.candidates[picked]]
        others = [name for name in self._reserves if name != picked] if len(self.candidates) > 1 else ()
        if others and self._fallback():
            chosen += [self.candidates[name] for name in others]
        alone = len(chosen) == 1 and chosen[0].attempts == 1
        return chosen[0].engine(call) if alone else first_to_answer(call, chosen)

    def _copy(self, call: Call) -> None:
        assert self._mirror is not None
        for name, share in self.traffic.shadow:
            if position(f"{self.traffic.salt}\0{name}", call.request_id) * 100 < share:
                self._mirror(call, self._shadowing(call, name))

    def _note(self, request_id: str, call: Call, arm: str) -> None:
        if self.traffic.experiment and self._expose is not None:
            unit = unit_of(call, self.traffic.sticky or "request")
            exposure = {"smalti_experiment": self.traffic.experiment, "smalti_arm": arm, "smalti_unit": unit[:256]}
            self._expose(request_id, exposure)

    def _shadowing(self, original: Call, name: str) -> Engine:
        """The engine of a copy, whose row tells of the experiment as the original's does."""
        engine = self.candidates[name].engine
        if not self.traffic.experiment:
            return engine

        async def answer(copy: Call) -> AsyncIterator[Event]:
            self._note(copy.request_id, original, name)
            events: Any = engine(copy)
            async with aclosing(events):
                async for event in events:
                    yield event

        return answer


def candidate(name: str, engine: Engine, attempts: int) -> Candidate:
    """An entity as a candidate that names itself in its events, its errors and where `answered_by` asks for it."""
    return Candidate(name, _Named(name, engine), attempts)


class _Named:
    """An engine whose answers carry the served entity's name."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name, self.engine = name, engine

    def __call__(self, call: Call) -> AsyncIterator[Event]:
        noted = answered_by.get()
        if noted is not None:
            noted[call.request_id] = self.name
        events = self.engine(call)
        return Single(self._one(events)) if isinstance(events, Single) else self._several(events)

    async def _one(self, events: Single) -> Event:
        try:
            event = await anext(events)
        except CallError as error:
            error.served_entity_name = self.name
            raise
        return Event(event.type, {**event.data, "served_entity_name": self.name})

    async def _several(self, events: Any) -> AsyncIterator[Event]:
        name = self.name
        try:
            async for event in events:
                kind = event.type
                if kind in TERMINAL or kind == "response.created":
                    event = Event(kind, {**event.data, "served_entity_name": name})
                yield event
        except CallError as error:
            error.served_entity_name = name
            raise
        finally:
            await events.aclose()


def arms(
    traffic: Traffic,
    engines: Sequence[tuple[str, Engine, int]],
    before: Arms | None = None,
    *,
    fallback: Callable[[], bool] = lambda: False,
    mirror: Mirror | None = None,
    expose: Expose | None = None,
) -> Arms:
    """Arms of entities given as name, engine and attempts; one that `before` has already keeps what is known of its failures."""
    known = {each.name: each for each in before.candidates.values()} if before else {}
    made: dict[str, Candidate] = {}
    for name, engine, attempts in engines:
        old = known.get(name)
        same = old is not None and isinstance(old.engine, _Named) and old.engine.engine == engine
        made[name] = old if same and old is not None else candidate(name, engine, attempts)
    return Arms(traffic, made, fallback=fallback, mirror=mirror, expose=expose)
