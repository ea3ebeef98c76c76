"""Registered models that smalti.yaml declares: served once they are registered, over restarts, and before what the API made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.settings import Settings, SettingsError
from tests.live import serving, wait_until
from tests.serving.models import registry, small

ENTITY = {"entity_name": "m.s.small", "entity_version": "champion"}
AT = "/api/2.0/serving-endpoints"
ROW = {"dataframe_records": [{"word": "hello"}]}


def two(name: str) -> str:
    """The setting of an endpoint with two entities of one model."""
    routes = [{"served_entity_name": "a", "traffic_percentage": 50}, {"served_entity_name": "b", "traffic_percentage": 50}]
    entities = [{"name": each, **ENTITY} for each in ("a", "b")]
    config = {"served_entities": entities, "traffic_config": {"routes": routes}}
    return json.dumps([{"name": name, "config": config, "description": "Declared."}])


def ready(client: httpx.Client, name: str) -> bool:
    return client.get(f"{AT}/{name}").json()["state"]["ready"] == "READY"


def test_a_declared_model_is_served_once_it_is_registered_and_the_file_wins(tmp_path: Path) -> None:
    home = tmp_path / "home"
    model = small(home / "mlartifacts" / "small")
    with serving(home, SMALTI_ENDPOINTS=two("words")) as live, live.client() as client:
        wait_until(lambda: "no registered model" in json.dumps(client.get(f"{AT}/words").json()), 60)
        asked = client.post("/serving-endpoints/words/invocations", json=ROW)
        assert (asked.status_code, asked.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
        registry(home, model)
        wait_until(lambda: ready(client, "words"), 90)
        served = {client.post("/serving-endpoints/words/invocations", json=ROW).headers["served-model-name"] for _ in range(8)}
        assert served == {"a", "b"}
        entities = client.get(f"{AT}/words").json()["config"]["served_entities"]
        assert [each["entity_version"] for each in entities] == ["1", "1"]
        assert "ready after start 1" in client.get(f"{AT}/words/served-models/a/build-logs").json()["logs"]
        for answer in (
            client.put(f"{AT}/words/config", json={"served_entities": [{"name": "a", **ENTITY}]}),
            client.delete(f"{AT}/words"),
        ):
            assert (answer.status_code, "declared in the server's settings" in answer.json()["message"]) == (409, True)
        made = {"name": "later", "config": {"served_entities": [{"name": "mine", **ENTITY}]}}
        assert client.post(AT, json=made).status_code == 200
        wait_until(lambda: ready(client, "later"), 90)
    with serving(home, SMALTI_ENDPOINTS=two("later")) as live, live.client() as client:
        wait_until(lambda: ready(client, "later"), 90)
        assert client.post("/serving-endpoints/later/invocations", json=ROW).headers["served-model-name"] in ("a", "b")
        assert "endpoint later is declared in the settings, which win" in (tmp_path / "home.log").read_text()
    with serving(home) as live, live.client() as client:  # what the API made was kept
        wait_until(lambda: ready(client, "later"), 90)
        assert client.post("/serving-endpoints/later/invocations", json=ROW).headers["served-model-name"] == "mine"


@pytest.mark.parametrize(
    ("entity", "traffic", "line", "message"),
    [
        ("entity_name: m.s.small", "", 5, "needs its entity_version"),
        ("entity_name: small\n      entity_version: 1", "", 5, "entity_name"),
        ("entity_version: 1", "", 5, "exactly one of"),
        ("entity_name: m.s.small\n      entity_version: 1\n      workload_size: Huge", "", 7, "Small"),
        ("entity_name: m.s.small\n      entity_version: 1\n      size: Small", "", 7, "no such key"),
        ("external_model: {name: x}\n      workload_size: Small", "", 5, "workload_size is for a registered model"),
        (
            "entity_name: m.s.small\n      entity_version: 1\n      name: a",
            "    traffic_config: {routes: [{served_entity_name: a, traffic_percentage: 70}]}\n",
            3,
            "must add to 100; it adds to 70",
        ),
    ],
)
def test_a_wrong_declaration_names_its_line(tmp_path: Path, entity: str, traffic: str, line: int, message: str) -> None:
    file = tmp_path / "smalti.yaml"
    file.write_text(f"endpoints:\n- name: words\n  config:\n    served_entities:\n    - {entity}\n{traffic}")
    with pytest.raises(SettingsError) as told:
        Settings.load(file)
    assert f"smalti.yaml:{line}: " in str(told.value)
    assert message in str(told.value)


def test_numbers_and_the_api_s_fields_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "smalti.yaml"
    given: dict[str, Any] = {
        "entity_name": "m.s.small",
        "entity_version": 3,
        "scale_to_zero_enabled": True,
        "memory_limit_mb": 512,
    }
    file.write_text(json.dumps({"endpoints": [{"name": "words", "config": {"served_entities": [given]}}]}))
    config = Settings.load(file).endpoints[0].config.registered
    assert config == {"served_entities": [{**given, "entity_version": "3"}]}
