from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from governance.call import Call, CallError, Event
from serving.config import hide, parse, readable, vouch
from serving.declarations import EndpointDeclaration
from serving.declared import declare
from serving.engines.external import Timeouts
from serving.engines.providers import address_of, upstream_of
from serving.engines.upstream import ModelSettingError
from tests.serving.upstream import KEY, TEXT, Upstream

AZURE = {
    "openai_api_type": "azure",
    "openai_api_base": "https://mine.openai.azure.com/",
    "openai_api_version": "2024-10-21",
    "openai_deployment_name": "gpt",
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    opened = Upstream()
    yield opened
    opened.close()


def entity(provider: str = "custom", task: str = "llm/v1/chat", name: str = "echo", **fields: Any) -> dict[str, Any]:
    return {"external_model": {"name": name, "provider": provider, "task": task, **fields}}


def model(provider: str, **fields: Any) -> dict[str, Any]:
    return parse({"served_entities": [entity(provider, **fields)]})["served_entities"][0]["external_model"]


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (model("openai"), "https://api.openai.com/v1"),
        (model("openai", openai_config={"openai_api_base": "https://x.example/v1/"}), "https://x.example/v1"),
        (model("openai", openai_config=AZURE), "https://mine.openai.azure.com/openai/deployments/gpt"),
        (model("anthropic"), "https://api.anthropic.com"),
        (
            model("databricks-model-serving", databricks_model_serving_config={"databricks_workspace_url": "x.example"}),
            "https://x.example/serving-endpoints",
        ),
        (
            model("custom", custom_provider_config={"custom_provider_url": "https://x.example/v1/chat/completions"}),
            "https://x.example/v1",
        ),
        (
            model("custom", custom_provider_config={"custom_provider_url": "https://x.example/v1/embeddings"}),
            "https://x.example/v1",
        ),
        (model("ollama"), "http://127.0.0.1:11434/v1"),
    ],
)
def test_each_provider_has_its_address(given: dict[str, Any], address: str) -> None:
    assert address_of(given) == address


def test_azure_and_organizations_are_told_as_their_servers_want_it() -> None:
    config = {**AZURE, "openai_api_key": "secret:1", "openai_organization": "org"}
    made = upstream_of({**model("openai", openai_config=AZURE), "openai_config": config}, str, key_from="x", reach="public")
    assert (made.query, made.header, made.key) == ("api-version=2024-10-21", "api-key", "secret:1")
    assert made.headers == {"openai-organization": "org"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (entity("palm"), "provider' is 'palm'; served are openai, anthropic"),
        (entity("openai", "llm/v1/rank"), "task' is 'llm/v1/rank'"),
        (entity("anthropic", "llm/v1/embeddings"), "models of anthropic have llm/v1/chat"),
        (entity("openai", openai_config={"openai_api_type": "azuread"}), "openai and azure are read"),
        (entity("openai", openai_config={"openai_api_type": "azure"}), "openai_api_base' is missing"),
        (entity("custom"), "gives no address"),
        (entity("custom", custom_provider_config={"custom_provider_url": "ftp://x"}), "gives no address"),
        (entity("custom", custom_provider_config={"custom_provider_url": "http://a:b@x/v1"}), "holds no credentials"),
        (
            entity("custom", custom_provider_config={"custom_provider_url": "http://x", "api_key_auth": {"key": "a\r\nb"}}),
            "name of a header",
        ),
        (entity("openai", openai_config={"openai_api_key": "sk-123"}), "send openai_api_key_plaintext"),
    ],
)
def test_what_cannot_be_called_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError, match=message) as caught:
        parse({"served_entities": [wrong]})
    assert caught.value.status == 400


def test_only_an_administrator_opens_this_machine_and_private_networks() -> None:
    def reach(config: dict[str, Any]) -> str:
        return config["served_entities"][0]["external_model"]["reach"]

    own = parse({"served_entities": [entity("ollama")]})
    assert reach(vouch(own, None, admin=True)) == "own"
    assert reach(vouch(own, None, admin=False)) == "public"
    forged = parse({"served_entities": [entity("ollama", reach="any")]})
    assert reach(vouch(forged, None, admin=False)) == "public"
    private = parse({"served_entities": [entity("ollama", private_network=True)]})
    with pytest.raises(CallError, match="administrator's to set"):
        vouch(private, None, admin=False)
    served = vouch(private, None, admin=True)
    assert reach(served) == "private"
    assert vouch(served, served, admin=False) == served  # who may manage it may go on changing it
    assert reach(vouch(own, served, admin=False)) == "private"
    moved = entity("custom", custom_provider_config={"custom_provider_url": "http://other.example/v1"}, reach="private")
    assert reach(vouch(parse({"served_entities": [moved]}), served, admin=False)) == "public"


def test_no_key_is_read_back() -> None:
    given = {
        "openai": {"openai_config": {"openai_api_key_plaintext": KEY}},
        "anthropic": {"anthropic_config": {"anthropic_api_key_plaintext": KEY}},
    }
    for provider, fields in given.items():
        kept: list[str] = []
        config = hide(
            parse({"served_entities": [entity(provider, **fields)]}), lambda value, kept=kept: kept.append(value) or "secret:1"
        )
        assert kept == [KEY]
        assert KEY not in str(config)
        assert "secret:1" not in str(readable(config))


# --- declared in smalti.yaml ---


