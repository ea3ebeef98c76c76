"""The FastAPI application: every face over one platform, and the order in which it comes up and goes down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from governance import audit, reports, scim, token_routes
from governance import routes as governance_routes
from governance.call import Call, Caller, Task
from governance.retention import keep_on
from governance.usage import durations
from retrieval import routes as retrieval_routes
from retrieval.errors import RetrievalError
from retrieval.rows.follow import Follower
from serving import (
    agent_deployments,
    conversations,
    databricks,
    errors,
    feedback,
    indexes,
    management,
    mcp,
    oidc,
    openapi,
    routes,
)
from serving.compress import Compressed
from serving.connections import routes as connection_routes
from serving.conversation_items import BeginningItems, Beginnings
from serving.conversation_turns import Turns
from serving.direct import Direct
from serving.engines.index import refused
from serving.experiments import routes as experiment_routes
from serving.files import dbfs, volumes
from serving.files import routes as files
from serving.langgraph import routes as langgraph_routes
from serving.locals import router as locals_router
from serving.platform import Platform
from serving.routes import bearer
from serving.secrets import routes as secret_routes
from serving.securables import exists, named
from serving.services import authorize, page_services
from serving.stored import StoredResponses
from serving.ui.api import Api
from serving.ui.mount import mount
from serving.unity_catalog import grants as catalog_grants
from serving.unity_catalog import models as catalog_models
from serving.unity_catalog import names, prompts
from serving.unity_catalog import registered as catalog

if TYPE_CHECKING:
    from serving.tracking.server import TrackingServer as Mlflow
    from serving.unity_catalog.registered import Catalog

log = logging.getLogger("smalti")

Authorize = Callable[[Request], Awaitable[Caller]]
"""Tells who asks; raises `CallError`."""


def application(platform: Platform, *, rooms: Sequence[Callable[[Platform, Any], APIRouter]] = ()) -> FastAPI:
    """The app. `/health` answers once it runs; `/ready` once the first question can be answered.

    `rooms` make the routes of those rooms that this one does not know, from the platform and the check of who calls.

    `app.state`: `platform`; `reports` of the first sync; `failure`, what kept it from becoming ready; `announce` and `stop`,
    called when it is ready and when it cannot become so.
    """
    app = _App(title="Smalti", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.state.platform, app.state.reports, app.state.failure, app.state.ready = platform, [], None, False
    app.state.announce = app.state.stop = lambda: None
    app.state.following = app.state.keeping = None
    app.state.example = "What is this about?"
    kept = StoredResponses(platform.journal, platform.engine)
    begun = BeginningItems(platform.engine)
    platform.runtime.on_delete.append(begun.forget)
    before = Beginnings(begun, platform.runtime).before
    turns = Turns(begun, platform.runtime, platform.dispatcher)
    kinds = {"journal": kept, "runs": platform.runs, "before": before, "turns": turns}
    face = routes.Face(platform.dispatcher, platform.identity, platform.grants, **kinds)
    calls = routes.router(face)
    warned = platform.gateway.warnings
    trusted = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")  # as uvicorn has it, but not around calls, which it would cost
    framed: Any = ProxyHeadersMiddleware(app.framed, trusted_hosts=trusted)  # type: ignore[arg-type]
    app.direct = Direct(framed, calls.routes, warned)
    app.add_middleware(Compressed)
    app.add_middleware(_Warnings, warnings=warned)
    errors.install(app)

    @app.exception_handler(RetrievalError)
    async def told(request: Request, error: RetrievalError) -> Response:
        return errors.error_response(refused(error), request.scope)

    async def caller(request: Request) -> Caller:
        return await asyncio.to_thread(platform.identity.authenticate, bearer(request.headers))

    _health(app, platform)
    app.include_router(calls)
    app.include_router(langgraph_routes.router(face, platform.runtime, platform.runs, lambda: platform.memory))
    app.include_router(conversations.router(platform.runtime, begun, platform.dispatcher, caller))
    app.include_router(databricks.router(platform.dispatcher, platform.identity, platform.grants, gateway_policy=platform.policy))
    _governing(app, platform, caller)
    _serving(app, platform, caller)
    _searching(app, platform, caller)
    if platform.mlflow and platform.catalog:
        _tracking(app, platform, caller, platform.mlflow, platform.catalog)
    for room in rooms:
        app.include_router(room(platform, caller))
    openapi.add(app, caller)
    app.include_router(databricks.fallback())
    app.state.pages = mount(app, page_services(platform, Api(app)))
    return app


def _health(app: FastAPI, platform: Platform) -> None:
    """Whether it runs, and whether the first question can be answered."""

    @app.get("/health", include_in_schema=False)
    async def health() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/ready", include_in_schema=False)
    async def ready() -> Response:
        if app.state.ready:
            searched = platform.settings.chroma_url and await asyncio.to_thread(platform.indexes.trouble)
            warning = {"warning": "vectors are searched in memory, not by Chroma: smalti index status says why"}
            return JSONResponse({"ready": True, **(warning if searched else {})})
        reason = str(app.state.failure or "the documents are being indexed")
        return JSONResponse({"ready": False, "reason": reason}, status_code=503, headers={"retry-after": "1"})


def _governing(app: FastAPI, platform: Platform, caller: Authorize) -> None:
    """Who may do what: keys, grants, policies, tokens, and the names of what grants are on."""
    there = partial(exists, platform)
    app.include_router(
        governance_routes.router(
            platform.identity,
            platform.grants,
            platform.policies,
            platform.journal,
            caller=caller,
            exists=there,
            named=partial(named, platform),
        )
    )
    app.include_router(token_routes.router(platform.identity, caller=caller))
    app.include_router(scim.router(platform.identity, caller=caller))
    app.include_router(connection_routes.router(platform.connections, platform.dispatcher, platform.policies, caller))
    app.include_router(catalog_grants.router(platform.grants, caller, platform.identity.principal, there))
    app.include_router(names.router(names.visible(platform), caller, partial(names.taken, platform)))


def _serving(app: FastAPI, platform: Platform, caller: Authorize) -> None:
    """Endpoints, what they did, and what else is reached through them."""
    app.include_router(
        reports.router(
            platform.engine,
            platform.identity,
            platform.journal,
            platform.metrics,
            caller=caller,
            scrape_key=platform.settings.metrics_key,
        )
    )
    app.include_router(
        management.router(
            platform.lifecycle,
            platform.endpoints,
            platform.identity,
            platform.grants,
            platform.policies,
            platform.metrics,
            policy=platform.policy,
            may_serve=platform.may_serve,
            signed=platform.signature,
        )
    )
    app.include_router(agent_deployments.router(platform.endpoints, platform.identity, platform.grants))
    app.include_router(locals_router(platform.locals, caller=caller))
    offers = mcp.Offers(
        platform.dispatcher,
        lambda: [info.name for info in platform.indexes.list()],
        platform.inputs,
        lambda who, securable: platform.grants.allowed(who, securable),
    )
    app.include_router(mcp.router(offers, caller))
    app.include_router(oidc.router(platform.oauth))
    app.include_router(feedback.router(caller, platform.feedback))
    app.include_router(experiment_routes.router(platform.experiments, platform.grants, caller))
    app.include_router(secret_routes.router(platform.secrets, caller, platform.identity.principal))


def _searching(app: FastAPI, platform: Platform, caller: Authorize) -> None:
    """Indexes, and the endpoints by which they embed and rerank."""

    async def invoke(request: Request, index: str, task: str, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        asked: Task = "document" if task == "document" else "search"
        call = Call(index, asked, payload, credential=bearer(request.headers), request_id=errors.request_id(request.scope))
        return await platform.dispatcher.invoke(call)

    async def embed_with(endpoint: str, texts: Sequence[str], who: Any) -> Any:
        import numpy as np

        asked = {"input": list(texts)}
        inner = platform.dispatcher.inner_call(endpoint, "embeddings", asked) if who is None else None
        found = await platform.dispatcher.invoke(inner or Call(endpoint, "embeddings", asked, caller=who))
        return np.asarray(found["embeddings"], np.float32)

    async def rerank_with(endpoint: str, query: str, texts: Sequence[str]) -> Any:
        """Scores of a classical model that takes the columns `query` and `document`."""
        import numpy as np

        asked = {"dataframe_split": {"columns": ["query", "document"], "data": [[query, text] for text in texts]}}
        found = await platform.dispatcher.inner(endpoint, "predict", asked)
        return np.asarray(found["predictions"], float).reshape(len(texts))

    platform.indexes.embed_with, platform.indexes.rerank_with = embed_with, rerank_with
    app.include_router(
        retrieval_routes.router(
            platform.indexes,
            caller=caller,
            invoke=invoke,
            visible=lambda who, name: platform.grants.allowed(who, f"index:{name}", "CAN_VIEW"),
            manage=lambda who, name: platform.grants.check(who, f"index:{name}", "CAN_MANAGE"),
            manage_endpoint=lambda who, name: platform.grants.check(who, f"search_endpoint:{name}", "CAN_MANAGE"),
            noted=lambda who, name, before, after: audit.note(
                platform.engine, who.name, "row_access.set", f"index:{name}", before, after
            ),
            calls=lambda names, since, until: durations(platform.engine, names, "search", since, until),
        )
    )
    app.include_router(indexes.router(platform.indexes, platform.grants, caller=caller))


def _tracking(app: FastAPI, platform: Platform, caller: Authorize, server: Mlflow, models: Catalog) -> None:
    """MLflow's tracking and registry, Unity Catalog's models, and files."""
    from serving.tracking import databricks as tracking_databricks
    from serving.tracking import reviews as model_reviews
    from serving.tracking import routes as tracking
    from serving.tracking import webhook_routes

    access = platform.model_access
    # before the tracking server's own paths, which take what is left of `/api/2.0/mlflow`
    app.include_router(files.router(platform.artifacts, server, access, platform.volumes, caller, pepper=platform.home.pepper))
    app.include_router(volumes.router(platform.volumes, caller))
    app.include_router(dbfs.router(dbfs.Dbfs(platform.volumes), caller))
    app.include_router(catalog.router(models, caller))
    app.include_router(prompts.router(models, caller))
    app.include_router(catalog_models.router(models, caller))
    signed_in = authorize(platform.identity)
    app.include_router(tracking_databricks.router(server, access, caller))
    reviews = model_reviews.Reviews(platform.engine)
    access.followers.append(reviews.follow)
    hooks = platform.webhooks
    access.followers.append(hooks.follow)
    access.observers.append(hooks)
    app.include_router(webhook_routes.router(hooks, caller))
    app.include_router(model_reviews.router(reviews, server, access, caller))
    app.include_router(tracking.router(server, signed_in, access, sign_in="/login"))


class _App(FastAPI):
    """The framework's application, past whose own layers calls of endpoints take the short way."""

    direct: Direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.direct(scope, receive, send)

    async def framed(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)


