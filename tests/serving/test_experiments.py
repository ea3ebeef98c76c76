"""A/B tests on a real server: calls are dealt to the arms, watched, promoted and rolled back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live import Live, serving, smalti, start, stop, wait_until
from tests.serving.upstream import KEY, Upstream

AT = "/api/2.0/smalti/experiments"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("state") / "home") as running:
        yield running


@pytest.fixture
def endpoint(live: Live, upstream: Upstream, request: pytest.FixtureRequest) -> str:
    """An endpoint of two entities, all traffic on `a`; each test has its own."""
    name = request.node.name.replace("_", "-")[:60]
    config = {"custom_provider_url": upstream.url, "bearer_token_auth": {"token_plaintext": KEY}}
    model = {"name": "echo", "provider": "custom", "task": "llm/v1/chat", "custom_provider_config": config}
    routes = [{"served_model_name": "a", "traffic_percentage": 100}, {"served_model_name": "b", "traffic_percentage": 0}]
    entities = [{"name": each, "external_model": model} for each in "ab"]
    with live.client() as client:
        body = {"name": name, "config": {"served_entities": entities, "traffic_config": {"routes": routes}}}
        made = client.post("/api/2.0/serving-endpoints", json=body)
        assert made.status_code == 200, made.text
        wait_until(lambda: client.get(f"/api/2.0/serving-endpoints/{name}").json()["state"]["ready"] == "READY", 60)
        wait_until(
            lambda: client.get(f"/api/2.0/serving-endpoints/{name}").json()["state"]["config_update"] == "NOT_UPDATING", 60
        )
    return name


def ask(client: httpx.Client, endpoint: str, times: int) -> list[tuple[str, str]]:
    """Arm and request id of so many answers."""
    body = {"messages": [{"role": "user", "content": "hi"}], "usage_context": {"smalti_arm": "a", "smalti_experiment": "mine"}}

    def one(_: int) -> tuple[str, str]:
        answer = client.post(f"/serving-endpoints/{endpoint}/invocations", json=body)
        assert answer.status_code == 200, answer.text
        return answer.headers["served-model-name"], answer.headers["x-request-id"]

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(times)))


def ask_both(client: httpx.Client, endpoint: str) -> list[tuple[str, str]]:
    """So many answers of both arms that no chance makes their numbers look like a wrong split."""
    answers = ask(client, endpoint, 120)
    while abs(sum(1 if arm == "a" else -1 for arm, _ in answers)) > 40:
        answers += ask(client, endpoint, 20)
    return answers


def tell(client: httpx.Client, name: str, answers: list[tuple[str, str]], **values: float) -> None:
    for arm, request_id in answers:
        told = client.post(f"{AT}/{name}/events", json={"request_id": request_id, "metric": "quality", "value": values[arm]})
        assert told.status_code == 200, told.text


def shares(client: httpx.Client, endpoint: str) -> dict[str, int]:
    config = client.get(f"/api/2.0/serving-endpoints/{endpoint}").json()["config"]["traffic_config"]
    return {route["served_entity_name"]: route["traffic_percentage"] for route in config["routes"] if route["traffic_percentage"]}


def wanted(endpoint: str, name: str, **more: Any) -> dict[str, Any]:
    arms = [{"served_entity_name": each, "traffic_percentage": 50} for each in "ab"]
    return {"name": name, "endpoint": endpoint, "arms": arms, "sticky": "request", "metric": "quality", **more}


def test_the_better_arm_is_found_promoted_and_taken_back(live: Live, endpoint: str) -> None:
    with live.client() as client:
        made = client.post(AT, json=wanted(endpoint, "better", alias="champion"))
        assert made.status_code == 200, made.text
        assert (made.json()["state"], made.json()["control"]) == ("RUNNING", "a")
        assert shares(client, endpoint) == {"a": 50, "b": 50}
        assert client.post(AT, json=wanted(endpoint, "second")).status_code == 409
        early = client.post(f"{AT}/better/promote", json={})
        assert early.status_code == 409
        assert "No arm is shown to be the best" in early.json()["message"]
        answers = ask_both(client, endpoint)
        tell(client, "better", answers, a=0.0, b=1.0)
        found = client.get(f"{AT}/better").json()
        counted = Counter(arm for arm, _ in answers)
        assert {arm["served_entity_name"]: arm["units"] for arm in found["arms"]} == counted
        assert found["verdict"]["winner"] == "b"
        assert found["sample_ratio"]["ok"]
        assert {metric["name"] for metric in found["metrics"]} >= {"quality", "error", "latency_ms", "ttfb_ms", "turns"}
        shown = smalti("experiments", "show", "better", home=live.home)
        assert "b is the best in quality" in " ".join(shown.stdout.split()), shown.stdout + shown.stderr

        done = client.post(f"{AT}/better/promote", json={}).json()
        assert (done["state"], done["verdict"]["winner"]) == ("PROMOTED", "b")
        assert "alias champion is not set, for b is no registered model" in done["reason"]
        assert shares(client, endpoint) == {"b": 100}
        assert {arm for arm, _ in ask(client, endpoint, 3)} == {"b"}
        back = smalti("experiments", "rollback", "better", "--reason", "too dear", "--json", home=live.home)
        assert json.loads(back.stdout)["state"] == "ROLLED_BACK"
        assert shares(client, endpoint) == {"a": 100}
        audited = [each["action"] for each in json.loads(smalti("audit", "--json", home=live.home).stdout)]
        assert [a for a in audited if a.startswith("experiment.")][:3] == [
            "experiment.rollback",
            "experiment.promote",
            "experiment.create",
        ]


def test_a_broken_guardrail_gives_the_traffic_back_by_itself(live: Live, endpoint: str) -> None:
    with live.client() as client:
        guard = [{"metric": "quality", "margin": 0.2}]
        assert client.post(AT, json=wanted(endpoint, "guarded", guardrails=guard)).status_code == 200
        tell(client, "guarded", ask_both(client, endpoint), a=1.0, b=0.0)
        wait_until(lambda: shares(client, endpoint) == {"a": 100}, 60)  # nobody asked for it
        found = client.get(f"{AT}/guarded").json()
        assert found["state"] == "ROLLED_BACK"
        assert "b breaks the guardrail on quality" in found["verdict"]["text"]


def test_a_shadow_is_measured_and_answers_nobody(live: Live, endpoint: str) -> None:
    with live.client() as client:
        body = {"name": "dark", "endpoint": endpoint, "mode": "shadow", "sticky": "request", "metric": "latency_ms"}
        assert client.post(AT, json=body).json()["control"] == "a"
        assert {arm for arm, _ in ask(client, endpoint, 40)} == {"a"}

        def units() -> list[int]:
            return [arm["units"] for arm in client.get(f"{AT}/dark").json()["arms"]]

        wait_until(lambda: units() == [40, 40], 60)
        assert client.post(f"{AT}/dark/rollback", json={}).json()["state"] == "ROLLED_BACK"
        assert "shadow" not in client.get(f"/api/2.0/serving-endpoints/{endpoint}").json()["config"]["traffic_config"]


def test_track_and_stop_ends_by_itself_with_the_winner(live: Live, endpoint: str) -> None:
    with live.client() as client:
        assert client.post(AT, json=wanted(endpoint, "tracked", mode="track-and-stop")).status_code == 200
        tell(client, "tracked", ask_both(client, endpoint), a=0.0, b=1.0)
        assert client.get(f"{AT}/tracked").json()["state"] == "DECIDED"
        assert shares(client, endpoint) == {"b": 100}
        assert client.post(f"{AT}/tracked/promote", json={}).json()["state"] == "PROMOTED"


def test_it_takes_management_of_the_endpoint_and_whoever_changes_the_traffic_ends_it(live: Live, endpoint: str) -> None:
    key = json.loads(smalti("keys", "create", "eve", "--endpoint", endpoint, "--json", home=live.home).stdout)["key"]
    eve = {"Authorization": f"Bearer {key}"}
    with live.client() as client:
        assert client.post(AT, json=wanted(endpoint, "mine"), headers=eve).status_code == 403
        assert client.post(AT, json=wanted(endpoint, "mine")).status_code == 200
        [(_, foreign)] = ask(client, endpoint, 1)
        for path in ("", "/promote", "/rollback"):
            answer = client.request("POST" if path else "GET", f"{AT}/mine{path}", headers=eve)
            assert answer.status_code == 403
        assert all(each["name"] != "mine" for each in client.get(AT, headers=eve).json()["experiments"])
        event = {"request_id": foreign, "metric": "quality", "value": 1}
        assert client.post(f"{AT}/mine/events", json=event, headers=eve).status_code == 404
        assert client.post(f"{AT}/mine/events", json={**event, "value": "much"}).status_code == 400
        assert client.post(f"{AT}/mine/events", json={**event, "metric": "latency_ms"}).status_code == 400
        assert client.get(f"{AT}/nothing").status_code == 404
        assert client.post(AT, json={**wanted("nowhere", "x"), "control": "z"}).status_code == 400
        traffic = {"routes": [{"served_model_name": "b", "traffic_percentage": 100}]}
        changed = client.put(f"/api/2.0/serving-endpoints/{endpoint}/config", json={"traffic_config": traffic})
        assert changed.status_code == 200, changed.text
        found = client.get(f"{AT}/mine").json()
        assert (found["state"], found["reason"]) == ("STOPPED", "the endpoint's traffic was changed by someone else")
        assert shares(client, endpoint) == {"b": 100}


def test_an_experiment_of_the_settings_begins_by_itself_and_outlives_a_kill(tmp_path: Path, upstream: Upstream) -> None:
    external = f"{{name: echo, provider: custom, base_url: '{upstream.url}', api_key_env: UPSTREAM_KEY}}"
    (tmp_path / "smalti.yaml").write_text(
        f"""
