"""How much in a day or a month (UTC): calls, tokens and money, counted in the database and so kept over restarts.

A process takes what it may spend from the database in leases and spends them in memory. What is leased counts as used, so that
however many processes spend at once, no more than the limit is admitted; a process that is killed takes at most one lease of each
budget with it.
"""

from __future__ import annotations

import calendar
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from governance.call import Caller, limit_exceeded
from governance.policies import AiGatewayConfig
from governance.tables import budget_counters as table
from governance.tables import create

logger = logging.getLogger("smalti.budgets")

Key = tuple[str, str, str, str, str]
"""Endpoint, metric, kind of key, whose, period."""

_SHARE = 50  # a lease is at most this part of its limit
_CALLS = 100  # and what so many calls like the one that asks need
_AGAIN = 1.0  # seconds after which a spent budget is looked up again: another process may have given back
_DEFAULT_OUTPUT = 512
_MANY = 10_000
_MOST = 10**15  # what a call may be said to need: more is no number of a database


class _Lease:
    __slots__ = ("base", "left", "refused", "spent_at")

    def __init__(self) -> None:
        self.left = 0  # below 0: used beyond what was reserved, and not yet in the database
        self.base = 0  # used by everyone when the database was last asked, this lease included
        self.spent_at = float("-inf")
        self.refused: tuple[int, int] = (0, 0)  # the limit under which there was no room then, and for how much there was none

    def room(self, limit: int, need: int, soft: bool) -> bool:
        """Whether so much may be spent without asking: a limit that was lowered counts at once, whatever is leased."""
        return self.left >= need and (soft or self.base - self.left + need <= limit)

    def spent(self, limit: int, need: int, now: float) -> bool:
        """Whether the database said just now that there is no room for so much."""
        of, least = self.refused
        return limit == of and need >= least and 0 <= now - self.spent_at < _AGAIN


class LeaseNeeded(Exception):
    """The lease of a budget is used up. Call `fetch` off the event loop, then reserve again."""

    def __init__(self, fetch: Callable[[], None]) -> None:
        self.fetch = fetch


