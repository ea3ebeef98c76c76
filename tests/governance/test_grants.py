from __future__ import annotations

import pytest
from sqlalchemy import Engine

from governance.call import Caller, CallError
from governance.grants import Grant, Grants

ALICE = Caller("alice", groups=frozenset({"support"}))
NEEDS = {"endpoint:assistant": ["index:main.default.docs", "endpoint:chat"]}


@pytest.fixture
def grants(database: Engine) -> Grants:
    return Grants(database, lambda securable: NEEDS.get(securable, ()))


def test_what_is_not_granted_is_denied_and_the_error_says_what_to_do(grants: Grants) -> None:
    with pytest.raises(CallError) as caught:
        grants.check(ALICE, "endpoint:assistant")
    assert caught.value.status == 403
    assert caught.value.code == "PERMISSION_DENIED"
    assert "user:alice may not call endpoint:assistant" in caught.value.message
    assert "smalti grants add user:alice endpoint:assistant CAN_QUERY" in caught.value.message
    grants.check(Caller("root", admin=True), "endpoint:assistant", "CAN_MANAGE")


def test_a_models_levels_may_be_called_as_unity_catalog_does(grants: Grants) -> None:
    grants.grant("user:alice", "model:main.default.x", "EXECUTE")
    assert grants.level(ALICE, "model:main.default.x") == "CAN_QUERY"
    grants.grant("user:alice", "model:main.default.x", "MANAGE")
    assert grants.level(ALICE, "model:main.default.x") == "CAN_MANAGE"


@pytest.mark.parametrize("principal", ["user:alice", "group:support"])
def test_levels_include_those_below(grants: Grants, principal: str) -> None:
    grants.grant(principal, "endpoint:other", "CAN_QUERY")
    assert [grants.allowed(ALICE, "endpoint:other", level) for level in ("CAN_VIEW", "CAN_QUERY", "CAN_MANAGE")] == [
        True,
        True,
        False,
    ]
    assert grants.level(ALICE, "endpoint:other") == "CAN_QUERY"
    assert grants.level(ALICE, "index:other") is None
    grants.grant(principal, "endpoint:other", "CAN_VIEW")  # one direct level a principal
    assert grants.level(ALICE, "endpoint:other") == "CAN_VIEW"


def test_a_user_is_no_service_principal_and_no_group(grants: Grants) -> None:
    grants.grant("service_principal:alice", "endpoint:other", "CAN_MANAGE")
    grants.grant("group:alice", "endpoint:other", "CAN_MANAGE")
    assert not grants.allowed(ALICE, "endpoint:other", "CAN_VIEW")
    assert grants.allowed(Caller("alice", "service_principal"), "endpoint:other")


def test_an_agent_brings_what_it_needs_and_takes_it_back(grants: Grants) -> None:
    granted = grants.grant("user:alice", "endpoint:assistant", "CAN_QUERY")
    assert granted == [
        Grant("user:alice", "endpoint:assistant", "CAN_QUERY"),
        Grant("user:alice", "index:main.default.docs", "CAN_QUERY", "endpoint:assistant"),
        Grant("user:alice", "endpoint:chat", "CAN_QUERY", "endpoint:assistant"),
    ]
    grants.grant("user:alice", "endpoint:chat", "CAN_VIEW")
    assert grants.level(ALICE, "endpoint:chat") == "CAN_QUERY"
    assert grants.revoke("user:alice", "endpoint:assistant") == 3
    assert grants.level(ALICE, "index:main.default.docs") is None
    assert grants.level(ALICE, "endpoint:chat") == "CAN_VIEW"  # granted by itself
    grants.grant("user:alice", "endpoint:assistant", "CAN_QUERY")
    assert len(grants.grant("user:alice", "endpoint:assistant", "CAN_VIEW")) == 1
    assert not grants.allowed(ALICE, "index:main.default.docs")


def test_who_manages_an_endpoint_hands_on_only_what_is_theirs(grants: Grants) -> None:
    grants.grant("user:alice", "endpoint:assistant", "CAN_MANAGE")
    granted = grants.grant("user:bob", "endpoint:assistant", "CAN_QUERY", by=ALICE)
    assert [grant.securable for grant in granted] == ["endpoint:assistant"]
    grants.grant("user:alice", "index:main.default.docs", "CAN_MANAGE")
    granted = grants.grant("user:bob", "endpoint:assistant", "CAN_QUERY", by=ALICE)
    assert [grant.securable for grant in granted] == ["endpoint:assistant", "index:main.default.docs"]


def test_replacing_is_all_or_nothing(grants: Grants) -> None:
    grants.apply("endpoint:assistant", [("user:alice", "CAN_QUERY"), ("group:ops", "CAN_MANAGE")])
    with pytest.raises(ValueError, match="no level"):
        grants.apply("endpoint:assistant", [("user:bob", "CAN_QUERY"), ("user:eve", "ALL")], replace=True)
    assert grants.allowed(ALICE, "endpoint:assistant")
    grants.apply("endpoint:assistant", [("user:bob", "CAN_QUERY")], replace=True)
    assert not grants.allowed(ALICE, "endpoint:assistant")
    assert {grant.principal for grant in grants.list()} == {"user:bob"}
    assert [grant.securable for grant in grants.list(principal="user:bob")] == [
        "endpoint:assistant",
        "endpoint:chat",
        "index:main.default.docs",
    ]


def test_a_securable_that_is_gone_leaves_no_grants(grants: Grants) -> None:
    grants.grant("user:alice", "endpoint:assistant", "CAN_QUERY")
    grants.forget("endpoint:assistant")
    assert grants.list() == []


def test_another_process_sees_a_grant_and_its_end_at_once(grants: Grants, database: Engine) -> None:
    from sqlalchemy import create_engine

    elsewhere = create_engine(database.url)
    other = Grants(elsewhere)
    other.grant("user:alice", "endpoint:x", "CAN_QUERY")
    grants.check(ALICE, "endpoint:x")
    other.revoke("user:alice", "endpoint:x")
    assert not grants.allowed(ALICE, "endpoint:x")
    elsewhere.dispose()


@pytest.mark.parametrize(
    ("principal", "securable", "level"),
    [
        ("alice", "endpoint:x", "CAN_QUERY"),
        ("robot:x", "endpoint:x", "CAN_QUERY"),
        ("user:", "endpoint:x", "CAN_QUERY"),
        ("user:a\nb", "endpoint:x", "CAN_QUERY"),
        ("user:a", "x", "CAN_QUERY"),
        ("user:a", "table:x", "CAN_QUERY"),
        ("user:a", "endpoint:x", "can_query"),
    ],
)
def test_malformed_grants_are_clear_errors(grants: Grants, principal: str, securable: str, level: str) -> None:
    with pytest.raises(ValueError, match=r"write user:NAME|write endpoint:NAME|CAN_VIEW, CAN_QUERY, CAN_MANAGE"):
        grants.grant(principal, securable, level)
    assert grants.list() == []
