"""What `smalti.yaml` declares: endpoints, indexes, tables, evaluations, connections and grants.

Endpoints are declared in the field names of the Databricks REST API
(https://docs.databricks.com/api/workspace/servingendpoints/create), so that a declaration moves there as it is; what an
agent needs beside them stands under `agent`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from serving.agent_settings import AgentEntity, Strict


class ExternalModel(Strict):
    """A model elsewhere, in Databricks' fields, and shorter ones: `base_url` for the provider's own field of the address, and
    `api_key_env` or `api_key_file` for where the key is read from when the server starts.

    Without either the provider's usual variable is read (`OPENAI_API_KEY`, `ANTHROPIC_API_KEY`, `DATABRICKS_TOKEN`).
    """

    name: str
    provider: Literal["openai", "anthropic", "databricks-model-serving", "custom", "ollama", "vllm"] = "openai"
    task: Literal["llm/v1/chat", "llm/v1/completions", "llm/v1/embeddings"] = "llm/v1/chat"
    base_url: str | None = None
    api_key_env: str | None = None
    api_key_file: Path | None = None
    openai_config: dict[str, Any] = Field(default_factory=dict, repr=False)
    anthropic_config: dict[str, Any] = Field(default_factory=dict, repr=False)
    databricks_model_serving_config: dict[str, Any] = Field(default_factory=dict, repr=False)
    custom_provider_config: dict[str, Any] = Field(default_factory=dict, repr=False)


class LocalModel(Strict):
    """A language model that this machine runs, by folder, by its name on the Hugging Face hub, or (`gguf`) by its file."""

    path: str
    engine: Literal["transformers", "vllm", "gguf"] = "transformers"
    device: str = "auto"
    """As torch names it (`cpu`, `cuda:1`); `auto` takes a GPU where there is one."""
    dtype: str = "auto"
    context: Annotated[int, Field(ge=2)] | None = None
    """Tokens of prompt and answer together; default: what the model was made for."""
    max_batch: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Answers written at the same time; default: 16, and 4 for `gguf`, whose memory for all of them is taken at the start."""
    max_queue: Annotated[int, Field(ge=0)] = 64
    """Requests that may wait besides; one more is refused at once."""
    threads: Annotated[int, Field(ge=1)] | None = None
    adapters: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")], Path] | None = None
    """LoRA adapters in PEFT's format, by name; for vLLM, `{}` lets them be loaded later."""
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    args: list[str] = Field(default_factory=list)
    """Further flags of vLLM's, or of `binary`."""
    python: Path | None = None
    """Interpreter of vLLM's environment; default: the one that `smalti engines install vllm` makes."""
    binary: Path | None = None
    """The `llama-server` that serves a GGUF file; default: the one in the extra `gguf`, or else the one on PATH."""
    stall_timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds without progress, while answers are awaited, after which the engine is started anew; default: 8, and 120 for
    `gguf`, which reads a long prompt in large steps."""

    @model_validator(mode="after")
    def _fits(self) -> LocalModel:
        if self.engine == "gguf" and self.adapters is not None:
            raise ValueError("engine gguf takes no adapters: merge the adapter into the model's file.")
        if self.engine == "gguf" and self.args and self.binary is None:
            raise ValueError("args of engine gguf are flags of llama-server: name it in `binary`.")
        return self


class ServedEntity(Strict):
    """An agent, an external model, a local model, or a registered model by `entity_name` and `entity_version` (a number or an
    alias), whose further fields are those of the REST API."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str | None = None
    agent: AgentEntity | None = None
    external_model: ExternalModel | None = None
    local_model: LocalModel | None = None
    entity_name: Annotated[str | None, Field(pattern=r"^[^.]+\.[^.]+\.[^.]+$")] = None
    entity_version: str | None = None
    environment_vars: dict[str, str] | None = None
    scale_to_zero_enabled: bool | None = None
    workload_size: Literal["Small", "Medium", "Large"] | None = None
    memory_limit_mb: Annotated[int, Field(ge=64)] | None = None

    @model_validator(mode="after")
    def _one(self) -> ServedEntity:
        if sum(given is not None for given in (self.agent, self.external_model, self.local_model, self.entity_name)) != 1:
            raise ValueError("a served entity is exactly one of agent, external_model, local_model and entity_name")
        alone = ("entity_version", "environment_vars", "scale_to_zero_enabled", "workload_size", "memory_limit_mb")
        if self.entity_name is None and (stray := [name for name in alone if getattr(self, name) is not None]):
            raise ValueError(f"{stray[0]} is for a registered model: give its entity_name, as catalog.schema.model")
        if self.entity_name is not None and self.entity_version is None:
            raise ValueError("a registered model needs its entity_version: a number or an alias")
        return self


