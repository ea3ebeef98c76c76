"""How much: calls and tokens a minute; days, months and money are in `governance.budgets`.

A minute is a sliding one: in no 60 seconds is more admitted than the limit. What is used is kept in memory, by process, or by
several processes together in Redis (`governance.shared`).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from governance.budgets import Budgets, Key, LeaseNeeded
from governance.call import Caller, CallError, unavailable
from governance.policies import AiGatewayConfig, Policies
from governance.prices import Prices
from governance.shared import Charge, SharedWindows, refusal

DEFAULT_OUTPUT_TOKENS = 512
"""What is reserved for an answer whose request sets no `max_output_tokens`, as far as there is room."""

_TICKS = 4  # a window remembers what was used by the quarter second
_SPAN = 60 * _TICKS
_MANY_WINDOWS = 4_096


_Key = tuple[str, str, str, str]
"""Of a window: endpoint, metric, kind of key, whose."""
_Alternatives = list[tuple[int, _Key]]
"""Limits of which one must have room, each with its window's key."""
_Plan = list[tuple[str, _Alternatives]]


class _Window:
    """What was used in the last minute."""

    __slots__ = ("key", "total", "used")

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.used: deque[list[int]] = deque()  # [tick, amount], oldest first
        self.total = 0

    def expire(self, tick: int) -> None:
        used = self.used
        while used and used[0][0] < tick - _SPAN:
            entry = used.popleft()
            self.total -= entry[1]
            entry[0] = -1

    def add(self, tick: int, amount: int) -> list[int]:
        if not self.used or self.used[-1][0] != tick:
            self.used.append([tick, 0])
        entry = self.used[-1]
        entry[1] += amount
        self.total += amount
        return entry

    def give_back(self, entry: list[int], amount: int) -> None:
        if entry[0] >= 0:
            entry[1] -= amount
            self.total -= amount

    def wait(self, limit: int, amount: int, now: float) -> float:
        """Seconds until `amount` has room, as far as is known; a minute where it never has."""
        left = self.total
        for tick, used in self.used:
            left -= used
            if left + amount <= limit:
                return max((tick + 1 + _SPAN) / _TICKS - now, 0.1)
        return 60.0


_Charges = list[tuple[_Window, list[int], int]]
"""Windows, the entries in them, and how much was added to each."""


class Reservation:
    """What a call took from its limits before it began."""

    __slots__ = ("_budgets", "_charges", "_limits", "_shared", "estimate", "input_estimate", "warnings")

    def __init__(self, limits: Limits, charges: _Charges, input_estimate: int, estimate: int) -> None:
        self._shared: list[Charge] = []
        self._limits = limits
        self._charges: _Charges | None = charges
        self.input_estimate = input_estimate
        self.estimate = estimate
        """Tokens reserved; 0 where no token limit applies."""
        self.warnings: list[str] = []
        """Soft budgets that are used up."""
        self._budgets: list[tuple[Key, int]] = []

    def settle(self, tokens: int, cost: float = 0.0) -> None:
        """Put the tokens really used, and the dollars, in place of the estimate. Once; later calls do nothing."""
        charges, self._charges = self._charges, None
        if charges:
            self._limits._settle(charges, max(int(tokens), 0))
        shared, self._shared = self._shared, []
        if shared and self._limits.shared is not None:
            self._limits.shared.settle(shared, max(int(tokens), 0))
        budgets, self._budgets = self._budgets, []
        if budgets and self._limits.budgets is not None:
            self._limits.budgets.settle(budgets, max(int(tokens), 0), cost)

    def release(self) -> None:
        """Give everything back, the call too: it was not made."""
        charges, self._charges = self._charges, None
        if charges:
            self._limits._release(charges)
        shared, self._shared = self._shared, []
        if shared and self._limits.shared is not None:
            self._limits.shared.release(shared)
        budgets, self._budgets = self._budgets, []
        if budgets and self._limits.budgets is not None:
            self._limits.budgets.release(budgets)