def declared(upstream: Upstream, *entities: dict[str, Any], env: dict[str, str] | None = None, **more: Any) -> Any:
    config = {"served_entities": [{"external_model": given} for given in entities], **more}
    declaration = EndpointDeclaration.model_validate({"name": "outside", "config": config})
    return declare(declaration, env or {}, fallback=lambda _: True, mirror=None, patience=Timeouts(first_byte=60, between=60))


async def answer(made: Any, payload: dict[str, Any] | None = None, task: Any = "chat") -> list[Event]:
    payload = payload or {"input": [{"type": "message", "role": "user", "content": "hi"}]}
    try:
        return [event async for event in made.endpoint.engine(Call("outside", task, payload))]
    finally:
        for each in made.models:
            await each.aclose()


@pytest.mark.anyio
async def test_the_key_comes_from_the_environment_a_file_or_the_settings(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    custom = {"name": "echo", "provider": "custom", "base_url": upstream.url}
    for given, env in (
        ({**custom, "api_key_env": "MINE"}, {"MINE": KEY}),
        ({**custom, "api_key_file": str(tmp_path / "key")}, {}),
        ({**custom, "custom_provider_config": {"bearer_token_auth": {"token_plaintext": KEY}}}, {}),
        ({**custom, "custom_provider_config": {"api_key_auth": {"key": "api-key", "value_plaintext": KEY}}}, {}),
        ({"name": "echo", "provider": "openai", "base_url": upstream.url}, {"OPENAI_API_KEY": KEY}),
    ):
        made = declared(upstream, given, env=env)
        assert KEY not in repr(made)
        assert (await answer(made))[-1].data["response"]["output"][0]["content"][0]["text"] == TEXT
    azure = {"openai_api_type": "azure", "openai_api_version": "1", "openai_deployment_name": "d"}
    given = {"name": "echo", "base_url": upstream.url.removesuffix("/v1"), "openai_config": azure}
    made = declared(upstream, given, env={"OPENAI_API_KEY": KEY})
    assert (await answer(made))[-1].type == "response.completed"
    assert upstream.paths[-1] == "/openai/deployments/d/chat/completions?api-version=1"


@pytest.mark.anyio
async def test_embeddings_and_completions_of_an_upstream(upstream: Upstream) -> None:
    custom = {"provider": "custom", "base_url": upstream.url, "api_key_env": "MINE"}
    env = {"MINE": KEY}
    made = declared(upstream, {**custom, "name": "e", "task": "llm/v1/embeddings"}, env=env)
    (event,) = await answer(made, {"input": ["ab", "c"], "dimensions": 2}, "embeddings")
    assert event.data["result"]["embeddings"] == [[2.0, 0.5], [1.0, 0.5]]
    assert event.data["result"]["usage"] == {"input_tokens": 3, "output_tokens": 0, "total_tokens": 3}
    assert upstream.requests[-1] == {"model": "e", "input": ["ab", "c"], "dimensions": 2}
    made = declared(upstream, {**custom, "name": "short", "task": "llm/v1/embeddings"}, env=env)
    with pytest.raises(CallError, match="sent 1 embeddings for 2 texts"):
        await answer(made, {"input": ["ab", "c"]}, "embeddings")
    made = declared(upstream, {**custom, "name": "text", "task": "llm/v1/completions"}, env=env)
    events = await answer(made, {"input": [{"type": "message", "role": "user", "content": "say it"}], "max_output_tokens": 5})
    assert events[-1].data["response"]["output"][0]["content"][0]["text"] == "say it once"
    assert events[-1].data["response"]["usage"]["total_tokens"] == 3
    assert (upstream.requests[-1]["prompt"], upstream.requests[-1]["max_tokens"]) == ("say it", 5)


@pytest.mark.anyio
async def test_the_next_model_answers_where_the_first_fails(upstream: Upstream) -> None:
    custom = {"provider": "custom", "base_url": upstream.url, "api_key_env": "MINE"}
    routes = [{"served_entity_name": "fails", "traffic_percentage": 100}, {"served_entity_name": "echo", "traffic_percentage": 0}]
    made = declared(upstream, {**custom, "name": "fails"}, {**custom, "name": "echo"}, env={"MINE": KEY}, traffic_config={"routes": routes})  # fmt: skip  # noqa: E501
    last = (await answer(made))[-1]
    assert (last.type, last.data["served_entity_name"]) == ("response.completed", "echo")
    assert [each["name"] for each in made.endpoint.to_api()["config"]["served_entities"]] == ["fails", "echo"]


def test_what_is_declared_wrongly_is_told_with_the_endpoint(upstream: Upstream) -> None:
    for given, message in (
        ({"name": "gpt"}, "openai needs a key: set OPENAI_API_KEY"),
        ({"name": "gpt", "api_key_env": "MISSING"}, "api_key_env names MISSING, which is not set"),
        ({"name": "gpt", "api_key_file": "/nowhere"}, "cannot be read"),
        ({"name": "x", "provider": "custom"}, "gives no address"),
    ):
        with pytest.raises(ModelSettingError, match=f"endpoint outside: .*{message}"):
            declared(upstream, given)
    one = [{"served_entity_name": "gpt", "traffic_percentage": 50}]
    with pytest.raises(ModelSettingError, match="must add to 100"):
        declared(upstream, {"name": "gpt"}, env={"OPENAI_API_KEY": "x"}, traffic_config={"routes": one})
