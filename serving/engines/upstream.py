"""Which model `SMALTI_CHAT_MODEL` means: a provider's own words for an OpenAI-compatible address, a model and a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

Reach = Literal["any", "private", "own", "public"]

_PROVIDERS = (
    "openai:MODEL, databricks:ENDPOINT, vllm:ORG/MODEL, ollama:MODEL, gguf:FILE, hf:PATH, or an OpenAI-compatible base URL"
)


class ModelSettingError(ValueError):
    """`SMALTI_CHAT_MODEL` or what belongs to it is not usable; the message says what to set."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a chat model is served.

    Parameters
    ----------
    base_url: up to and including `/v1` or `/serving-endpoints`.
    model: its name there; None takes the first that the upstream lists.
    key: bearer token, from the environment.
    provider: `openai`, `anthropic`, `databricks`, `vllm`, `ollama` or `custom`.
    key_from: what holds the key, for messages.
    entity: the served entity that calls it, for messages.
    what: what is there, for messages.
    header: the header that carries the key; `authorization` carries it as a bearer token, another as it is.
    task: `llm/v1/chat`, `llm/v1/completions` or `llm/v1/embeddings`.
    query: what follows `?` in each request's URL, as Azure's `api-version`.
    headers: further headers; none of them a secret.
    reach: which addresses may be connected to: `public` ones, this machine's `own` too, `private` networks too, or `any`, which
        is for what `smalti.yaml` and the environment declare.
    """

    base_url: str
    model: str | None
    key: str | None = field(default=None, repr=False)
    provider: str = "custom"
    key_from: str = "SMALTI_CHAT_API_KEY"
    header: str = "authorization"
    task: str = "llm/v1/chat"
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    reach: Reach = "any"
    entity: str = ""
    what: str = "model"

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).netloc.rpartition("@")[2]


def parse_chat_model(setting: str | None, env: Mapping[str, str]) -> Upstream | None:
    """`SMALTI_CHAT_MODEL` as an upstream; None where neither it nor `SMALTI_CHAT_BASE_URL` is set.

    Parameters
    ----------
    setting: `openai:MODEL`, `databricks:ENDPOINT`, `vllm:ORG/MODEL`, `ollama:MODEL`, a base URL, or a bare model name
        together with `SMALTI_CHAT_BASE_URL`.
    env: environment variables; `SMALTI_CHAT_BASE_URL` replaces a provider's address, `SMALTI_CHAT_API_KEY` its key.

    Raises
    ------
    ModelSettingError: for an unknown provider, or one whose address or key is missing.
    """
    setting = (setting or "").strip()
    base = env.get("SMALTI_CHAT_BASE_URL", "").strip() or None
    own_key = env.get("SMALTI_CHAT_API_KEY") or None
    if not setting and not base:
        return None
    if setting.startswith(("http://", "https://")):
        return _upstream(setting, None, own_key)
    provider, colon, model = setting.partition(":")
    if colon and not model:
        raise ModelSettingError(f"SMALTI_CHAT_MODEL={setting!r} names no model. Use {_PROVIDERS}.")
    match provider if colon else "":
        case "openai":
            key = own_key or env.get("OPENAI_API_KEY")
            if not key and not base:
                raise ModelSettingError(f"SMALTI_CHAT_MODEL={setting!r} needs a key: set OPENAI_API_KEY.")
            return _upstream(base or "https://api.openai.com/v1", model, key, provider, "OPENAI_API_KEY")
        case "databricks":
            host, key = env.get("DATABRICKS_HOST"), own_key or env.get("DATABRICKS_TOKEN")
            if not (host or base) or not key:
                raise ModelSettingError(f"SMALTI_CHAT_MODEL={setting!r} needs DATABRICKS_HOST and DATABRICKS_TOKEN.")
            if host and "://" not in host:
                host = f"https://{host}"
            return _upstream(base or f"{(host or '').rstrip('/')}/serving-endpoints", model, key, provider, "DATABRICKS_TOKEN")
        case "vllm":
            if model.startswith(("http://", "https://")):
                return _upstream(model, None, own_key, provider)
            return _upstream(base or env.get("VLLM_BASE_URL") or "http://127.0.0.1:8001/v1", model, own_key, provider)
        case "ollama":
            host = env.get("OLLAMA_HOST") or "127.0.0.1:11434"
            host = host if "://" in host else f"http://{host}"
            return _upstream(base or f"{host.rstrip('/')}/v1", model, own_key, provider)
    if base:
        return _upstream(base, setting or None, own_key)
    raise ModelSettingError(f"SMALTI_CHAT_MODEL={setting!r} names no known provider. Use {_PROVIDERS}.")


def _upstream(
    base: str, model: str | None, key: str | None, provider: str = "custom", key_from: str = "SMALTI_CHAT_API_KEY"
) -> Upstream:
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ModelSettingError(f"{base!r} is not a base URL. Use one like http://127.0.0.1:11434/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ModelSettingError("A base URL holds no credentials, query or fragment. Give the key in SMALTI_CHAT_API_KEY.")
    return Upstream(base.rstrip("/"), model, key, provider, key_from)
