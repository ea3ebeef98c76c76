"""What a serving endpoint is asked to be: its served entities and traffic, checked, in Databricks' fields.

Source: https://docs.databricks.com/api/workspace/servingendpoints/create
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from governance.call import CallError, bad_request, forbidden
from serving.engines import addresses, providers
from serving.engines.upstream import Reach
from serving.secrets.scopes import is_reference, reference

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
TASKS = ("llm/v1/chat", "llm/v1/completions", "llm/v1/embeddings", "agent/v1/responses", "agent/v1/chat", "agent/v2/chat")
SECRETS = {"openai_api_key", "anthropic_api_key", "databricks_api_token", "token", "value"}
"""Fields that hold a secret, by the name that they have without `_plaintext`."""


class _Fields(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True)


class ExternalModelInput(_Fields):
    """An external model; each provider's own fields stand in `<provider>_config` or `custom_provider_config`.

    `private_network`, Smalti's own, is an administrator's word that its address may lie in a private network.
    """

    name: str = Field(min_length=1)
    provider: str
    task: str
    openai_config: dict[str, Any] = Field(default_factory=dict)
    anthropic_config: dict[str, Any] = Field(default_factory=dict)
    databricks_model_serving_config: dict[str, Any] = Field(default_factory=dict)
    custom_provider_config: dict[str, Any] = Field(default_factory=dict)
    private_network: bool = False


class EntityInput(_Fields):
    """A served entity: a registered model's version, or an external model. Sizes and the like are kept as they are sent."""

    name: str | None = None
    entity_name: str | None = None
    entity_version: str | None = None
    external_model: ExternalModelInput | None = None
    environment_vars: dict[str, str] = Field(default_factory=dict)
    scale_to_zero_enabled: bool = False
    workload_size: Literal["Small", "Medium", "Large"] | None = None
    memory_limit_mb: int | None = Field(default=None, ge=64)
    """Memory each process of a model may hold; Smalti's own field."""


class RouteInput(_Fields):
    served_model_name: str | None = None
    served_entity_name: str | None = None
    traffic_percentage: int = Field(ge=0, le=100)


class TrafficInput(_Fields):
    """`routes` are Databricks'; `sticky`, `salt`, `experiment` and `shadow` are Smalti's own (see `serving.traffic`)."""

    routes: list[RouteInput] = Field(default_factory=list)
    sticky: Literal["thread", "user", "request"] | None = None
    salt: str | None = Field(default=None, max_length=200)
    experiment: str | None = Field(default=None, max_length=63)
    shadow: list[RouteInput] = Field(default_factory=list)


class ConfigInput(_Fields):
    served_entities: list[EntityInput] = Field(default_factory=list, max_length=15)
    served_models: list[dict[str, Any]] = Field(default_factory=list)
    traffic_config: TrafficInput | None = None