class _Warnings:
    """Pure ASGI middleware: `x-smalti-budget-warning` on answers of calls that found a soft budget used up."""

    def __init__(self, app: ASGIApp, warnings: dict[str, str]) -> None:
        self._app, self._warnings = app, warnings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if self._warnings and message["type"] == "http.response.start":
                warning = self._warnings.pop(errors.request_id(scope), None)
                if warning:
                    told = " ".join(warning.split()).encode("latin-1", "replace")
                    header = (b"x-smalti-budget-warning", told)
                    message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        await self._app(scope, receive, sending)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    platform: Platform = app.state.platform
    if not platform.alone:
        await platform.runtime.open()
        await asyncio.to_thread(lambda: platform.memory)
    await platform.runs.recover()
    await platform.lifecycle.restore()
    platform.locals.start()
    await platform.experiments.start()
    coming_up = asyncio.create_task(_come_up(app))
    try:
        yield
    finally:
        for task in (coming_up, app.state.following, app.state.keeping):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await app.state.pages.stop()
        await platform.close()


async def _come_up(app: FastAPI) -> None:
    platform: Platform = app.state.platform
    try:
        await asyncio.to_thread(platform.indexes.start)
        app.state.reports = await asyncio.to_thread(platform.collection.sync, getattr(app.state, "progress", None))
        if not platform.alone:
            await platform.warm()
        titles = await asyncio.to_thread(platform.collection.titles, lambda name: True, 1)
        app.state.example = f"What is said about {titles[0]}?" if titles else "What is this about?"
    except Exception as error:
        if not type(error).__module__.startswith("retrieval"):
            log.exception("the server cannot become ready")
        app.state.failure = error
        app.state.stop()
        return
    threads = platform.runtime.table
    await asyncio.to_thread(platform.thread_files.tidy, lambda thread, owner: threads.find(thread, owner) is not None)
    app.state.ready = True
    app.state.announce()
    follower = Follower(platform.indexes.over_rows, platform.indexes.embed, platform.on_behalf)
    app.state.following = asyncio.create_task(follower.run())
    if days := platform.settings.journal_days:
        app.state.keeping = asyncio.create_task(keep_on(platform.engine, platform.journal, days))
    # What people and tracing need comes after the first question can be answered.
    if platform.collector:
        platform.collector.start()
    if platform.mlflow and platform.tracer:
        platform.tracer.start()
        await platform.mlflow.start()
    if not platform.alone:  # else with the first page that is asked for
        await app.state.pages.start()
