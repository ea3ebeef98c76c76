"""A gateway on a real database and real files."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event

from governance.budgets import Budgets
from governance.call import Call, CallRecord, Event
from governance.gateway import Gateway
from governance.grants import Grants
from governance.identity import Identity
from governance.journal import Journal
from governance.limits import Limits
from governance.policies import Policies
from governance.prices import Price, Prices

_BEGUN = time.time()


def midmonth() -> float:
    """A clock that goes as all do, from noon (UTC) of a 15th on: no day and no month ends in the midst of a test."""
    return 1_794_744_000.0 + time.time() - _BEGUN


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def database(home: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{home}/smalti.db")
    event.listen(
        engine, "connect", lambda connection, _: connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF")
    )
    yield engine
    engine.dispose()


@dataclass
class House:
    """The room, furnished: alice may call `assistant`, nobody else may call anything."""

    home: Path
    identity: Identity
    grants: Grants
    policies: Policies
    journal: Journal
    gateway: Gateway
    alice: str
    admin: str
    records: list[CallRecord] = field(default_factory=list)

    def call(self, credential: str | None = "alice", **changed: Any) -> Call:
        given: dict[str, Any] = {
            "endpoint": "assistant",
            "task": "agent",
            "payload": {"input": "What is a tessera?"},
            "stream": True,
        }
        return Call(credential=self.alice if credential == "alice" else credential, **{**given, **changed})

    def rows(self) -> list[dict[str, Any]]:
        return list(self.journal.rows())

    def row(self, call: Call) -> dict[str, Any]:
        (row,) = self.journal.rows(request_id=call.request_id)
        return row


@pytest.fixture
def house(database: Engine, home: Path) -> Iterator[House]:
    identity, grants, policies = Identity(database, home / "pepper"), Grants(database), Policies(database)
    admin = identity.ensure_admin()
    assert admin is not None
    _, alice = identity.create_key("alice")
    grants.grant("user:alice", "endpoint:assistant", "CAN_QUERY")
    records: list[CallRecord] = []
    prices, budgets = Prices({"quoting": Price(input=1, output=2)}, "test"), Budgets(database, midmonth)
    prices.serve("assistant", "quoting")
    with Journal(database, home / "journal", interval=None) as journal:
        limits = Limits(policies, budgets=budgets, prices=prices)
        gateway = Gateway(identity, grants, limits, journal, [records.append], prices=prices)
        yield House(home, identity, grants, policies, journal, gateway, alice, admin, records)
    budgets.close()


RESPONSE = {
    "id": "resp_1",
    "status": "completed",
    "model": "quoting",
    "output": [],
    "usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12},
}


async def answering(call: Call) -> AsyncIterator[Event]:
    """An engine that answers in two deltas, after one step."""
    yield Event("response.created", {"response": {"id": f"resp_{call.request_id}", "status": "in_progress", "output": []}})
    yield Event("smalti.step", {"name": "retrieve", "kind": "retrieval"})
    yield Event("response.output_text.delta", {"delta": "A tessera "})
    yield Event("response.output_text.delta", {"delta": "is a tile."})
    yield Event("response.completed", {"response": RESPONSE})


@pytest.fixture
def engine() -> Any:
    return answering
