from __future__ import annotations

from typing import Any

import pytest

from governance.call import CallError
from serving.config import parse

MODEL = {"entity_name": "m.s.model", "entity_version": "1"}


def two(*shares: int) -> dict[str, Any]:
    routes = [{"served_entity_name": name, "traffic_percentage": share} for name, share in zip("ab", shares, strict=True)]
    return {"served_entities": [{**MODEL, "name": "a"}, {**MODEL, "name": "b"}], "traffic_config": {"routes": routes}}


def test_what_is_left_out_is_filled_in() -> None:
    made = parse({"served_entities": [{**MODEL, "entity_version": 1, "workload_size": "Small", "workload_type": "CPU"}]})
    assert made["served_entities"] == [{"name": "m-s-model-1", **MODEL, "workload_size": "Small", "workload_type": "CPU"}]
    assert made["traffic_config"]["routes"] == [
        {"served_model_name": "m-s-model-1", "served_entity_name": "m-s-model-1", "traffic_percentage": 100}
    ]
    older = parse({"served_models": [{"model_name": "m.s.model", "model_version": "1", "scale_to_zero_enabled": True}]})
    assert older["served_entities"][0]["entity_name"] == "m.s.model"


def test_traffic_alone_keeps_the_entities() -> None:
    current = parse(two(50, 50))
    changed = parse({"traffic_config": two(10, 90)["traffic_config"]}, current=current)
    assert changed["served_entities"] == current["served_entities"]
    assert [route["traffic_percentage"] for route in changed["traffic_config"]["routes"]] == [10, 90]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (two(50, 49), "must add to 100; it adds to 99"),
        (two(150, -50), "traffic_config.routes.0.traffic_percentage"),
        ({"served_entities": two(1, 1)["served_entities"]}, "say which share a and b get"),
        ({"served_entities": [MODEL | {"name": "a"}] * 2}, "Two served entities are named 'a'"),
        ({"served_entities": []}, "name at least one model"),
        ({"served_entities": [{"entity_name": "m.s.model"}]}, "'served_entities\\[0\\].entity_version' is missing"),
        ({"served_entities": [MODEL | {"workload_size": "Huge"}]}, "served_entities.0.workload_size"),
        ({"served_entities": [MODEL | {"memory_limit_mb": 1}]}, "served_entities.0.memory_limit_mb"),
        ({"served_entities": [MODEL | {"name": "../up"}]}, "must be 1 to 63 letters"),
        ([], "must be an object"),
    ],
)
def test_a_wrong_config_names_its_field(body: Any, message: str) -> None:
    with pytest.raises(CallError, match=message) as refused:
        parse(body)
    assert refused.value.status == 400
