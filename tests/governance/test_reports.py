from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse

from governance import audit, export
from governance.call import Caller, CallError, CallRecord
from governance.metrics import Metrics
from governance.reports import router
from governance.retention import prune
from governance.usage import usage

from .conftest import House, answering

pytestmark = pytest.mark.anyio


def app(house: House, metrics: Metrics) -> FastAPI:
    made = FastAPI()

    @made.exception_handler(CallError)
    async def refused(request: Request, error: CallError) -> JSONResponse:
        return JSONResponse({"message": error.message}, error.status)

    def caller(request: Request) -> Caller:
        return house.identity.authenticate(request.headers.get("authorization", "").removeprefix("Bearer "))

    made.include_router(
        router(house.identity._engine, house.identity, house.journal, metrics, caller=caller, scrape_key="scraping")
    )
    return made


async def test_what_owners_read_over_http(house: House) -> None:
    metrics = Metrics(lambda: house.gateway.in_flight)
    house.gateway.observers.append(metrics)
    house.policies.set(
        "assistant", {"rate_limits": [{"calls": 2}], "guardrails": {"input": {"pii": {"behavior": "MASK"}}}}, by="root"
    )
    await house.gateway.invoke(house.call(payload={"input": "a@example.org"}), answering)
    await house.gateway.invoke(house.call(), answering)
    for call in (house.call(), *(house.call(endpoint=f"guess-{number}") for number in range(300))):
        with pytest.raises(CallError):
            await house.gateway.invoke(call, answering)
    transport = httpx.ASGITransport(app=app(house, metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://smalti") as client:

        async def get(path: str, key: str) -> httpx.Response:
            return await client.get(path, headers={"authorization": f"Bearer {key}"})

        for path in ("/metrics", "/api/2.0/smalti/usage", "/api/2.0/smalti/audit"):
            assert (await get(path, house.alice)).status_code == 403
            assert (await get(path, "smk_wrong")).status_code == 401
            assert (await get(path, house.admin)).status_code == 200
        assert (await get("/api/2.0/smalti/audit", "scraping")).status_code == 401
        text = (await get("/metrics", "scraping")).text
        assert 'smalti_requests_total{endpoint="assistant",served_entity="",status="200",task="agent"} 2.0' in text
        assert 'smalti_limits_hit_total{endpoint="assistant"} 1.0' in text
        assert 'smalti_tokens_total{endpoint="assistant",kind="output",served_entity=""} 14.0' in text
        assert 'smalti_guardrail_verdicts_total{action="MASK",endpoint="assistant",guardrail="pii",where="input"} 1.0' in text
        assert 'smalti_first_byte_seconds_count{endpoint="assistant",served_entity=""} 2.0' in text
        assert "smalti_cost_dollars_total" in text
        assert "guess" not in text
        (row,) = (await get("/api/2.0/smalti/usage?by=endpoint&until=9999", house.admin)).json()["rows"][:1]
        assert (row["endpoint"], row["requests"], row["errors"], row["output_tokens"]) == ("assistant", 3, 1, 14)
        assert row["cost"] == pytest.approx(2 * 19 / 1e6)
        assert (await get("/api/2.0/smalti/usage?by=colour", house.admin)).status_code == 400


async def test_each_change_is_in_the_audit_log_with_what_was_before(house: House) -> None:
    engine = house.identity._engine
    house.policies.set("assistant", {"rate_limits": [{"calls": 1}]}, by="root")
    house.policies.set("assistant", {}, by="root")
    house.policies.forget("assistant", by="root")
    key, secret = house.identity.create_key("bob", by="root")
    house.identity.revoke(key.id, by="root")
    house.identity.set_groups("bob", ["support"], by="root")
    house.grants.grant("user:bob", "endpoint:chat", "CAN_VIEW", by=Caller("root", admin=True))
    house.grants.grant("user:bob", "endpoint:chat", "CAN_VIEW")  # changes nothing
    house.grants.revoke("user:bob", "endpoint:chat")
    found = audit.entries(engine, limit=8)[::-1]
    assert [(each["actor"], each["action"]) for each in found] == [
        ("root", "policy.set"),
        ("root", "policy.set"),
        ("root", "policy.remove"),
        ("root", "key.create"),
        ("root", "key.revoke"),
        ("root", "groups.set"),
        ("root", "grants.set"),
        ("command line", "grants.remove"),
    ]
    assert (found[1]["before"], found[1]["after"]) == ({"rate_limits": [{"calls": 1}]}, {})
    assert (found[6]["before"], found[6]["after"]) == ({}, {"user:bob": "CAN_VIEW"})
    assert secret not in str(found)


async def test_keys_that_come_and_go_by_themselves_do_not_drown_changes(house: House) -> None:
    engine, newest = house.identity._engine, audit.entries(house.identity._engine, limit=1)
    key, _ = house.identity.create_key("ann", ttl=60, label="session", by="ann", session=True)
    house.identity.revoke(key.id, by="ann", session=True)
    named, _ = house.identity.create_key("mallory", label="session", by="root")
    changes = audit.entries(engine, limit=2)
    assert [(each["action"], each["subject"]) for each in changes[:1]] == [("key.create", f"key:{named.id}")]
    assert changes[1:] == newest
    whole = [(each["actor"], each["action"]) for each in audit.entries(engine, limit=3, sessions=True)]
    assert whole == [("root", "key.create"), ("ann", "session.end"), ("ann", "session.begin")]
    assert len(audit.entries(engine, subject=f"key:{key.id}")) == 2
    transport = httpx.ASGITransport(app=app(house, Metrics(lambda: 0)))
    async with httpx.AsyncClient(transport=transport, base_url="http://smalti") as client:
        asked = {"headers": {"authorization": f"Bearer {house.admin}"}, "params": {"limit": 2, "sessions": True}}
        told = (await client.get("/api/2.0/smalti/audit", **asked)).json()["entries"]
        assert [each["action"] for each in told] == ["key.create", "session.end"]


async def test_rows_become_files_and_go_when_they_are_old(house: House, tmp_path: Path) -> None:
    import pyarrow.parquet

    for _ in range(3):
        await house.gateway.invoke(house.call(), answering)
    file = tmp_path / "rows.parquet"
    assert export.parquet(house.journal.rows(), file) == 3
    table = pyarrow.parquet.read_table(file)
    assert table.column("total_tokens").to_pylist() == [12, 12, 12]
    with pytest.raises(export.ExportError, match="cannot be written"):
        export.parquet(house.journal.rows(), tmp_path / "missing" / "rows.parquet")
    engine = house.identity._engine
    assert prune(engine, "2000-01-01") == 0
    assert prune(engine, "9999-01-01") == 3
    assert usage(engine, by=()) == [
        {"requests": 0, "errors": None, "input_tokens": 0, "output_tokens": 0, "cost": 0.0},
    ]


def test_the_number_of_series_is_bounded(house: House) -> None:
    metrics = Metrics()
    for number in range(2_000):
        metrics(CallRecord(house.call(endpoint=f"e{number}"), 200, 0, 1, 1))
    assert metrics.exposition().count(b"smalti_requests_total{") == 257