class Limits:
    """Reserves calls and tokens. Atomic under any concurrency within the process; kept in memory. Thread-safe.

    Parameters
    ----------
    policies: where the limits come from.
    clock: seconds that only go forward.
    budgets: keeps limits of a day and a month; without it calls under such a limit are refused.
    prices: what tokens cost, for limits in dollars.
    shared: counts the minutes of several processes together.
    """

    def __init__(
        self,
        policies: Policies | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        budgets: Budgets | None = None,
        prices: Prices | None = None,
        shared: SharedWindows | None = None,
    ) -> None:
        self.policies, self.shared = policies or Policies(), shared
        self.budgets, self.prices = budgets, prices or Prices()
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[_Key, _Window] = {}
        self._plans: dict[tuple[str, str, str], tuple[AiGatewayConfig, Caller, _Plan]] = {}

    def reserve(
        self,
        caller: Caller,
        endpoint: str,
        size: int = 0,
        output_tokens: int | None = None,
        *,
        policy: AiGatewayConfig | None = None,
    ) -> Reservation:
        """Take one call and its estimated tokens from every limit that applies, or from none.

        Parameters
        ----------
        size: bytes of the request; four make a token.
        output_tokens: the most the answer may have; None where the request does not say.
        policy: the endpoint's, where it was looked up for this call already.

        Raises
        ------
        CallError: 429 that names the limit, with `retry_after`. LeaseNeeded: a budget must be asked for in the database first, or
            a shared minute in Redis.
        """
        policy = policy or self.policies.get(endpoint)
        given = (size + 3) // 4 or 1
        if policy is None or not (policy.rules or policy.budgets):
            return Reservation(self, [], given, 0)
        taken: list[tuple[Key, int]] = []
        warnings: list[str] = []
        if policy.budgets:
            if self.budgets is None:
                raise unavailable(f"the budgets of {endpoint} have no database to be counted in")
            price = self.prices.of(endpoint)
            cost = (lambda tokens: (given * price.input + tokens * price.output) / 1e6) if price else (lambda tokens: 0.0)
            taken, warnings = self.budgets.reserve(caller, endpoint, policy, given, output_tokens, cost)
            model = self.prices.unpriced(endpoint) if price is None else None
            if model and any(metric == "cost" for metric, *_ in policy.budgets):
                warnings = [*warnings, f"no price is known of {model}: the limit in dollars of {endpoint} counts nothing of it"]
        try:
            if self.shared is None:
                reservation = self._minute(caller, endpoint, policy, given, output_tokens)
            else:
                room = given + (DEFAULT_OUTPUT_TOKENS if output_tokens is None else output_tokens)
                charges, estimate = self.shared.reserve(caller, endpoint, policy, room)
                reservation = Reservation(self, [], given, estimate)
                reservation._shared = charges
        except (CallError, LeaseNeeded):
            if self.budgets is not None:
                self.budgets.release(taken)
            raise
        reservation._budgets, reservation.warnings = taken, warnings
        return reservation

    def _minute(
        self, caller: Caller, endpoint: str, policy: AiGatewayConfig, given: int, output_tokens: int | None
    ) -> Reservation:
        with self._lock:
            now = self._clock()
            tick = int(now * _TICKS)
            picked: list[tuple[bool, _Window]] = []
            room, counted = DEFAULT_OUTPUT_TOKENS, False
            for metric, alternatives in self._plan(caller, endpoint, policy):
                tokens = metric == "tokens"
                window, left = self._pick(alternatives, given + (output_tokens or 0) if tokens else 1, now, tick)
                picked.append((tokens, window))
                if tokens:
                    counted = True
                    if left < room:
                        room = left
            estimate = given + (room if output_tokens is None else output_tokens)
            charges: _Charges = []
            for tokens, window in picked:
                amount = estimate if tokens else 1
                charges.append((window, window.add(tick, amount), amount))
            if len(self._windows) > _MANY_WINDOWS:
                self._sweep(tick)
        return Reservation(self, charges, given, estimate if counted else 0)

    def _plan(self, caller: Caller, endpoint: str, policy: AiGatewayConfig) -> _Plan:
        """What applies to a caller: worked out once for each policy, and looked up after that."""
        who = (endpoint, caller.kind, caller.name)
        held = self._plans.get(who)
        if held is not None and held[0] is policy and (held[1] is caller or held[1] == caller):
            return held[2]
        plan = [
            (metric, [(limit, (endpoint, metric, kind, whose)) for limit, kind, whose in alternatives])
            for metric, rules in policy.rules
            for alternatives in rules.applying(caller)
        ]
        if len(self._plans) > _MANY_WINDOWS:
            self._plans.clear()
        self._plans[who] = (policy, caller, plan)
        return plan

    def _pick(self, alternatives: _Alternatives, need: int, now: float, tick: int) -> tuple[_Window, int]:
        """The first of the alternatives with room, and what is left in it afterwards."""
        soonest, refused = math.inf, alternatives[0]
        for limit, key in alternatives:
            window = self._windows.get(key)
            if window is None:
                window = self._windows[key] = _Window(key)
            window.expire(tick)
            if window.total + need <= limit:
                return window, limit - window.total - need
            wait = window.wait(limit, need, now)
            if wait < soonest:
                soonest, refused = wait, (limit, key)
        limit, (endpoint, metric, kind, whose) = refused
        raise refusal(endpoint, metric, (limit, kind, whose), need, soonest)

    def _settle(self, charges: _Charges, tokens: int) -> None:
        with self._lock:
            for window, entry, amount in charges:
                if window.key[1] != "tokens" or tokens == amount:
                    continue
                if tokens < amount:
                    window.give_back(entry, amount - tokens)
                else:  # more than was reserved counts from now on, in the window of its key if it was swept meanwhile
                    now = int(self._clock() * _TICKS)
                    self._windows.setdefault(window.key, _Window(window.key)).add(now, tokens - amount)

    def _release(self, charges: _Charges) -> None:
        with self._lock:
            for window, entry, amount in charges:
                window.give_back(entry, amount)

    def _sweep(self, tick: int) -> None:
        for key in list(self._windows):
            window = self._windows[key]
            window.expire(tick)
            if not window.used:
                del self._windows[key]
