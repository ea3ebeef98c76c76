"""What `smalti.yaml` says of agents: their builders, tools, functions and MCP servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolDeclaration(Strict):
    """A tool of an agent: an `endpoint` (a model, a function, another agent), an `index`, `sql` over files by table name,
    `memory: true` (what the user who asks is remembered by), `mcp`, the tools of a declared MCP server, all or `only` some, or
    `connection`, an HTTP service that is read from (`GET`), or asked with the methods in `only`.

    `approval` asks a person before each call.
    """

    endpoint: str | None = None
    index: str | None = None
    sql: dict[str, Path] | None = None
    memory: Literal[True] | None = None
    mcp: str | None = None
    connection: str | None = None
    only: list[str] | None = None
    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = None
    description: str = ""
    approval: bool = False

    @model_validator(mode="after")
    def _one(self) -> ToolDeclaration:
        kinds = (self.endpoint, self.index, self.sql, self.memory, self.mcp, self.connection)
        if sum(given is not None for given in kinds) != 1:
            raise ValueError("a tool is exactly one of endpoint, index, sql, memory, mcp and connection")
        if self.only is not None and self.mcp is None and self.connection is None:
            raise ValueError("only is for mcp, the names of its tools, and for connection, the methods it may use")
        if self.connection is not None and not set(self.only or ()) <= set(_METHODS):
            raise ValueError(f"only of a connection names methods: {', '.join(_METHODS)}")
        return self

    def resource(self, agent: str) -> str | None:
        """What calling it needs a grant on; None for what is the caller's own."""
        if self.memory:
            return None
        if self.index is not None:
            return f"index:{self.index if '.' in self.index else f'main.default.{self.index}'}"
        if self.connection is not None:
            return f"connection:{self.connection}"
        return f"endpoint:{self.endpoint or (f'mcp.{self.mcp}' if self.mcp else f'{agent}.sql')}"


class McpDeclaration(Strict):
    """An MCP server whose tools agents may be given: a program (`command`, with `env`), or a `url` (streamable HTTP).

    `bearer_token` and the values of `env` may be `{{secrets/SCOPE/KEY}}`; `bearer_token` must be.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
    command: Annotated[list[str], Field(min_length=1)] | None = None
    env: dict[str, str] = Field(default_factory=dict, repr=False)
    url: Annotated[str, Field(pattern=r"^https?://[^/@?#]+([/?].*)?$")] | None = None
    bearer_token: Annotated[str | None, Field(pattern=r"^\{\{\s*secrets/[^{}]+/[^{}]+\}\}$", repr=False)] = None
    private_network: bool = False
    """Whether the address may lie in a private network, or on this machine."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds a call may take."""
    description: str = ""

    @model_validator(mode="after")
    def _one(self) -> McpDeclaration:
        if (self.command is None) == (self.url is None):
            raise ValueError("an MCP server is either a command or a url")
        if self.command is not None and (self.bearer_token or self.private_network):
            raise ValueError("bearer_token and private_network are for a url; give a program its secrets in env")
        if self.url is not None and self.env:
            raise ValueError("env is for a command")
        return self


class FunctionDeclaration(Strict):
    """A Python function `package.module:function` or `./file.py:function`, served by its three-level name."""

    name: Annotated[str, Field(pattern=r"^\w+\.\w+\.\w+$")]
    source: str
    description: str = ""


class RouterDeclaration(Strict):
    """A classical endpoint that routes: its labels are the names that the builder's graph knows."""

    endpoint: str
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Confidence under which the model is asked, or the fallback taken where there is none."""


class VerifierDeclaration(Strict):
    """A classical endpoint that says whether passages support an answer: its first two columns."""

    endpoint: str
    supported: str = "supported"
    """The label that says so."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5


class AgentEntity(Strict):
    """An agent: a builder `package.module:function` or `./file.py:function`, and what it is handed."""

    builder: str = "agents.graphs.supervisor:build"
    index: str | Annotated[list[str], Field(min_length=1)] = "main.default.docs"
    """The index it searches, or several, whose passages are put on one scale."""
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much passages unlike those before them are preferred to higher scores."""
    model: str | None = None
    """Chat endpoint the agent asks; default: the one `chat_model` makes, if set. Empty means extractive answers."""
    description: str = ""
    tools: list[ToolDeclaration] = Field(default_factory=list)
    router: RouterDeclaration | None = None
    """The router it is handed; default: the question router of the default agent."""
    verifier: VerifierDeclaration | None = None
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds a run may take."""
    step_limit: Annotated[int, Field(ge=1, le=1000)] = 40
    """Nodes a run may go through."""

    @property
    def searched(self) -> list[str]:
        """Its indexes as securables."""
        names = [self.index] if isinstance(self.index, str) else self.index
        return [f"index:{name if '.' in name else f'main.default.{name}'}" for name in names]

    @property
    def classical(self) -> list[str]:
        """The endpoints of its router and its verifier as securables."""
        return [f"endpoint:{each.endpoint}" for each in (self.router, self.verifier) if each is not None]
