from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from databricks.sdk.service.serving import EndpointState, ServingEndpointDetailed

from governance.call import Call, CallError, Event
from serving.endpoint import Endpoint, Endpoints


async def engine(call: Call) -> AsyncIterator[Event]:
    yield Event("result", {"result": {}})


def test_shape_is_the_sdks() -> None:
    endpoint = Endpoint(
        "assistant", "agent/v1/responses", engine, {"entity_name": "agents.graphs.rag"}, creator="ann", description="d"
    )
    body = endpoint.to_api(
        "CAN_MANAGE", ai_gateway={"rate_limits": [{"calls": 1, "key": "endpoint", "renewal_period": "minute"}]}
    )
    parsed = ServingEndpointDetailed.from_dict(body)
    assert (parsed.name, parsed.creator, parsed.task, parsed.description) == ("assistant", "ann", "agent/v1/responses", "d")
    assert isinstance(parsed.state, EndpointState)
    assert parsed.config is not None
    assert parsed.config.served_entities is not None
    assert parsed.config.traffic_config is not None
    assert parsed.config.traffic_config.routes is not None
    entity, route = parsed.config.served_entities[0], parsed.config.traffic_config.routes[0]
    assert (entity.entity_name, entity.name) == ("agents.graphs.rag", endpoint.served_name)
    assert (route.served_model_name, route.traffic_percentage) == (entity.name, 100)
    assert parsed.ai_gateway is not None
    assert parsed.ai_gateway.rate_limits is not None
    assert parsed.ai_gateway.rate_limits[0].calls == 1
    assert parsed.permission_level is not None
    assert parsed.permission_level.value == "CAN_MANAGE"
    assert parsed.id == Endpoint("assistant", "llm/v1/chat", engine).id, "an id stays with its name"


def test_unknown_names_get_a_hint() -> None:
    endpoints = Endpoints([Endpoint(name, "llm/v1/chat", engine) for name in ("assistant", "chat", "embed")])
    with pytest.raises(CallError, match="Did you mean 'assistant'") as caught:
        endpoints.get("asistant")
    assert caught.value.status == 404
    assert "'chat'" in endpoints.missing("zzz").message
    assert "GET /v1/models" in endpoints.missing("zzz", among=[]).message
    assert len(endpoints.missing("x" * 5000).message) < 300


def test_registering_replaces_and_removing_removes() -> None:
    endpoints = Endpoints([Endpoint("b", "llm/v1/chat", engine), Endpoint("a", "llm/v1/chat", engine)])
    assert [each.name for each in endpoints] == ["a", "b"]
    endpoints.register(replace(endpoints.get("a"), config_version=2))
    assert endpoints.get("a").served_name == "a-2"
    endpoints.remove("a")
    assert "a" not in endpoints
    with pytest.raises(CallError):
        endpoints.remove("a")


def test_threads_lose_no_registration() -> None:
    endpoints = Endpoints()

    def add(first: int) -> None:
        for number in range(first, first + 50):
            endpoints.register(Endpoint(f"e{number}", "llm/v1/chat", engine))

    threads = [threading.Thread(target=add, args=(start,)) for start in range(0, 200, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(endpoints.list()) == 200


def test_one_that_could_not_be_made_is_not_ready() -> None:
    state = {"deployment": "DEPLOYMENT_FAILED", "deployment_state_message": "no such module"}
    body = Endpoint("a", "agent/v1/responses", engine, {"entity_name": "a", "state": state}).to_api()
    assert body["state"]["ready"] == "NOT_READY"
    assert body["config"]["served_entities"][0]["state"] == state
