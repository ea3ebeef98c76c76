"""Models that go wrong, on a real server and as databricks-sdk sees it: each is told, and what serves beside it serves on."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config
from databricks.sdk.service import serving as s

from tests.live import Live, serving, wait_until
from tests.serving.models import registry, small

SOON = datetime.timedelta(seconds=120)
ROW = [{"word": "hello"}]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("state") / "home"
    registry(home, small(home / "mlartifacts" / "small"))
    # no environment is made from anywhere: what a model asks for cannot be had
    with serving(home, SMALTI_MODEL_IDLE_SECONDS="1", PIP_NO_INDEX="1") as running:
        yield running


@pytest.fixture(scope="module")
def w(live: Live) -> WorkspaceClient:
    made = WorkspaceClient(config=Config(host=live.url, token=live.key, retry_timeout_seconds=5))
    made.serving_endpoints.create_and_wait("words", config=config(), timeout=SOON)
    return made


def config(**fields: object) -> s.EndpointCoreConfigInput:
    entity = s.ServedEntityInput(name="a", entity_name="m.s.small", entity_version="champion", **fields)  # type: ignore[arg-type]
    return s.EndpointCoreConfigInput(name="", served_entities=[entity])


def refused(w: WorkspaceClient, **fields: object) -> str:
    """Update `words`, which fails and leaves what served; the reason that the failed entity gives."""
    with pytest.raises(Exception, match="UPDATE_FAILED"):
        w.serving_endpoints.update_config_and_wait("words", served_entities=config(**fields).served_entities, timeout=SOON)
    found = w.serving_endpoints.get("words")
    assert found.state is not None
    assert found.state.ready == s.EndpointStateReady.READY
    assert w.serving_endpoints.query("words", dataframe_records=ROW).predictions
    assert found.pending_config is not None
    entity = (found.pending_config.served_entities or [])[0]
    assert entity.state is not None
    assert entity.state.deployment == s.ServedModelStateDeployment.DEPLOYMENT_FAILED
    return entity.state.deployment_state_message or ""


def test_a_model_that_cannot_be_loaded_says_why_and_the_old_one_serves(w: WorkspaceClient) -> None:
    assert "ValueError: the weights are of another shape" in refused(w, environment_vars={"LOAD": "raise"})


def test_a_model_whose_load_eats_memory_is_ended(live: Live, w: WorkspaceClient) -> None:
    entity = {"name": "a", "entity_name": "m.s.small", "entity_version": "1", "environment_vars": {"LOAD": "eat"}}
    body = {"name": "hungry", "config": {"served_entities": [{**entity, "memory_limit_mb": 512}]}}
    with live.client() as client:  # `memory_limit_mb` is Smalti's own
        client.post("/api/2.0/serving-endpoints", json=body).raise_for_status()
        at = "/api/2.0/serving-endpoints/hungry"
        wait_until(lambda: client.get(at).json()["state"]["config_update"] == "UPDATE_FAILED", 90)
        assert "more than its limit of 512 MB" in client.get(at).text
        assert client.get(at).json()["state"]["ready"] == "NOT_READY"
        asked = client.post("/serving-endpoints/hungry/invocations", json={"dataframe_records": ROW})
        assert (asked.status_code, "will not be until it is updated" in asked.json()["message"]) == (400, True)  # not tried again
    w.serving_endpoints.delete("hungry")


def test_requirements_that_conflict_are_told(live: Live, w: WorkspaceClient) -> None:
    needs = live.home / "mlartifacts" / "small" / "requirements.txt"
    needs.write_text("numpy==1.26.0\nnumpy==1.26.1\n")
    try:
        assert "numpy" in refused(w, environment_vars={"ANOTHER": "entity"})
    finally:
        needs.unlink()


def test_a_model_scales_to_zero_and_the_next_call_starts_it(live: Live, w: WorkspaceClient) -> None:
    se = w.serving_endpoints
    se.create_and_wait("idle", config=config(scale_to_zero_enabled=True), timeout=SOON)
    first = (se.query("idle", dataframe_records=ROW).predictions or [])[0]
    wait_until(lambda: not Path(f"/proc/{first}").exists(), 60)
    found = se.get("idle")
    assert "Scaled to zero" in str(found.as_dict())
    assert found.state is not None
    assert found.state.ready == s.EndpointStateReady.READY
    assert (se.query("idle", dataframe_records=ROW).predictions or [])[0] != first
    assert "start 2" in se.build_logs("idle", "a").logs