endpoints:
  - name: declared
    config:
      served_entities:
        - {{name: a, external_model: {external}}}
        - {{name: b, external_model: {external}}}
      traffic_config:
        routes:
          - {{served_entity_name: a, traffic_percentage: 100}}
          - {{served_entity_name: b, traffic_percentage: 0}}
experiments:
  - name: which
    endpoint: declared
    sticky: request
    metric: latency_ms
    guardrails: []
    arms: [{{served_entity_name: a, traffic_percentage: 50}}, {{served_entity_name: b, traffic_percentage: 50}}]
"""
    )
    for kill in (True, False):
        live = start(tmp_path / "home", UPSTREAM_KEY=KEY, config=tmp_path / "smalti.yaml")
        try:
            with live.client() as client:
                wait_until(lambda client=client: client.get(f"{AT}/which").status_code == 200, 60)
                before = sum(arm["units"] for arm in client.get(f"{AT}/which").json()["arms"])
                assert before == (0 if kill else 20)
                assert {arm for arm, _ in ask(client, "declared", 20)} == {"a", "b"}
                wait_until(lambda client=client, units=before + 20: _units(client, "which") == units, 30)
                if not kill:
                    done = client.post(f"{AT}/which/promote", json={"served_entity_name": "b"}).json()
                    assert "write it into the settings file" in done["reason"]
                    assert shares(client, "declared") == {"b": 100}
        finally:
            live.kill() if kill else stop(live)


def _units(client: httpx.Client, name: str) -> int:
    return sum(arm["units"] for arm in client.get(f"{AT}/{name}").json()["arms"])
