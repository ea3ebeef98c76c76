"""Limits of a minute that several processes keep together in a real Redis."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from governance.budgets import LeaseNeeded
from governance.call import Caller, CallError
from governance.limits import Limits
from governance.policies import AiGatewayConfig, Policies
from governance.shared import SharedWindows
from tests import servers

ROOT = Path(__file__).resolve().parents[2]
ALICE = Caller("alice", "user", frozenset(), False, "k")
WORKER = """
import json, sys
from governance.budgets import LeaseNeeded
from governance.call import Caller, CallError
from governance.limits import Limits
from governance.policies import AiGatewayConfig, Policies
from governance.shared import SharedWindows
limit = {"key": "user", "calls": 500, "tokens": 40_000}
policies = Policies(None, {"assistant": AiGatewayConfig.parse({"rate_limits": [limit]})})
limits = Limits(policies, shared=SharedWindows(sys.argv[1]))
admitted = tokens = refused = 0
alice = Caller("alice", "user", frozenset(), False, "k")
sys.stdin.readline()
while refused < 50:
    try:
        reservation = limits.reserve(alice, "assistant", 40, 90)
    except LeaseNeeded as needed:
        needed.fetch()
    except CallError:
        refused += 1
    else:
        reservation.settle(100)
        admitted, tokens = admitted + 1, tokens + 100
print(json.dumps([admitted, tokens]), flush=True)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.redis(tmp_path_factory.mktemp("redis")) as address:
        yield address


def limited(url: str, endpoint: str, **limit: int) -> Limits:
    policies = Policies(None, {endpoint: AiGatewayConfig.parse({"rate_limits": [{"key": "user", **limit}]})})
    return Limits(policies, shared=SharedWindows(url))


def admit(limits: Limits, endpoint: str, size: int = 4, output: int | None = 9):
    while True:
        try:
            return limits.reserve(ALICE, endpoint, size, output)
        except LeaseNeeded as needed:
            needed.fetch()


def test_four_processes_admit_no_more_than_one_would(url: str) -> None:
    command = [sys.executable, "-c", WORKER, url]
    workers = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    told = [json.loads(worker.communicate(timeout=100)[0]) for worker in workers]
    calls, tokens = sum(each[0] for each in told), sum(each[1] for each in told)
    assert tokens <= 40_000
    assert calls <= 500
    assert tokens >= 40_000 - 4 * 100 * 20, "what is leased and not spent is at most one lease a process"


def test_what_one_process_used_another_does_not_have(url: str) -> None:
    first, second = limited(url, "shop", calls=3), limited(url, "shop", calls=3)
    for limits in (first, second, first):
        admit(limits, "shop")
    with pytest.raises(CallError, match="3 calls a minute") as refused:
        admit(second, "shop")
    assert refused.value.status == 429
    assert 0 < (refused.value.retry_after or 0) <= 62


def test_what_was_reserved_and_not_used_comes_back(url: str) -> None:
    first, second = limited(url, "books", tokens=100), limited(url, "books", tokens=100)
    admit(first, "books", 4, 99).settle(10)
    with pytest.raises(CallError, match="needs about 101 tokens"):
        admit(second, "books", 4, 100)
    first.shared.close()  # type: ignore[union-attr]
    admit(second, "books", 4, 80).settle(200)
    with pytest.raises(CallError, match="100 tokens a minute"):
        admit(second, "books", 4, 9)


def test_a_call_that_was_not_made_takes_nothing(url: str) -> None:
    limits = limited(url, "quiet", calls=1)
    admit(limits, "quiet").release()
    admit(limits, "quiet").settle(1)
    with pytest.raises(CallError):
        admit(limits, "quiet")


def test_without_redis_no_limited_call_is_made() -> None:
    limits = limited("redis://127.0.0.1:1/0", "shut", calls=5)
    with pytest.raises(CallError) as refused:
        admit(limits, "shut")
    assert refused.value.status == 503
    assert "127.0.0.1" not in refused.value.message