class EndpointConfig(Strict):
    """One agent or local model; or up to 15 external or registered models that share the traffic (`serving.traffic`)."""

    served_entities: Annotated[list[ServedEntity], Field(min_length=1, max_length=15)]
    traffic_config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> EndpointConfig:
        entities = self.served_entities
        for kind in ("external_model", "entity_name"):
            if all(getattr(entity, kind) is not None for entity in entities):
                return self
        if len(entities) > 1:
            raise ValueError("several served entities must all have an external_model, or all an entity_name")
        return self

    @model_validator(mode="after")
    def _models_checked(self) -> EndpointConfig:
        if self.registered:
            from governance.call import CallError
            from serving.config import parse

            try:
                parse(self.registered)
            except CallError as error:
                raise ValueError(error.message) from None
        return self

    @property
    def registered(self) -> dict[str, Any] | None:
        """The config as the REST API takes it, where registered models are served."""
        if self.served_entities[0].entity_name is None:
            return None
        return self.model_dump(exclude_none=True)


class EndpointDeclaration(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    config: EndpointConfig
    description: str = ""
    ai_gateway: dict[str, Any] | None = None


class ChunkingDeclaration(Strict):
    """How an index's documents are cut, see `retrieval.chunk.Chunking`, which knows what fits."""

    strategy: Literal["structure", "sentences"] = "structure"
    tokens: Annotated[int, Field(ge=8, le=200)] = 200
    overlap: Annotated[int, Field(ge=0, le=100)] = 0

    @model_validator(mode="after")
    def _fits(self) -> ChunkingDeclaration:
        if self.overlap > self.tokens // 2:
            raise ValueError(f"chunks of {self.tokens} tokens overlap by at most {self.tokens // 2}")
        return self


class IndexDeclaration(Strict):
    name: str
    source: Path
    chunking: ChunkingDeclaration | None = None
    row_access: str | None = None
    """The column that names the groups which may see a row, as `smalti index restrict` sets it; `folder` of a folder's index."""


class TableDeclaration(Strict):
    """A table that Delta Sync indexes may be made from, as `smalti index table` declares it."""

    name: str
    source: str


class EvaluationDeclaration(Strict):
    """What `smalti test` asks of an agent, and the bounds its answers are held to: `min` and `max` by metric."""

    data: Path
    endpoint: str | None = None
    """Default: the only agent that is declared."""
    min: dict[str, float] = Field(default_factory=dict)
    max: dict[str, float] = Field(default_factory=dict)
    scorers: list[str] = Field(default_factory=list)
    """Further scorers, each as `module:name`."""


class ConnectionDeclaration(Strict):
    """An HTTP service, in the fields of Unity Catalog's connections: `options` has `host`, `port`, `base_path`, and
    `bearer_token` or `client_id`, `client_secret`, `token_endpoint`, `oauth_scope`, `oauth_credential_exchange_method`.

    `bearer_token` and `client_secret` are references `{{secrets/SCOPE/KEY}}`; `bearer_token_env` and `client_secret_env` name a
    variable of the environment instead.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,255}$")]
    connection_type: Literal["HTTP"] = "HTTP"
    options: dict[
        Literal[
            "host", "port", "base_path", "bearer_token", "client_id", "client_secret", "token_endpoint", "oauth_scope",
            "oauth_credential_exchange_method",
        ],
        str,
    ]  # fmt: skip
    bearer_token_env: str | None = None
    client_secret_env: str | None = None
    comment: str = ""
    ai_gateway: dict[str, Any] | None = None
    """Its limits and guardrails."""

    @model_validator(mode="after")
    def _usable(self) -> ConnectionDeclaration:
        from governance.call import CallError
        from serving.connections.options import SECRETS, check_address, secret_of
        from serving.secrets.scopes import is_reference

        options: dict[str, str] = {**self.options}
        needed, variables = secret_of(options), {name: getattr(self, f"{name}_env") for name in SECRETS}
        for name, variable in variables.items():
            given = options.get(name)
            if given is not None and (variable is not None or not is_reference(given)):
                raise ValueError(f"{name} is {{{{secrets/SCOPE/KEY}}}}, or left out for {name}_env")
            if name != needed and variable is not None:
                raise ValueError(f"{name}_env is of no use beside these options")
        if needed == "client_secret" and not (options.get(needed) or variables[needed]):
            raise ValueError("client_secret is missing: a connection with a client_id signs in")
        try:
            check_address(options)
        except CallError as error:
            raise ValueError(error.message) from None
        return self


class GrantDeclaration(Strict):
    """`principal` is `user:NAME`, `group:NAME` or `service_principal:NAME`; `securable` `endpoint:`, `index:`, `model:` or
    `connection:NAME`."""

    principal: Annotated[str, Field(pattern=r"^(user|group|service_principal):.+$")]
    securable: Annotated[str, Field(pattern=r"^(endpoint|index|model|connection):.+$")]
    level: Literal["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE", "BROWSE", "EXECUTE", "USE_CONNECTION", "MANAGE"] = "CAN_QUERY"