def parse(body: Any, *, current: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A checked config: `{"served_entities": [...], "traffic_config": {"routes": [...]}, …}` with every name filled in.

    `current` is the config that one without entities changes the traffic of. Raises `CallError` (400) naming the field.
    """
    if not isinstance(body, Mapping):
        raise bad_request("Field 'config' must be an object with 'served_entities'.", "config")
    try:
        given = ConfigInput.model_validate({key: value for key, value in body.items() if key != "name"})
        older = [EntityInput.model_validate(_from_model(model)) for model in given.served_models]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise bad_request(f"Field 'config.{place}': {first['msg']}.", place) from None
    entities = [_entity(entity, position) for position, entity in enumerate(given.served_entities or older)]
    if not entities and current:
        entities = [dict(entity) for entity in current["served_entities"]]
    if not entities:
        raise bad_request("Field 'config.served_entities' is empty: name at least one model to serve.", "served_entities")
    names = [entity["name"] for entity in entities]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise bad_request(f"Two served entities are named {twice!r}: give each its own name.", "served_entities")
    kept = {key: value for key, value in (given.model_extra or {}).items() if value is not None}
    return {**kept, "served_entities": entities, "traffic_config": _traffic(given.traffic_config, names)}


def _from_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """The older field `served_models` in the newer one's words."""
    renamed = {"model_name": "entity_name", "model_version": "entity_version"}
    return {renamed.get(key, key): value for key, value in model.items()}


def _entity(entity: EntityInput, position: int) -> dict[str, Any]:
    where = f"served_entities[{position}]"
    if (entity.external_model is None) == (entity.entity_name is None):
        raise bad_request(f"Field '{where}' needs either 'entity_name' and 'entity_version', or 'external_model'.", where)
    if entity.external_model is not None:
        providers.check(entity.external_model.model_dump(exclude={"reach"}), f"{where}.external_model")
    elif not entity.entity_version:
        raise bad_request(f"Field '{where}.entity_version' is missing: send a version number or an alias.", where)
    made = entity.model_dump(exclude_none=True, exclude_defaults=True)
    _check_secrets(made, where)
    base = entity.external_model.name if entity.external_model else f"{entity.entity_name}-{entity.entity_version}"
    made["name"] = entity.name or re.sub(r"[^A-Za-z0-9_-]", "-", base)
    if not NAME.fullmatch(made["name"]):
        raise bad_request(f"Field '{where}.name' must be 1 to 63 letters, digits, '-', '_' and '.'.", where)
    return made


def vouch(config: Mapping[str, Any], current: Mapping[str, Any] | None, *, admin: bool) -> dict[str, Any]:
    """The config with how far each external model's address may reach, as who sends it may say.

    An administrator's external models may be on this machine, and with `private_network: true` in a private network; others'
    are public. An address that serves already keeps its reach, whoever sends it again. Raises `CallError` (403).
    """
    serving = (current or {}).get("served_entities", ())
    held = {
        providers.address_of(entity["external_model"]): entity["external_model"]["reach"]
        for entity in serving
        if "reach" in entity.get("external_model", ())
    }
    entities = []
    for entity in config["served_entities"]:
        if (model := entity.get("external_model")) and entity not in serving:
            kept = held.get(providers.address_of(model), "public")
            if model.get("private_network") and not admin and kept != "private":
                raise forbidden("Field 'external_model.private_network' is an administrator's to set.")
            reach = kept if not admin else "private" if model.get("private_network") or kept == "private" else "own"
            entity = {**entity, "external_model": {**model, "reach": reach}}
        entities.append(entity)
    return {**config, "served_entities": entities}


def _check_secrets(entity: Mapping[str, Any], where: str) -> None:
    """References to secrets stand where a secret is read, and a secret stands nowhere as plain text."""
    environment = set(entity.get("environment_vars") or ())
    for key, value in flat(entity):
        referred = reference(value)
        if referred and key not in SECRETS | environment:
            raise bad_request(f"Field '{where}.{key}' cannot be a secret; environment_vars and keys can.", where)
        if key in SECRETS - environment and isinstance(value, str) and not referred:
            raise bad_request(f"Field '{where}' has {key} as text: send {key}_plaintext, or {{{{secrets/SCOPE/KEY}}}}.", where)


def flat(value: Any) -> list[tuple[str, Any]]:
    """All keys and plain values within nested objects."""
    found: list[tuple[str, Any]] = []
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        found += flat(inner) if isinstance(inner, Mapping) else [(key, inner)]
    return found


def _traffic(traffic: TrafficInput | None, names: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {"routes": _routes(traffic, names)}
    if traffic is None:
        return made
    made |= {key: value for key in ("sticky", "salt", "experiment") if (value := getattr(traffic, key))}
    shadows = []
    for copy in traffic.shadow:
        name = copy.served_entity_name or copy.served_model_name
        if name not in names:
            raise bad_request(f"Field 'traffic_config.shadow' names {name!r}; there are {', '.join(names)}.", "traffic_config")
        shadows.append({"served_entity_name": name, "traffic_percentage": copy.traffic_percentage})
    return {**made, "shadow": shadows} if shadows else made


def _routes(traffic: TrafficInput | None, names: list[str]) -> list[dict[str, Any]]:
    given = traffic.routes if traffic else []
    if not given:
        if len(names) > 1:
            raise bad_request(
                f"Field 'config.traffic_config.routes' is missing: say which share {' and '.join(names)} get.", "traffic_config"
            )
        return [{"served_model_name": names[0], "served_entity_name": names[0], "traffic_percentage": 100}]
    routes: dict[str, int] = {}
    for route in given:
        name = route.served_entity_name or route.served_model_name
        if name not in names:
            raise bad_request(f"Field 'traffic_config' routes to {name!r}; there are {', '.join(names)}.", "traffic_config")
        if name in routes:
            raise bad_request(f"Field 'traffic_config' names {name!r} twice.", "traffic_config")
        routes[name] = route.traffic_percentage
    if (total := sum(routes.values())) != 100:
        raise bad_request(f"The traffic of all routes must add to 100; it adds to {total}.", "traffic_config")
    return [
        {"served_model_name": name, "served_entity_name": name, "traffic_percentage": share} for name, share in routes.items()
    ]


def hide(config: Mapping[str, Any], keep: Callable[[str], str]) -> dict[str, Any]:
    """The config with each secret replaced: `X_plaintext` becomes `X` holding the reference that `keep(value)` gives."""

    def hidden(value: Any) -> Any:
        if isinstance(value, list):
            return [hidden(inner) for inner in value]
        if not isinstance(value, Mapping):
            return value
        made: dict[str, Any] = {}
        for key, inner in value.items():
            base = key.removesuffix("_plaintext")
            if base in SECRETS and base != key and isinstance(inner, str):
                made[base] = keep(inner)
            else:
                made[key] = hidden(inner)
        return made

    return hidden(config)


def readable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it is read back: without secrets; where one of a scope is meant, its name stays."""

    def shown(value: Any) -> Any:
        if isinstance(value, list):
            return [shown(inner) for inner in value]
        if not isinstance(value, Mapping):
            return value
        return {
            key: shown(inner)
            for key, inner in value.items()
            if not (key.removesuffix("_plaintext") in SECRETS and isinstance(inner, str)) or is_reference(inner)
        }

    return shown(config)


def reach_of(model: Mapping[str, Any], declared: Collection[str]) -> Reach:
    """How far an external model's address may reach: anywhere where the settings declare its host, else as `vouch` said."""
    host = urlsplit(providers.address_of(model)).hostname
    reach: Reach = "any" if host in declared else model.get("reach", "public")
    return reach


def check_upstream(model: Mapping[str, Any], declared: Collection[str]) -> None:
    """Refuse an address out of reach; each connection is checked again. Blocking: a name is looked up. Raises `CallError`."""
    reach = reach_of(model, declared)
    parts = urlsplit(providers.address_of(model))
    try:
        if reach != "any":
            addresses.lookup(parts.hostname or "", parts.port or 443, reach)
    except addresses.Unreachable as error:
        raise CallError(str(error), status=400, code="BAD_REQUEST", param="external_model") from None
