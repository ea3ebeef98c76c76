"""Limits of a minute that several processes keep together, in Redis.

A process takes calls and tokens from Redis in leases that it spends within a second. What is leased counts as used for a minute
and two seconds from then on, whenever it is spent, so that in no minute more is admitted than the limit; a process that is
killed wastes one lease of each limit. Where Redis cannot be asked no call under such a limit is made.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from governance.budgets import LeaseNeeded
from governance.call import Caller, CallError, limit_exceeded, unavailable
from governance.policies import AiGatewayConfig

if TYPE_CHECKING:
    from redis.commands.core import Script

logger = logging.getLogger("smalti.limits")

Window = tuple[str, str, str, str]
"""Endpoint, metric, kind of key, whose."""
Charge = tuple[Window, int]

_LIFE = 1.0  # seconds a lease may be spent in
_SHARE = 50  # a lease is at most this part of its limit
_CALLS = 20  # and what so many calls like the one that asks need

# A hash of what was leased by the second, on Redis' own clock. ARGV: limit, missing, wanted, give back, the second it came from.
# Gives what was leased, the second it was leased in, and where nothing was, the seconds until there may be room.
_LEASE = """
local now = tonumber(redis.call('TIME')[1])
local limit, missing, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local back, from = tonumber(ARGV[4]), ARGV[5]
if back > 0 and redis.call('HEXISTS', KEYS[1], from) == 1 then
  redis.call('HINCRBY', KEYS[1], from, -back)
elseif back < 0 then
  redis.call('HINCRBY', KEYS[1], tostring(now), -back)
end
local used, entries, all = 0, {}, redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  local second, amount = tonumber(all[at]), tonumber(all[at + 1])
  if second <= now - 62 then
    redis.call('HDEL', KEYS[1], all[at])
  else
    used = used + amount
    entries[#entries + 1] = {second, amount}
  end
end
if missing == 0 or used + missing <= limit then
  local taken = math.max(math.min(wanted, limit - used), 0)
  if taken > 0 then
    redis.call('HINCRBY', KEYS[1], tostring(now), taken)
  end
  redis.call('EXPIRE', KEYS[1], 64)
  return {taken, now, 0}
end
table.sort(entries, function(a, b) return a[1] < b[1] end)
local left, wait = used, 62
for _, entry in ipairs(entries) do
  left = left - entry[2]
  if left + missing <= limit then
    wait = entry[1] + 62 - now
    break
  end
end
redis.call('EXPIRE', KEYS[1], 64)
return {0, now, wait}
"""


class _Lease:
    __slots__ = ("left", "second", "spent_at", "taken_at", "wait")

    def __init__(self) -> None:
        self.left = 0  # below 0: used beyond what was reserved, and not yet in Redis
        self.second = 0
        self.taken_at = self.spent_at = float("-inf")
        self.wait = 0.0


class SharedWindows:
    """The minutes of one Redis. Thread-safe.

    Parameters
    ----------
    url: Redis', such as `redis://cache:6379/0`; `rediss://` for TLS.
    """

    def __init__(self, url: str) -> None:
        import redis

        self._client: Any = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        self._script: Script = self._client.register_script(_LEASE)
        self._broken = redis.RedisError
        self._lock, self._fetching = threading.Lock(), threading.Lock()
        self._leases: dict[Window, _Lease] = {}

    def reserve(self, caller: Caller, endpoint: str, policy: AiGatewayConfig, tokens: int) -> tuple[list[Charge], int]:
        """Take one call and its tokens from every limit that applies, or from none; gives the charges and the tokens reserved.

        Raises
        ------
        CallError: 429 that names the limit. LeaseNeeded: nothing was taken; fetch and try again.
        """
        now, charges = time.monotonic(), []
        with self._lock:
            for metric, rules in policy.rules:
                need = 1 if metric == "calls" else tokens
                for alternatives in rules.applying(caller):
                    charges.append((self._pick(endpoint, metric, alternatives, need, now), need))
            for window, need in charges:
                self._leases[window].left -= need
        return charges, tokens if any(window[1] == "tokens" for window, _ in charges) else 0

    def settle(self, charges: list[Charge], tokens: int) -> None:
        """Put what was really used in place of what was reserved; what is over goes to Redis with the next lease."""
        with self._lock:
            for window, reserved in charges:
                if window[1] == "tokens":
                    self._leases.setdefault(window, _Lease()).left += reserved - tokens

    def release(self, charges: list[Charge]) -> None:
        """The call was not made."""
        with self._lock:
            for window, reserved in charges:
                self._leases.setdefault(window, _Lease()).left += reserved

    def close(self) -> None:
        """Give back what was leased and not spent."""
        for window in list(self._leases):
            try:
                self._fetch(window, 0, 0)
            except CallError:
                break  # it runs out by itself
        self._client.close()

    # --- within ---

    def _pick(self, endpoint: str, metric: str, alternatives: list[tuple[int, str, str]], need: int, now: float) -> Window:
        soonest, refused = math.inf, alternatives[0]
        for limit, kind, whose in alternatives:
            window = (endpoint, metric, kind, whose)
            lease = self._leases.setdefault(window, _Lease())
            if lease.left >= need and now - lease.taken_at < _LIFE:
                return window
            if need <= limit and now - lease.spent_at >= min(lease.wait, _LIFE):
                raise LeaseNeeded(lambda: self._fetch(window, limit, need))  # noqa: B023 - called before the next turn
            if lease.wait < soonest:
                soonest, refused = lease.wait, (limit, kind, whose)
        raise refusal(endpoint, metric, refused, need, soonest)

    def _fetch(self, window: Window, limit: int, need: int) -> None:
        """Settle the lease with Redis and take another. Blocking. Raises `CallError` 503 where Redis cannot be asked."""
        with self._fetching:
            with self._lock:
                lease = self._leases.setdefault(window, _Lease())
                fresh = time.monotonic() - lease.taken_at < _LIFE
                if fresh and need and lease.left >= need:
                    return  # another thread was first
                back, lease.left = lease.left, 0
            wanted = max(need, min(limit // _SHARE, need * _CALLS))
            try:
                key = "smalti:minute:" + "\x1f".join(window)
                answer: Any = self._script(keys=[key], args=[limit, need, wanted, back, lease.second])
                taken, second, wait = answer
            except self._broken as error:
                with self._lock:
                    lease.left += back
                logger.error("Redis cannot be asked for limits: %s", type(error).__name__)
                raise unavailable(
                    "the limits cannot be counted, so the call is not made; tell whoever runs this server"
                ) from None
            with self._lock:
                lease.left += taken
                lease.second, lease.wait, now = second, float(wait), time.monotonic()
                if taken:
                    lease.taken_at, lease.spent_at = now, float("-inf")
                else:
                    lease.spent_at = now


def refusal(endpoint: str, metric: str, rule: tuple[int, str, str], need: int, wait: float) -> CallError:
    """429 that says which limit it was, and when there is room again."""
    limit, kind, whose = rule
    of = f"endpoint {endpoint}" if kind == "endpoint" else f"{kind} {whose} on {endpoint}"
    if metric == "tokens" and need > limit:
        return limit_exceeded(
            f"this request needs about {need} tokens; the limit of {of} is {limit} tokens a minute: "
            "send less, or lower max_output_tokens",
            60.0,
        )
    return limit_exceeded(f"the limit of {of} is reached: {limit} {metric} a minute; try again in {math.ceil(wait)} s", wait)
