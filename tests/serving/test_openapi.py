from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.live import Live, serving

CALLS = ["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/serving-endpoints/{name}/invocations"]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("openapi")
    (docs := home / "docs").mkdir()
    (docs / "tiles.md").write_text("# Tiles\n\nA tessera is a small tile of glass.\n")
    with serving(home / "state", docs) as opened:
        yield opened


@pytest.fixture(scope="module")
def described(live: Live) -> dict[str, Any]:
    with live.client() as client:
        return client.get("/openapi.json").raise_for_status().json()


def test_a_key_is_needed(live: Live) -> None:
    assert httpx.get(f"{live.url}/openapi.json", trust_env=False).status_code == 401


def test_each_operation_is_named_once_and_has_its_parameters(described: dict[str, Any]) -> None:
    operations = [(path, each) for path, methods in described["paths"].items() for each in methods.values()]
    ids = [each["operationId"] for _, each in operations]
    assert len(ids) == len(set(ids)) > 200
    for path, each in operations:
        assert [parameter["name"] for parameter in each["parameters"]] == re.findall(r"\{(\w+)\}", path)
    assert not any(path.startswith(("/_nicegui", "/login")) for path in described["paths"])


@pytest.mark.parametrize("path", CALLS)
def test_the_examples_of_calls_are_answered(live: Live, described: dict[str, Any], path: str) -> None:
    example = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    with live.client() as client:
        assert client.post(path.replace("{name}", "assistant"), json=example).status_code == 200


def test_a_door_that_is_not_there_is_not_described(live: Live, described: dict[str, Any]) -> None:
    """Every described GET without parameters is one that this server knows."""
    with live.client() as client:
        for path, methods in described["paths"].items():
            if "get" in methods and "{" not in path:
                answer = client.get(path)
                told = answer.json() if "json" in answer.headers.get("content-type", "") else {}
                assert told.get("error_code") != "ENDPOINT_NOT_FOUND", path
                assert answer.status_code < 500, path
