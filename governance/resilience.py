"""Getting an answer out of engines that sometimes fail: retries, fallbacks and a circuit breaker, all before the first word.

Once a word of the answer has left nothing is tried again, because the client would read two answers as one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from governance.call import DEPENDENCY_FAILED, STEP, Call, CallError, Engine, Event, unavailable

RETRYABLE = frozenset({429, 502, 503, 504})
"""Statuses that another attempt, or another engine, may not have."""
_ELSEWHERE = RETRYABLE | {DEPENDENCY_FAILED}  # those that another engine may not have

_PRELUDE = frozenset({"response.created", "response.in_progress", "response.queued", STEP})
_LONGEST = 2.0  # seconds that are waited between attempts


class Breaker:
    """Keeps calls from an engine that fails again and again. Thread-safe as far as a count may be off by one.

    Parameters
    ----------
    failures: so many in a row open it.
    seconds: for so long; then one call may try, and closes or opens it again.
    """

    def __init__(self, failures: int = 5, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures, self._seconds, self._clock = failures, seconds, clock
        self._count = 0
        self._until = 0.0

    @property
    def closed(self) -> bool:
        """Whether calls are let through; not so from one failure too many until an answer."""
        return self._count < self._failures

    def wait(self) -> float:
        """Seconds until a call may be made; 0 for now, and then this call is the one that tries."""
        if self._count < self._failures:
            return 0.0
        left = self._until - self._clock()
        if left <= 0:
            self._until = self._clock() + self._seconds  # others wait for this one's outcome
            return 0.0
        return left

    def succeeded(self) -> None:
        self._count = 0

    def failed(self) -> None:
        self._count += 1
        if self._count >= self._failures:
            self._until = self._clock() + self._seconds


@dataclass
class Candidate:
    """An engine that may answer.

    Parameters
    ----------
    attempts: how often it is called, as long as it fails with a `RETRYABLE` status before its first word; one that did not answer
        in time (504) is not asked again.
    """

    name: str
    engine: Engine
    attempts: int = 3
    breaker: Breaker = field(default_factory=Breaker)


async def first_to_answer(call: Call, candidates: Sequence[Candidate], *, pause: float = 0.2) -> AsyncIterator[Event]:
    """The events of the first candidate that says a word; each is tried after the one before it has failed.

    Parameters
    ----------
    pause: seconds before the second attempt; it doubles, and a random part is taken off. A long `retry_after` ends them.
    """
    told: CallError | None = None  # of several failures the last that may pass, if one may
    for candidate in candidates:
        gate, ill = candidate.breaker, False
        for attempt in range(candidate.attempts):
            if (wait := gate.wait()) > 0:
                message = f"{candidate.name} failed several times in a row; it is tried again soon"
                told = told if told and told.status in RETRYABLE else unavailable(message, retry_after=wait)
                break
            begun, held = False, []
            events: Any = candidate.engine(call)
            try:
                try:  # what contextlib.aclosing does, at half its cost
                    async for event in events:
                        if not begun:
                            if event.type in _PRELUDE:
                                held.append(event)
                                continue
                            begun = True
                            gate.succeeded()
                            for early in held:
                                yield early
                        yield event
                finally:
                    await events.aclose()
                if not begun:
                    for early in held:
                        yield early
                return
            except CallError as error:
                ill = error.status in RETRYABLE and error.status != 429
                if begun or error.status not in _ELSEWHERE:
                    if ill:
                        gate.failed()
                    raise
                last = error
            if last.status not in RETRYABLE:  # it is there, and will say the same again
                gate.succeeded()
                told = told or last
                break
            told = last
            delay = max(pause * 2**attempt * random.uniform(0.5, 1.0), last.retry_after or 0.0)
            silent = last.status == 504  # it has been waited for long enough
            if attempt + 1 == candidate.attempts or delay > _LONGEST or silent:
                break
            await asyncio.sleep(delay)
        if ill:
            gate.failed()  # once a call, however often it was tried
    assert told is not None
    raise told


def resilient(
    engines: Sequence[tuple[str, Engine]],
    *,
    fallback: Callable[[], bool] = lambda: False,
    attempts: int = 3,
    pause: float = 0.2,
    breaker: Callable[[], Breaker] = Breaker,
) -> Engine:
    """One engine out of several.

    Parameters
    ----------
    engines: name and engine of each served entity; the first answers, the others follow in this order.
    fallback: whether the others may be tried now (`fallback_config.enabled`).
    attempts, pause: as for `Candidate` and `first_to_answer`.
    """
    candidates = [Candidate(name, engine, attempts, breaker()) for name, engine in engines]

    def run(call: Call) -> AsyncIterator[Event]:
        return first_to_answer(call, candidates if fallback() else candidates[:1], pause=pause)

    return run
