"""Endpoints of external models that `smalti.yaml` declares: any address, keys from the environment, a file or the file itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from governance.call import Call, CallError, Event
from serving.config import flat, parse, readable
from serving.declarations import EndpointDeclaration, ExternalModel
from serving.endpoint import Endpoint
from serving.engines.external import ExternalChat, Timeouts
from serving.engines.providers import FIELDS, NO_KEY, upstream_of
from serving.engines.upstream import ModelSettingError
from serving.traffic import Arms, Expose, Mirror, Traffic, arms

_USUAL = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "databricks-model-serving": "DATABRICKS_TOKEN"}
_ADDRESS = {
    "openai": ("openai_api_base", None),
    "anthropic": ("anthropic_api_base", None),
    "databricks-model-serving": ("databricks_workspace_url", "DATABRICKS_HOST"),
    "ollama": ("custom_provider_url", "OLLAMA_HOST"),
}


class Dealt:
    """The traffic of a declared endpoint: as the file says, but for an experiment that runs on it.

    `config` and `updating` are read as `serving.lifecycle.Record`'s are.
    """

    updating = False

    def __init__(self, config: dict[str, Any], make: Callable[[dict[str, Any], Arms | None], Arms]) -> None:
        self.config, self._make = config, make
        self._arms = make(config, None)

    def deal(self, traffic: Mapping[str, Any]) -> None:
        """From now on by this `traffic_config`, until the server ends. Raises `CallError`."""
        self.config = {**self.config, **parse({"traffic_config": traffic}, current=self.config)}
        self._arms = self._make(self.config, self._arms)

    def answer(self, call: Call) -> AsyncIterator[Event]:
        return self._arms.answer(call)

    def health(self) -> dict[str, bool]:
        """As `serving.traffic.Arms.health`."""
        return self._arms.health()


class Declared(NamedTuple):
    """An endpoint, the models behind it, to be closed at the end, and its traffic."""

    endpoint: Endpoint
    models: list[ExternalChat]
    traffic: Dealt


def declare(
    declaration: EndpointDeclaration,
    env: Mapping[str, str],
    *,
    fallback: Callable[[str], bool],
    mirror: Mirror | None,
    expose: Expose | None = None,
    patience: Timeouts,
) -> Declared:
    """The endpoint as it is declared. Raises `ModelSettingError` naming it, where a key is missing or a field is wrong."""
    name = declaration.name
    keys: dict[int, tuple[str, str]] = {}
    entities: list[dict[str, Any]] = []
    for entity in declaration.config.served_entities:
        assert entity.external_model is not None
        model, keys[len(entities)] = _described(name, entity.external_model, env)
        entities.append({"name": entity.name, "external_model": model} if entity.name else {"external_model": model})
    try:
        config = parse({"served_entities": entities, "traffic_config": declaration.config.traffic_config})
    except CallError as error:
        raise ModelSettingError(f"endpoint {name}: {error.message}") from None
    models, engines = [], []
    for number, spec in enumerate(config["served_entities"]):
        key, origin = keys[number]
        whose = f"entity {spec['name']} of endpoint {name}"
        upstream = upstream_of(spec["external_model"], str, key_from=origin, entity=whose, reach="any")
        models.append(ExternalChat(replace(upstream, key=key or None), timeouts=patience))
        engines.append((spec["name"], models[-1].run, 3))
    tasks = {spec["external_model"]["task"] for spec in config["served_entities"]}
    if len(tasks) > 1:
        found = ", ".join(sorted(tasks))
        raise ModelSettingError(f"endpoint {name}: its served entities must have one task; these have {found}.")

    def make(wanted: dict[str, Any], before: Arms | None) -> Arms:
        traffic = Traffic.of(wanted, name)
        return arms(traffic, engines, before, fallback=lambda: fallback(name), mirror=mirror, expose=expose)

    dealt = Dealt(config, make)
    shown = readable(config)
    endpoint = Endpoint(
        name,
        tasks.pop(),
        dealt.answer,
        entity=shown["served_entities"][0],
        description=declaration.description,
        live=(lambda: {"config": {**readable(dealt.config), "config_version": 1}}) if len(models) > 1 else None,
        health=dealt.health,
    )
    return Declared(endpoint, models, dealt)


def _described(endpoint: str, model: ExternalModel, env: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, str]]:
    """The model in the API's fields, with a word in place of its key, and the key with where it comes from."""
    field = FIELDS[model.provider]
    own = dict(getattr(model, field))
    address, usual = _ADDRESS.get(model.provider, ("custom_provider_url", None))
    if url := model.base_url or own.get(address) or (env.get(usual) if usual else None):
        own[address] = _url(model.provider, url)
    key = _key(endpoint, model, own, env)
    for name, _ in flat(own):
        if name.endswith("_plaintext"):
            _remove(own, name)
    return {"name": model.name, "provider": model.provider, "task": model.task, field: own}, key


def _key(endpoint: str, model: ExternalModel, own: Mapping[str, Any], env: Mapping[str, str]) -> tuple[str, str]:
    if model.api_key_file is not None:
        try:
            return model.api_key_file.expanduser().read_text("utf-8").strip(), "the file of its api_key_file"
        except (OSError, UnicodeDecodeError) as error:
            raise ModelSettingError(f"endpoint {endpoint}: the key file {model.api_key_file} cannot be read: {error}") from None
    if model.api_key_env is not None:
        if not env.get(model.api_key_env):
            raise ModelSettingError(f"endpoint {endpoint}: api_key_env names {model.api_key_env}, which is not set.")
        return env[model.api_key_env], f"the variable {model.api_key_env}"
    for name, value in flat(own):
        if name.endswith("_plaintext") and isinstance(value, str) and value:
            return value, f"its {name}"
    usual = _USUAL.get(model.provider, "")
    found = env.get(usual, "")
    hosted = model.base_url is None and not any(name in own for name in ("openai_api_base", "anthropic_api_base"))
    if not found and hosted and model.provider in _USUAL:
        raise ModelSettingError(f"endpoint {endpoint}: {model.provider} needs a key: set {_USUAL[model.provider]}.")
    return found, f"the variable {usual}" if found else f"its {NO_KEY}"


def _remove(value: dict[str, Any], name: str) -> None:
    value.pop(name, None)
    for key, inner in value.items():
        if isinstance(inner, dict):
            value[key] = {part: kept for part, kept in inner.items() if part != name}


def _url(provider: str, url: str) -> str:
    if provider == "ollama":
        url = url if "://" in url else f"http://{url}"
        return url if url.rstrip("/").endswith("/v1") else f"{url.rstrip('/')}/v1"
    return url if "://" in url or provider != "databricks-model-serving" else f"https://{url}"
