"""External models as Databricks Model Serving describes them: each provider's own fields, turned into where and how it is called.

Beyond Databricks' providers `ollama` and `vllm` are served, described by `custom_provider_config`.
Source: https://docs.databricks.com/api/workspace/servingendpoints/create (external_model)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from governance.call import bad_request
from serving.engines.anthropic import VERSION
from serving.engines.upstream import Reach, Upstream

TASKS = ("llm/v1/chat", "llm/v1/completions", "llm/v1/embeddings")
FIELDS: Mapping[str, str] = {
    "openai": "openai_config",
    "anthropic": "anthropic_config",
    "databricks-model-serving": "databricks_model_serving_config",
    "custom": "custom_provider_config",
    "ollama": "custom_provider_config",
    "vllm": "custom_provider_config",
}
"""The providers, and the field that each one's settings stand in."""

_DEFAULTS = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "ollama": "http://127.0.0.1:11434/v1",
}
_BASE = {  # the field of an address, where the provider has one
    "openai": "openai_api_base",
    "anthropic": "anthropic_api_base",
    "databricks-model-serving": "databricks_workspace_url",
}
_KEYS = ("openai_api_key", "anthropic_api_key", "databricks_api_token")
NO_KEY = "settings, which have no key"
_PATHS = re.compile(r"/(chat/completions|completions|embeddings|v1/messages)$")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_OWN = {"host", "content-length", "content-type", "transfer-encoding", "connection"}


def settings_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The provider's own fields."""
    return model.get(FIELDS[model["provider"]]) or {}


def check(model: Mapping[str, Any], where: str) -> None:
    """Raises `CallError` (400) for a model that cannot be called as it is described."""
    provider, task = model["provider"], model["task"]
    if provider not in FIELDS:
        served = ", ".join(FIELDS)
        raise bad_request(f"Field '{where}.provider' is {provider[:40]!r}; served are {served} (any OpenAI-like URL).", where)
    if task not in TASKS:
        raise bad_request(f"Field '{where}.task' is {task[:40]!r}; external models have {', '.join(TASKS)}.", where)
    if provider == "anthropic" and task != "llm/v1/chat":
        raise bad_request(f"Field '{where}.task' is {task!r}; models of anthropic have llm/v1/chat.", where)
    given, field = settings_of(model), f"{where}.{FIELDS[provider]}"
    kind = given.get("openai_api_type") or "openai"
    if kind not in ("openai", "azure"):
        raise bad_request(f"Field '{field}.openai_api_type' is {str(kind)[:40]!r}; openai and azure are read.", field)
    if kind == "azure":
        for name in ("openai_api_base", "openai_api_version", "openai_deployment_name"):
            if not given.get(name):
                raise bad_request(f"Field '{field}.{name}' is missing: Azure's address is made of it.", field)
    for name in ("api_key_auth", "bearer_token_auth"):
        if not isinstance(given.get(name) or {}, Mapping):
            raise bad_request(f"Field '{field}.{name}' must be an object.", f"{field}.{name}")
    header = (given.get("api_key_auth") or {}).get("key")
    if header is not None and (not _HEADER.fullmatch(str(header)) or str(header).lower() in _OWN):
        raise bad_request(f"Field '{field}.api_key_auth.key' must be the name of a header.", field)
    parts = urlsplit(address_of(model))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise bad_request(f"Field '{field}' gives no address of a model: send one like https://host/v1.", where)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise bad_request("The address of a model holds no credentials or query: send the key in its own field.", where)


def address_of(model: Mapping[str, Any]) -> str:
    """Base URL of an external model: up to what `/chat/completions` and its like follow."""
    given, provider = settings_of(model), model["provider"]
    url = str(given.get(_BASE.get(provider, "custom_provider_url")) or _DEFAULTS.get(provider, "")).strip()
    if provider == "databricks-model-serving" and url:
        url = url if "://" in url else f"https://{url}"
        return f"{url.rstrip('/').removesuffix('/serving-endpoints')}/serving-endpoints"
    base = _PATHS.sub("", url.rstrip("/"))
    if given.get("openai_api_type") == "azure":
        return f"{base}/openai/deployments/{given.get('openai_deployment_name')}"
    return base


def key_of(model: Mapping[str, Any]) -> tuple[str, str] | None:
    """The field of a checked external model that holds the reference to its key, and the reference; None where it has no key."""
    given = settings_of(model)
    keys = {name: given.get(name) for name in _KEYS}
    keys["bearer_token_auth.token"] = (given.get("bearer_token_auth") or {}).get("token")
    keys["api_key_auth.value"] = (given.get("api_key_auth") or {}).get("value")
    return next(((field, reference) for field, reference in keys.items() if reference), None)


def upstream_of(
    model: Mapping[str, Any], resolve: Callable[[str], str], *, key_from: str, reach: Reach, entity: str = ""
) -> Upstream:
    """Where and how a checked external model is called.

    Parameters
    ----------
    resolve: the secret that a reference in the configuration stands for; blocking.
    key_from: what holds the key, and `entity` whose model it is, for messages.
    """
    given = settings_of(model)
    header = given.get("api_key_auth") or {}
    key = key_of(model)
    azure, provider = given.get("openai_api_type") == "azure", model["provider"]
    own = {"anthropic": "x-api-key"}.get(provider, "api-key" if azure else "authorization")
    extra = {"anthropic-version": VERSION} if provider == "anthropic" else {}
    if given.get("openai_organization"):
        extra["openai-organization"] = str(given["openai_organization"])
    return Upstream(
        base_url=address_of(model),
        model=model["name"],
        key=resolve(key[1]) if key else None,
        provider=provider if provider in ("openai", "anthropic") else "custom",
        key_from=key_from,
        entity=entity,
        header=str(header.get("key") or own).lower(),
        task=model["task"],
        query=urlencode({"api-version": given["openai_api_version"]}) if azure else "",
        headers=extra,
        reach=reach,
    )
