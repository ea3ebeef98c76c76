"""Opens the rooms on one state folder and joins them: identity, gateway, indexes, endpoints, agents, tracing."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from agents import AgentLoadError, Runtime, load_builder, make_reader, make_router
from agents import router as routing
from agents.log import RunLog
from governance.admission import Admission
from governance.budgets import Budgets
from governance.call import Caller, CallRecord, not_found
from governance.gateway import Gateway
from governance.grants import Grants
from governance.guardrails.judges import SAFETY, Toolkit
from governance.identity import Identity
from governance.journal import Journal
from governance.limits import Limits, Policies
from governance.metrics import Metrics, Upstreams
from governance.oauth import OAuth
from governance.prices import Prices
from governance.resilience import Breaker, resilient
from governance.shared import SharedWindows
from retrieval.chroma_server import ChromaServer
from retrieval.embed import Encoder
from retrieval.index import Indexes
from serving.agent_endpoints import broken, register_agent
from serving.collection import Collection
from serving.connections.registry import Connections
from serving.declarations import EndpointDeclaration
from serving.declared import Dealt, declare
from serving.dispatch import Dispatcher
from serving.endpoint import Endpoint, Endpoints
from serving.engines.embedding import embedding_engine
from serving.engines.external import ExternalChat, Timeouts, parse_chat_model
from serving.engines.function import arguments, function_engine
from serving.entities import Entities, Vault
from serving.experiments.live import Experiments
from serving.files.volumes import Volumes
from serving.judging import asker
from serving.lifecycle import Lifecycle
from serving.locals import Locals
from serving.needs import needs
from serving.runs import Runs
from serving.secrets.scopes import Scopes, references
from serving.settings import CHAT, FunctionDeclaration, Settings
from serving.signature import Signature
from serving.state import Home, checkpoints, open_state
from serving.thread_files import ThreadFiles
from serving.tracking.access import ModelAccess
from serving.tracking.authors import Authors
from serving.tracking.tracked import Tracked
from serving.tracking.webhooks import Webhooks
from serving.ui.session import OneTimeCodes

if TYPE_CHECKING:
    from agents.memory import Memory
    from agents.state import Route, Router
    from serving.mcp_client import McpServers
    from serving.tracing import Tracer
    from serving.tracking.base import TrackingServer
    from serving.unity_catalog.registered import Catalog

log = logging.getLogger("smalti")

TrainRouter = Callable[[Path, Encoder, Path], Any]
"""`train(examples, encoder, cache)`: a classifier with `labels` and `predict_proba`."""


class Platform:
    """Everything that answers calls.

    Parameters
    ----------
    settings: what was configured.
    home: the state folder, owned by this process.
    train_router: makes the classifiers behind the question router and the safety guardrail.

    Raises
    ------
    StateError, SettingsError, ModelSettingError, EncoderError: it cannot be opened; the message says what to do.
    """

    def __init__(self, settings: Settings, home: Home, *, train_router: TrainRouter) -> None:
        self.settings, self.home = settings, home
        self.url = settings.public_url or f"http://{settings.host}:{settings.port}"
        self.engine = open_state(home, settings.database_url)

        self.identity = Identity(self.engine, home.pepper)
        if settings.admin_key:
            self.identity.ensure_admin(settings.admin_key)
        self.oauth = OAuth(self.engine, self.identity)
        self.grants = Grants(self.engine, needs(settings, self.engine))
        declared = {e.name: e.ai_gateway for e in settings.endpoints if e.ai_gateway is not None}
        declared |= {f"connection:{c.name}": c.ai_gateway for c in settings.connections if c.ai_gateway is not None}
        self.policies = Policies(self.engine, declared)
        self.journal = Journal(self.engine, home.journal, fsync=settings.journal_fsync)
        tracked = Tracked.open(settings, home.path)
        self.mlflow, self.registry, self.traces = tracked.server, tracked.registry, tracked.traces
        self.tracer = self._tracer(self.mlflow) if self.mlflow else None
        self.metrics = Metrics(lambda: self.gateway.in_flight, lambda: self.gateway.admission.waiting)
        self.collector = self._collector(settings.otlp_url) if settings.otlp_url else None
        tracers = [tracer for tracer in (self.tracer, self.collector) if tracer]
        observers: list[Callable[[CallRecord], None]] = [self.metrics, *tracers]
        self.encoder = Encoder.load(home.models, later=True)
        self.prices = Prices.load(settings.prices)
        toolkit = Toolkit(
            self.encoder.aembed,
            lambda: train_router(SAFETY, self.encoder, home.models),
            ask=lambda *given: asker(self.dispatcher)(*given),
        )
        self.budgets = Budgets(self.engine)
        shared = SharedWindows(settings.redis_url) if settings.redis_url else None
        limits = Limits(self.policies, budgets=self.budgets, prices=self.prices, shared=shared)
        self.gateway = Gateway(
            self.identity,
            self.grants,
            limits,
            self.journal,
            observers,
            prices=self.prices,
            toolkit=toolkit,
            admission=Admission(settings.max_in_flight, queue=settings.max_queued, seconds=settings.queue_timeout),
        )
        for name in declared:
            policy = self.policies.get(name)
            if policy is not None and policy.guarded:
                self.gateway.guard(name, policy)  # a guardrail that is not there is told now, not on the first call
        chroma = ChromaServer(settings.chroma_url, settings.chroma_token) if settings.chroma_url else None
        self.indexes = Indexes(self.engine, home.chroma, self.encoder, home.snapshots, chroma)
        self.collection = Collection(settings, self.indexes)
        for grant in settings.grants:
            self.grants.grant(grant.principal, grant.securable, grant.level)
        self.endpoints = Endpoints()
        self.secrets = Scopes(self.engine, home.pepper)
        self.artifacts = tracked.artifacts
        self.volumes = Volumes(settings.volumes_path or home.path, self.grants)
        self.artifacts.tidy()
        self.volumes.tidy()
        self.model_access = ModelAccess(self.grants, self.registry, lambda: list(self.endpoints))
        self.webhooks = Webhooks(
            self.engine, home.pepper, self.model_access, hosts=settings.upstream_hosts, holder=self.on_behalf
        )
        self.authors = Authors(self.engine)
        self.model_access.followers.append(self.authors.follow)
        self.model_access.observers.append(self.authors)
        self.thread_files = ThreadFiles(home.path / "threads", self.encoder, self.grants)
        self.connections = Connections(
            self.engine, home.pepper, self.grants, self.secrets, declared=settings.connections, hosts=settings.upstream_hosts
        )
        self.dispatcher = Dispatcher(
            self.gateway, self.endpoints, self.indexes, self.thread_files, connections=self.connections.run
        )
        self.runtime = Runtime(self.engine, checkpoints(home, settings.database_url), store=lambda: self.memory)
        self.runtime.on_delete.append(self.thread_files.forget)
        self.runs = Runs(self.dispatcher, RunLog(self.engine, home.identity))
        self.codes = OneTimeCodes()
        self._models: list[ExternalChat] = []
        self._functions: dict[str, FunctionDeclaration] = {}
        self._dealt: dict[str, Dealt] = {}

        examples = settings.router or Path(routing.__file__).with_name("router.jsonl")
        self.router = self._later_router(lambda: train_router(examples, self.encoder, home.models))
        self.reader = make_reader(self.encoder.aembed)
        self.endpoints.register(
            Endpoint(
                name=self.encoder.name.lower(),
                task="llm/v1/embeddings",
                engine=embedding_engine(self.encoder),
                description="Sentence embeddings.",
            )
        )
        loads = asyncio.Semaphore(max(1, (os.cpu_count() or 2) // 2))
        self.locals = Locals(self.endpoints, home.path, loads)
        self.metrics.registry.register(self.locals)
        self.metrics.registry.register(Upstreams(lambda: {e.name: e.health() for e in self.endpoints.list() if e.health}))
        if local := settings.local_chat():
            self.locals.declare(CHAT, local, "The configured chat model.")
        elif settings.generative:
            given = (settings.chat_model, settings.chat_base_url, settings.chat_api_key)
            self._register_model(CHAT, *given, "The configured chat model.")
        entities = Entities(
            home.path,
            self.registry,
            Vault(self.engine, home.pepper, self.secrets),
            upstream_hosts=settings.upstream_hosts,
            patience=settings.chat_timeout,
            idle=settings.model_idle_seconds,
            loads=max(1, (os.cpu_count() or 2) // 2),
            memory=(settings.model_memory_mb << 20) if settings.model_memory_mb else psutil.virtual_memory().total // 2,
            environments=settings.model_environments == "build",
        )
        self.lifecycle = Lifecycle(
            self.engine,
            self.endpoints,
            entities,
            url=self.url,
            fallback=self._falls_back,
            mirror=self.gateway.mirror,
            expose=self.gateway.expose,
        )
        self.catalog = self._catalog(self.mlflow) if self.mlflow else None
        self.experiments = Experiments(
            self.engine,
            self.journal,
            self.lifecycle,
            alias=self._set_alias if self.mlflow else None,
            told=self.traces.events,
            declared=settings.experiments,
            dealt=self._dealt,
        )
        for function in settings.functions:
            self._register_function(function)
        self.mcp = self._mcp_servers() if settings.mcp_servers else None
        for declaration in settings.all_endpoints():
            self._declare(declaration)

    # What belongs to MLflow, LangGraph and MCP is imported where it is used.

    def _tracer(self, server: TrackingServer) -> Tracer:
        from serving.tracing import Tracer

        return Tracer(server)

    def _collector(self, url: str) -> Tracer:
        from serving.collector import CollectorTracer

        return CollectorTracer(url)

    def _catalog(self, server: TrackingServer) -> Catalog:
        from serving.unity_catalog.registered import Catalog

        return Catalog(server, self.model_access, self.authors)

    @cached_property
    def memory(self) -> Memory:
        """What users are remembered by."""
        from agents.memory import Memory

        return Memory(self.engine, self.encoder.aembed)

    def _mcp_servers(self) -> McpServers:
        from serving.mcp_client import McpServers

        hosts, logs = self.settings.upstream_hosts, self.home.path / "mcp"
        return McpServers(self.settings.mcp_servers, self.dispatcher, self.secrets.resolved, hosts=hosts, logs=logs)

    # ---- endpoints

    @cached_property
    def alone(self) -> bool:
        """Whether this is a gateway alone, as it starts: it has no documents, and no agent, model or function of its own. What
        those need is then loaded when it is first used."""
        own = self.settings
        external = all(each.config.served_entities[0].external_model is not None for each in own.endpoints)
        return external and not (own.docs or own.indexes or own.functions or own.generative or self.indexes.list())

    def _declare(self, declaration: EndpointDeclaration) -> None:
        entity = declaration.config.served_entities[0]
        if entity.agent is not None:
            register_agent(self, declaration, entity.agent)
        elif entity.external_model is not None:
            mirror, patience = self.gateway.mirror, self._patience
            expose, falls_back = self.gateway.expose, self._falls_back
            declared = declare(declaration, os.environ, fallback=falls_back, mirror=mirror, expose=expose, patience=patience)
            self._dealt[declaration.name] = declared.traffic
            self._models += declared.models
            for model in declared.models:
                self.prices.serve(declaration.name, model.upstream.model or "")
            self.endpoints.register(declared.endpoint)
        elif config := declaration.config.registered:
            self.lifecycle.declare(declaration.name, config, declaration.description)
        elif entity.local_model is not None:
            self.locals.declare(declaration.name, entity.local_model, declaration.description)

    @property
    def _patience(self) -> Timeouts:
        seconds = self.settings.chat_timeout
        return Timeouts(first_byte=seconds, between=seconds)

    def _register_model(self, name: str, spec: str | None, base_url: str | None, key: str | None, description: str) -> None:
        given = {"SMALTI_CHAT_BASE_URL": base_url, "SMALTI_CHAT_API_KEY": key}
        environment = {k: v for k, v in os.environ.items() if k not in given} | {k: v for k, v in given.items() if v}
        upstream = parse_chat_model(spec, environment)
        assert upstream is not None
        model = ExternalChat(upstream, timeouts=self._patience)
        self._models.append(model)
        if upstream.model:
            self.prices.serve(name, upstream.model)
        gate = Breaker()
        engine = resilient([(name, model.run)], fallback=lambda: self._falls_back(name), breaker=lambda: gate)
        external = {"name": upstream.model, "provider": upstream.provider, "task": "llm/v1/chat"}
        self.endpoints.register(
            Endpoint(
                name,
                "llm/v1/chat",
                engine,
                entity={"external_model": external},
                description=description,
                health=lambda: {name: gate.closed},
            )
        )

    def _falls_back(self, name: str) -> bool:
        policy = self.policies.get(name)
        return policy is not None and policy.fallback_config is not None and policy.fallback_config.enabled

    def _later_router(self, train: Callable[[], Any]) -> Router:
        """The router of questions, trained or read when the first one comes: `warm` sees to that where there are documents."""
        made: list[Router] = []
        making = asyncio.Lock()

        async def route(text: str) -> Route:
            async with making:
                if not made:
                    classifier = await asyncio.to_thread(train)
                    made.append(make_router(classifier.predict_proba, classifier.labels, self.encoder.aembed))
            return await made[0](text)

        return route

    def _register_function(self, function: FunctionDeclaration) -> None:
        try:
            engine = function_engine(load_builder(function.source), tells=True)
            entity: dict[str, Any] = {"entity_name": function.name}
        except AgentLoadError as error:
            log.warning("function %s is not available: %s", function.name, error)
            engine, entity = (
                broken(function.name, str(error)),
                {"state": {"deployment": "DEPLOYMENT_FAILED", "deployment_state_message": str(error)}},
            )
        self.endpoints.register(Endpoint(function.name, "predict", engine, entity, description=function.description))
        self._functions[function.name] = function

    def inputs(self, endpoint: str) -> Sequence[Mapping[str, Any]]:
        """The columns that a model or a function takes."""
        return self.signature(endpoint).inputs

    def signature(self, endpoint: str) -> Signature:
        """The signature of the model or the function that an endpoint serves first."""
        if function := self._functions.get(endpoint):
            return Signature(arguments(load_builder(function.source)))
        record = self.lifecycle.find(endpoint)
        for spec in (record.config or {}).get("served_entities", ()) if record else ():
            if "entity_name" in spec:
                return self.registry.find(spec["entity_name"], spec["entity_version"]).signature
        return Signature()

    def may_serve(self, who: Caller, config: Any) -> None:
        """Raises `CallError` where the caller may not use the models and secrets that an endpoint's config names. Blocking."""
        self.model_access.check_served(who, config)
        self.secrets.check_references(who, references(config) if isinstance(config, dict) else ())

    def policy(self, endpoint: Endpoint) -> dict[str, Any] | None:
        """The gateway policy of an endpoint that is in force."""
        config = self.policies.get(endpoint.name)
        return config.as_dict() if config else None

    async def _set_alias(self, who: Caller, model: str, alias: str, version: str) -> None:
        assert self.catalog is not None
        given = {"name": model, "alias": alias, "version": version}
        await self.catalog.call(who, "POST", "registered-models", "alias", given)

    async def feedback(self, request_id: str, helpful: bool, comment: str | None, who: Caller) -> str:
        """Keep a caller's thumb on an answer of theirs; the assessment's id. Raises `CallError`."""
        if self.tracer is None:
            raise not_found("Tracing is off, so feedback cannot be kept; start with SMALTI_MLFLOW=true.")
        return await self.tracer.feedback(request_id, helpful, comment, who)

    def on_behalf(self, name: str) -> Caller | None:
        """Who the holder of a name is by now, for work that goes on after their request; None where no key of theirs is good."""
        good = [key for key in self.identity.list_keys(name) if key.revoked is None and (key.expires or math.inf) > time.time()]
        if not good:
            return None
        kind = good[-1].kind
        return Caller(name, kind, self.identity.groups_of(name, kind), any(key.admin for key in good if key.kind == kind))

    # ---- life

    async def warm(self) -> None:
        """Touch what the first question needs, so that it is not slower than the second."""
        await self.router("warm up")
        for info in await asyncio.to_thread(self.indexes.list):
            await self.indexes.asearch(info.name, "warm up", k=1)

    async def close(self) -> None:
        """End everything in the order that loses nothing: answers, traces, the journal's ingestion, the databases."""
        for tracer in filter(None, (self.tracer, self.collector)):
            await tracer.stop()
        if self.mlflow:
            await self.mlflow.stop()
        await self.experiments.stop()
        await self.runs.close()
        await self.gateway.close()
        await self.lifecycle.close()
        await self.locals.close()
        await self.connections.close()
        await asyncio.to_thread(self.webhooks.close)
        for model in self._models:
            await model.aclose()
        await self.runtime.close()
        if self.mcp:
            await self.mcp.close()
        await asyncio.to_thread(self.budgets.close)
        if self.gateway.limits.shared is not None:
            await asyncio.to_thread(self.gateway.limits.shared.close)
        await asyncio.to_thread(self.thread_files.close)
        await asyncio.to_thread(self.journal.close)
        await asyncio.to_thread(self.indexes.close)
        self.engine.dispose()