class Budgets:
    """Budgets of one database. Thread-safe.

    Parameters
    ----------
    engine: the state database.
    clock: Unix seconds.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        create(engine)
        self._engine, self._clock = engine, clock
        self._lock, self._fetching = threading.Lock(), threading.Lock()
        self._leases: dict[Key, _Lease] = {}
        self._payer = ThreadPoolExecutor(1, thread_name_prefix="smalti-budgets")

    def reserve(
        self, caller: Caller, endpoint: str, policy: AiGatewayConfig, given: int, output: int | None, cost: Callable[[int], float]
    ) -> tuple[list[tuple[Key, int]], list[str]]:
        """Take what a call is expected to need from every budget, or from none; gives the charges, and warnings of soft budgets.

        Parameters
        ----------
        given, output: tokens of the request, and the most its answer may have, where it says.
        cost: US dollars of an answer of so many tokens.

        Raises
        ------
        CallError: 429 that names the budget. LeaseNeeded: nothing was taken yet; fetch and try again.
        """
        now = self._clock()
        charges: dict[Key, int] = {}  # a hard and a soft limit of one key count once
        warnings: list[str] = []
        with self._lock:
            for metric, period, soft, rules in policy.budgets:
                for alternatives in rules.applying(caller):
                    key, need = self._pick(endpoint, metric, period, soft, alternatives, now, given, output, cost)
                    charges[key] = max(need, charges.get(key, 0))
                    lease, limit = self._leases[key], next(a[0] for a in alternatives if a[1:] == key[2:4])
                    if soft and lease.base - lease.left + need > limit:
                        warnings.append(f"the soft {_said(metric, limit, period, key)} is used up")
            for key, need in charges.items():
                self._leases[key].left -= need
        return list(charges.items()), warnings

    def settle(self, charges: list[tuple[Key, int]], tokens: int, cost: float) -> None:
        """Put what was really used in place of what was reserved."""
        indebted = []
        with self._lock:
            for key, reserved in charges:
                used = reserved if key[1] == "calls" else tokens if key[1] == "tokens" else -int(-cost * 1e6 // 1)
                lease = self._leases.setdefault(key, _Lease())
                lease.left += reserved - used
                if lease.left < 0:
                    indebted.append(key)
        for key in indebted:
            self._payer.submit(self._pay, key)

    def release(self, charges: list[tuple[Key, int]]) -> None:
        """The call was not made."""
        with self._lock:
            for key, reserved in charges:
                self._leases.setdefault(key, _Lease()).left += reserved

    def used(self) -> dict[Key, int]:
        """What is used of each budget of this day and this month, leases of running processes included."""
        now = self._clock()
        periods = [_period("day", now), _period("month", now)]
        with self._engine.connect() as connection:
            rows = connection.execute(select(table).where(table.c.period.in_(periods)))
            return {(row.endpoint, row.metric, row.kind, row.whose, row.period): row.used for row in rows}

    def standing(self, policies: Mapping[str, AiGatewayConfig]) -> list[dict[str, Any]]:
        """Each budget in force, the fullest first: `endpoint`, `metric`, `kind`, `whose`, `period`, `soft`, `limit`, `used`.

        Those of each user are there once they have used something. Money is in millionths of a dollar.

        Parameters
        ----------
        policies: by endpoint.
        """
        now, found = self._clock(), []
        with self._fetching:  # leases stay as the database knows them
            used = self.used()
            with self._lock:  # what this process leased and did not spend
                spent = {key: count - (self._leases[key].left if key in self._leases else 0) for key, count in used.items()}
        for endpoint, policy in policies.items():
            for metric, period, soft, rules in policy.budgets:
                at = _period(period, now)
                names = [(kind, whose) for name, of, kind, whose, when in spent if (name, of, when) == (endpoint, metric, at)]
                for kind, whose in dict.fromkeys((*rules.names, *names)):
                    limit = rules.limit(kind, whose)
                    if limit is not None:
                        told = {"endpoint": endpoint, "metric": metric, "kind": kind, "whose": whose, "period": period}
                        count = max(0, spent.get((endpoint, metric, kind, whose, at), 0))
                        found.append({**told, "soft": soft, "limit": limit, "used": count})
        return sorted(found, key=lambda each: -each["used"] / (each["limit"] or 1))

    def prune(self, before: str) -> int:
        """Forget the counters of days and months before an ISO date."""
        with self._engine.begin() as connection:
            return connection.execute(delete(table).where(table.c.period < before[:7])).rowcount

    def close(self) -> None:
        """Give back what was leased and not spent."""
        self._payer.shutdown()
        with self._lock:
            keys = list(self._leases)
        for key in keys:
            self._pay(key)

    # --- within ---

    def _pick(
        self,
        endpoint: str,
        metric: str,
        period: str,
        soft: bool,
        alternatives: list[tuple[int, str, str]],
        now: float,
        given: int,
        output: int | None,
        cost: Callable[[int], float],
    ) -> tuple[Key, int]:
        for limit, kind, whose in alternatives:
            key = (endpoint, metric, kind, whose, _period(period, now))
            tokens = given + (min(_DEFAULT_OUTPUT, limit // 10) if output is None else output)
            need = 1 if metric == "calls" else tokens if metric == "tokens" else max(-int(-cost(tokens - given) * 1e6 // 1), 1)
            need = min(need, _MOST)
            lease = self._leases.setdefault(key, _Lease())
            if lease.room(limit, need, soft):
                return key, need
            if soft or not lease.spent(limit, need, now):
                raise LeaseNeeded(lambda: self._fetch(key, limit, need, soft))  # noqa: B023 - called before the next turn
        limit, kind, whose = alternatives[-1]
        wait = _left(period, now)
        raise limit_exceeded(f"the {_said(metric, limit, period, (endpoint, metric, kind, whose, ''))} is used up", wait)

    def _fetch(self, key: Key, limit: int, need: int, soft: bool) -> None:
        """Lease more; where there is not enough, note that the budget is spent."""
        with self._fetching:
            with self._lock:
                lease = self._leases.setdefault(key, _Lease())
                left = lease.left
                if len(self._leases) > _MANY:
                    today = {_period("day", self._clock()), _period("month", self._clock())}
                    self._leases = {each: held for each, held in self._leases.items() if each[4] in today}
                    self._leases[key] = lease
                if lease.room(limit, need, soft):  # somebody else asked meanwhile
                    return
            missing = max(need - left, 0)
            wanted = missing + max(min(limit // _SHARE, need * _CALLS) - need, 0) if missing else 0
            with self._engine.begin() as connection:
                insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
                names = dict(zip(("endpoint", "metric", "kind", "whose", "period"), key, strict=True))
                connection.execute(insert(table).values(**names, used=0).on_conflict_do_nothing())
                used = connection.execute(select(table.c.used).where(*_is(key)).with_for_update()).scalar_one()
                taken = wanted if soft else min(wanted, limit - used)
                enough = soft or (taken >= missing and used - left + need <= limit)
                if taken > 0 and enough:
                    connection.execute(update(table).where(*_is(key)).values(used=table.c.used + taken))
                    used += taken
                else:
                    taken = 0
            with self._lock:
                lease.left += taken
                lease.base = used
                lease.spent_at, lease.refused = (float("-inf"), (0, 0)) if enough else (self._clock(), (limit, need))

    def _pay(self, key: Key) -> None:
        """Settle a lease with the database: debts are added, what is left is given back."""
        with self._fetching:
            with self._lock:
                lease = self._leases.get(key)
                change = -lease.left if lease else 0
                if lease is None or not change:
                    return
                lease.left = 0
                lease.base += change
            try:
                with self._engine.begin() as connection:
                    connection.execute(update(table).where(*_is(key)).values(used=table.c.used + change))
            except Exception:
                with self._lock:
                    lease.left -= change
                    lease.base -= change
                logger.warning("a budget could not be written; it is tried again with its next call", exc_info=True)


def _is(key: Key) -> list[ColumnElement[bool]]:
    columns = (table.c.endpoint, table.c.metric, table.c.kind, table.c.whose, table.c.period)
    return [column == value for column, value in zip(columns, key, strict=True)]


def _said(metric: str, limit: int, period: str, key: Key) -> str:
    amount = f"{limit / 1e6:g} dollars" if metric == "cost" else f"{limit} {metric}"
    of = f"endpoint {key[0]}" if key[2] == "endpoint" else f"{key[2]} {key[3]} on {key[0]}"
    return f"budget of {of}, {amount} a {period},"


def _period(period: str, now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d" if period == "day" else "%Y-%m")


def _left(period: str, now: float) -> float:
    """Seconds to the end of the day or month."""
    moment = datetime.fromtimestamp(now, UTC)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    days = 1 if period == "day" else calendar.monthrange(moment.year, moment.month)[1] - moment.day + 1
    return midnight.timestamp() + days * 86_400 - now
