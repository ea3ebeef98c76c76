"""Feedback over HTTP: which answer, whose thumb, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from governance.call import Caller, not_found
from serving import errors, feedback

pytestmark = pytest.mark.anyio
AT = "/api/2.0/smalti/feedback"
GIVEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def kept() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture
async def client(kept: list[tuple[Any, ...]]) -> Any:
    async def keep(request_id: str, value: bool, comment: str | None, caller: Caller) -> str:
        if request_id != GIVEN:
            raise not_found("no such answer")
        kept.append((request_id, value, comment, caller.name))
        return "a-1"

    app = FastAPI()
    app.include_router(feedback.router(lambda: Caller("ann"), keep))
    errors.install(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://smalti") as client:
        yield client


@pytest.mark.parametrize(
    "named",
    [{"request_id": GIVEN}, {"response_id": f"resp_{GIVEN}"}, {"trace_id": f"tr-{GIVEN}"}, {"id": f"chatcmpl-{GIVEN}"}],
)
async def test_an_answer_is_named_by_any_of_its_ids(client: Any, kept: list[Any], named: dict[str, str]) -> None:
    answer = await client.post(AT, json={**named, "value": False, "comment": "wrong year"})
    assert answer.json() == {"request_id": GIVEN, "trace_id": f"tr-{GIVEN}", "assessment_id": "a-1"}
    assert kept == [(GIVEN, False, "wrong year", "ann")]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"value": True}, 400, "'request_id'"),
        ({"request_id": GIVEN}, 400, "'value'"),
        ({"request_id": GIVEN, "value": "yes"}, 400, "'value'"),
        ({"request_id": "other", "value": True}, 404, "no such answer"),
        ([1], 400, "JSON object"),
    ],
)
async def test_what_is_wrong_is_said(client: Any, kept: list[Any], body: Any, status: int, said: str) -> None:
    answer = await client.post(AT, json=body)
    assert answer.status_code == status
    assert said in answer.json()["message"]
    assert not kept
