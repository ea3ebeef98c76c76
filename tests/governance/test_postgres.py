"""The room on a real PostgreSQL: what two servers that share a database see of each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from agents.tables import metadata as agents_tables
from governance.budgets import Budgets, LeaseNeeded
from governance.call import Caller, CallError
from governance.gateway import Gateway
from governance.grants import Grants
from governance.identity import Identity
from governance.journal import Journal
from governance.limits import Limits
from governance.policies import AiGatewayConfig, Policies
from governance.tables import metadata as governance_tables
from governance.usage import usage
from retrieval.tables import metadata as retrieval_tables
from serving.state import open_database, upgrade
from serving.tables import metadata as serving_tables
from tests import servers
from tests.governance.conftest import answering, midmonth

TABLES = [governance_tables, retrieval_tables, agents_tables, serving_tables]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with servers.postgres() as address:
        yield address


@pytest.fixture
def two(url: str) -> Iterator[tuple[Engine, Engine]]:
    engines = open_database(url), open_database(url)
    faults: list[Exception] = []

    def starting(engine: Engine) -> None:
        try:
            upgrade(engine, TABLES)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=starting, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    yield engines
    for engine in engines:
        engine.dispose()


@pytest.mark.anyio
async def test_a_key_made_by_one_server_is_good_at_the_other_until_it_is_revoked(
    two: tuple[Engine, Engine], tmp_path: Path
) -> None:
    from governance.call import Call

    here, there = (Identity(engine, tmp_path / "pepper") for engine in two)
    key, secret = here.create_key("alice")
    grants = Grants(two[1])
    Grants(two[0]).grant("user:alice", "endpoint:assistant", "CAN_QUERY")
    policies = Policies(two[1])
    Policies(two[0]).set("assistant", {"rate_limits": [{"key": "user", "calls": 2}]})
    budgets = Budgets(two[1], midmonth)
    with Journal(two[1], tmp_path / "journal", interval=None) as journal:
        gateway = Gateway(there, grants, Limits(policies, budgets=budgets), journal)

        async def ask() -> Call:
            call = Call("assistant", "agent", {"input": "hello"}, credential=secret)
            await gateway.invoke(call, answering)
            return call

        call = await ask()
        (row,) = journal.rows(request_id=call.request_id)
        assert (row["requester"], row["status_code"], row["total_tokens"]) == ("alice", 200, 12)
        await ask()
        with pytest.raises(CallError) as refused:
            await ask()
        assert refused.value.status == 429
        here.revoke(key.id)
        with pytest.raises(CallError) as refused:
            await ask()
        assert refused.value.status == 401
        journal.ingest()
        told = {(each["requester"], each["requests"]) for each in usage(two[0], by=["requester"])}
        assert ("alice", 3) in told
    budgets.close()


def test_a_budget_is_one_budget(two: tuple[Engine, Engine]) -> None:
    caller = Caller("bob", "user", frozenset(), False, "k")
    policies = Policies(
        None, {"sums": AiGatewayConfig.parse({"rate_limits": [{"key": "user", "calls": 10, "renewal_period": "day"}]})}
    )
    houses = [Limits(policies, budgets=Budgets(engine, midmonth)) for engine in two]
    admitted = 0
    for turn in range(30):
        limits = houses[turn % 2]
        while True:
            try:
                limits.reserve(caller, "sums", 4, 4)
                admitted += 1
            except LeaseNeeded as needed:
                needed.fetch()
                continue
            except CallError:
                pass
            break
    assert admitted == 10
    for limits in houses:
        assert limits.budgets is not None
        limits.budgets.close()
