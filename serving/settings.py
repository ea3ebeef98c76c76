"""Settings: `smalti.yaml`, then the environment, then the command line; the last one wins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from governance.experiments import Spec
from serving.agent_settings import AgentEntity, FunctionDeclaration, McpDeclaration
from serving.declarations import (
    ConnectionDeclaration,
    EndpointConfig,
    EndpointDeclaration,
    EvaluationDeclaration,
    GrantDeclaration,
    IndexDeclaration,
    LocalModel,
    ServedEntity,
    TableDeclaration,
)
from serving.monitors import Monitor

ASSISTANT, CHAT = "assistant", "chat"
"""Names of the default agent's endpoint and of the one that `chat_model` makes."""
_LOCAL: dict[str, Literal["transformers", "vllm", "gguf"]] = {"hf": "transformers", "vllm": "vllm", "gguf": "gguf"}


class SettingsError(Exception):
    """The configuration cannot be used; the message names file, line, key and what is accepted."""


class Settings(BaseSettings):
    """Everything that can be set. Each field is also the environment variable `SMALTI_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="SMALTI_", env_ignore_empty=True, extra="forbid", frozen=True)

    home: Path = Path(".smalti")
    docs: Path | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    admin_key: str | None = Field(default=None, repr=False)
    public_url: str | None = None
    """Where clients reach this server, when that is not `http://host:port`; citation links start with it."""
    chat_model: str | None = None
    chat_base_url: str | None = None
    chat_api_key: str | None = Field(default=None, repr=False)
    chat_timeout: Annotated[float, Field(gt=0)] = 60.0
    router: Path | None = None
    """Labelled examples of the question router; default: `agents/router.jsonl`."""
    prices: Path | None = None
    """A price table that is laid over the bundled one; see `governance/prices.yaml`."""
    otlp_url: Annotated[str, Field(pattern=r"^https?://[^\s/]+")] | None = Field(default=None, repr=False)
    """An OpenTelemetry collector that gets traces too, by OTLP over HTTP, such as `http://collector:4318`."""
    metrics_key: str | None = Field(default=None, repr=False)
    """A bearer token for Prometheus, which opens `/metrics` and nothing else; an admin's key opens it too."""
    max_in_flight: Annotated[int, Field(ge=1)] = 2_000
    """Calls from outside that may be in the works at a time; further ones wait in line."""
    max_queued: Annotated[int, Field(ge=0)] = 1_000
    """Calls that may wait in line; one more is refused at once with 503."""
    queue_timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds a call may wait in line before it is refused with 503."""
    journal_fsync: bool = False
    """Whether no answer leaves before its record is on the disk, so that a power failure loses none either."""
    journal_days: Annotated[float, Field(gt=0)] | None = None
    """Days that rows of the inference table are kept; older ones are deleted every hour. None: they stay."""
    database_url: str | None = Field(default=None, repr=False)
    """A database in place of the state folder's, such as `postgresql://smalti:…@db/smalti`, which several servers may share."""
    redis_url: str | None = Field(default=None, repr=False)
    """Redis, by which several servers keep limits of a minute together, such as `redis://cache:6379/0`."""
    chroma_url: str | None = Field(default=None, repr=False)
    """A Chroma server in place of the folder's Chroma, such as `http://chroma:8000`, with `?tenant=…&database=…` for others."""
    chroma_token: str | None = Field(default=None, repr=False)
    """What the Chroma server, or a proxy before it, knows this server by."""
    volumes_path: Path | None = None
    """A folder in place of the state folder's `volumes/` and `dbfs/`, which several servers mount."""
    mlflow: bool = True
    mlflow_url: str | None = Field(default=None, repr=False)
    """An MLflow server in place of the one that is started here, such as `http://mlflow:5000`, that several servers share."""
    model_memory_mb: Annotated[int, Field(ge=64)] | None = None
    """Memory that each process of a served MLflow model may hold, in MB; default: half of this machine's."""
    model_idle_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds without a call after which a served model with `scale_to_zero_enabled` gives its memory back."""
    model_environments: Literal["build", "server"] = "build"
    """Whether a model whose requirements the server's packages do not satisfy gets an environment of its own, made by pip."""
    upstream_hosts: list[str] = Field(default_factory=list)
    """Hosts in private networks, or on this machine, at which external models made through the API may be, whoever makes them."""
    endpoints: list[EndpointDeclaration] = Field(default_factory=list)
    indexes: list[IndexDeclaration] = Field(default_factory=list)
    tables: list[TableDeclaration] = Field(default_factory=list)
    functions: list[FunctionDeclaration] = Field(default_factory=list)
    mcp_servers: list[McpDeclaration] = Field(default_factory=list)
    connections: list[ConnectionDeclaration] = Field(default_factory=list)
    """HTTP services that may be asked by name, with a credential that the server holds."""
    grants: list[GrantDeclaration] = Field(default_factory=list)
    experiments: list[Spec] = Field(default_factory=list)
    """Live experiments, begun once when their endpoint serves; then online scorers, one an endpoint."""
    monitors: list[Monitor] = Field(default_factory=list)
    evaluations: list[EvaluationDeclaration] = Field(default_factory=list)
    """The project's own, for `smalti test`."""

    @model_validator(mode="after")
    def _servers_known(self) -> Settings:
        names = [server.name for server in self.mcp_servers]
        agents = (entity.agent for endpoint in self.endpoints for entity in endpoint.config.served_entities if entity.agent)
        for tool in (tool for agent in agents for tool in agent.tools):
            if tool.mcp is not None and tool.mcp not in names:
                raise ValueError(f"there is no MCP server {tool.mcp!r}; mcp_servers declares: {', '.join(names) or 'none'}")
        if len(set(names)) < len(names):
            raise ValueError("two of mcp_servers have the same name")
        return self

    @field_validator("chroma_url", mode="after")
    @classmethod
    def _chroma(cls, value: str | None) -> str | None:
        if value is not None:
            from retrieval.chroma_server import ChromaServer

            ChromaServer(value)
        return value

    @property
    def generative(self) -> bool:
        return bool(self.chat_model or self.chat_base_url)

    def local_chat(self) -> LocalModel | None:
        """The local model that `chat_model` names: `hf:PATH`, `gguf:PATH`, or `vllm:PATH` where no address of a vLLM is set."""
        engine, _, path = (self.chat_model or "").partition(":")
        address = self.chat_base_url or os.environ.get("VLLM_BASE_URL")
        if not path or engine not in _LOCAL or (engine == "vllm" and (address or path.startswith(("http://", "https://")))):
            return None
        return LocalModel(path=path, engine=_LOCAL[engine])

    def all_endpoints(self) -> list[EndpointDeclaration]:
        """The declared endpoints and those that are there without being declared: `assistant`, and `chat` with a model."""
        implied = [ServedEntity(agent=AgentEntity(description="Answers from your documents, with citations."))]
        assistant = EndpointDeclaration(name=ASSISTANT, config=EndpointConfig(served_entities=implied))
        named = any(endpoint.name == ASSISTANT for endpoint in self.endpoints)
        return [*self.endpoints, *([] if named else [assistant])]

    @property
    def main_agent(self) -> str:
        """The endpoint that is asked where none is named: the only agent declared, or else the default one."""
        agents = [endpoint.name for endpoint in self.endpoints if endpoint.config.served_entities[0].agent is not None]
        return agents[0] if len(agents) == 1 else ASSISTANT

    def model_of(self, agent: AgentEntity) -> str | None:
        """Name of the chat endpoint an agent asks; None for an extractive one."""
        return (CHAT if self.generative else None) if agent.model is None else agent.model or None

    def resources(self, securable: str) -> list[str]:
        """What calling an endpoint needs besides: an agent's index and its model."""
        for endpoint in self.all_endpoints():
            agent = endpoint.config.served_entities[0].agent
            if agent and securable == f"endpoint:{endpoint.name}":
                model = self.model_of(agent)
                tools = [needed for tool in agent.tools if (needed := tool.resource(endpoint.name))]
                return [*agent.searched, *([f"endpoint:{model}"] if model else []), *tools, *agent.classical]
        return []

    @field_validator("docs", "router", "volumes_path", mode="after")
    @classmethod
    def _home_folder(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else value

    @field_validator("admin_key", "chat_model", "chat_base_url", "chat_api_key", "docs", "volumes_path", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("mlflow_url", mode="after")
    @classmethod
    def _server_address(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
            raise ValueError(
                "write the address of an MLflow server, such as http://mlflow:5000 or https://user:password@host/path"
            )
        return value

    @classmethod
    def load(cls, file: Path | None = None, **given: Any) -> Settings:
        """Read `file` (default: `smalti.yaml` here, if there is one), the environment and what was `given`.

        Raises
        ------
        SettingsError: no such file, not YAML, an unknown key, a value that is not accepted.
        """
        path = file or Path("smalti.yaml")
        declared, lines = ({}, {}) if file is None and not path.exists() else _read(path)
        environment = {name for name in cls.model_fields if _in_environment(name)}
        overriding = {key: value for key, value in given.items() if value is not None}
        kept = {key: value for key, value in declared.items() if key not in environment}
        try:
            return cls(**{**kept, **overriding})
        except ValidationError as error:
            raise SettingsError("\n".join(_explain(path, lines, problem) for problem in error.errors())) from None


def _in_environment(name: str) -> bool:
    return bool(os.environ.get(f"SMALTI_{name.upper()}"))


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SettingsError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    if value is None:
        return {}, {}
    if not isinstance(value, dict):
        raise SettingsError(f"{path}:1: expected keys and values, such as `port: 8000`")
    lines: dict[tuple[Any, ...], int] = {}
    if node is not None:
        _number(node, (), lines)
    return value, lines


def _number(node: yaml.Node, path: tuple[Any, ...], lines: dict[tuple[Any, ...], int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _number(child, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            _number(child, (*path, position), lines)


def _explain(path: Path, lines: dict[tuple[Any, ...], int], problem: Any) -> str:
    place = tuple(problem["loc"])
    known = place
    while known and known not in lines:
        known = known[:-1]
    where = f"{path}:{lines[known]}: " if known else ""
    key = ".".join(str(part) for part in place)
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        message = f"no such key; accepted here: {', '.join(_accepted(place[:-1]))}"
    return f"{where}{key}: {message}"


def _accepted(place: tuple[Any, ...]) -> list[str]:
    model: Any = Settings
    for part in place:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        found = [a for a in (annotation, *_arguments(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not found:
            return []
        model = found[0]
    return sorted(model.model_fields)


def _arguments(annotation: Any) -> list[Any]:
    from typing import get_args

    return [inner for argument in get_args(annotation) for inner in (argument, *_arguments(argument))]
