"""MLflow's tracking server and UI under Smalti's own host, behind its keys.

Paths (https://mlflow.org/docs/latest/rest-api.html): `/api/2.0/mlflow/…`, `/api/3.0/mlflow/…`, `/api/2.0/mlflow-artifacts/…` and
`/v1/traces` are passed as they are; `/mlflow/…` without its prefix: the page there addresses everything relatively. Clients
of a `databricks` URI are told artifact locations that they can follow (`serving.files.artifacts`); who may do what with
registered models says `serving.tracking.access`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from governance.call import Caller, CallError, bad_request, forbidden, unavailable
from serving.files.artifacts import REGISTERED, for_databricks, from_databricks
from serving.tracking.access import ModelAccess, check_unscoped
from serving.tracking.server import MlflowServer, silent, starting

Authorize = Callable[[Request], Awaitable[Caller] | Caller]
Handler = Callable[[Request], Awaitable[Response]]

_HOP_BY_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"} | {
    "transfer-encoding", "upgrade", "host", "expect",
}  # fmt: skip
_NOT_SENT = _HOP_BY_HOP | {"authorization", "cookie", "origin", "referer", "forwarded"}
_NOT_RETURNED = _HOP_BY_HOP | {"set-cookie", "server", "date"}
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_PLAIN = "/:@!$&'()*+,;=~"
_READING = ("GET", "HEAD", "OPTIONS")
_RESOURCES = {
    "artifacts", "datasets", "experiments", "get-online-trace-details", "get-trace-artifact", "label-schemas", "logged-models",
    "metrics", "model-versions", "registered-models", "review-queues", "runs", "scorers", "server-info", "traces",
    "ui-telemetry", "unified-traces", "upload-artifact",
}  # fmt: skip
"""The first word after `…/mlflow/`. MLflow's own gateway, assistant, jobs, webhooks and MCP registry run code, hold keys or call
out on behalf of whoever asks: they stay shut, as does whatever a later release adds."""
_RENAMED = {"experiments/list": "experiments/search", "registered-models/list": "registered-models/search"}
"""What databricks-sdk still asks for under names that MLflow has given up."""
_LOGGED = re.compile(r"/mlflow/logged-models/(m-[^/]+)(?:/params)?$")
MAX_BODY = 128 * 2**20
"""Bytes a request may have, artifacts excepted: MLflow keeps others in memory."""
_LOOKED_AT = 1 << 16  # bytes of a body that is looked at before it is passed on


def router(server: MlflowServer, authorize: Authorize, access: ModelAccess, *, sign_in: str | None = None) -> APIRouter:
    """Routes to the tracking server and its UI, for `app.include_router`.

    Parameters
    ----------
    server: what answers.
    authorize: gives the signed-in caller from a request's key or session cookie, or raises `CallError`.
    access: who may do what with registered models.
    sign_in: path of the sign-in page; a browser without a session is sent there with `?next=…`.
    """
    proxy = _Proxy(server, authorize, access)

    async def api(request: Request) -> Response:
        return await proxy.answer(request, _path(request))

    async def ui(request: Request) -> Response:
        try:
            return await proxy.answer(request, _path(request).removeprefix("/mlflow"), ui=True)
        except CallError as error:
            if error.status == 401 and sign_in and request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return RedirectResponse(f"{sign_in}?next={quote(request.url.path)}", 303)
            raise

    def told(handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except CallError as error:
                headers = {} if error.retry_after is None else {"retry-after": str(max(1, round(error.retry_after)))}
                body = {"error_code": error.code, "message": error.message}
                return JSONResponse(body, status_code=error.status, headers=headers)

        return answer

    async def to_ui(request: Request) -> Response:
        return RedirectResponse("/mlflow/", 307)

    async def from_workspace(request: Request) -> Response:
        """Where clients of a `databricks` URI tell people that their run is to be seen."""
        return RedirectResponse(f"/mlflow/#/{quote(request.path_params['path'], safe='/')}", 307)

    routes = APIRouter()
    for path in ("/api/2.0/mlflow", "/api/3.0/mlflow", "/api/2.0/mlflow-artifacts"):
        routes.add_route(path + "/{path:path}", told(api), methods=_METHODS, include_in_schema=False)
    routes.add_route(
        "/api/4.0/mlflow/traces/{location}/batchGet", told(proxy.traces), methods=["GET", "POST"], include_in_schema=False
    )
    routes.add_route("/v1/traces", told(api), methods=["POST"], include_in_schema=False)
    routes.add_route("/mlflow", to_ui, methods=["GET"], include_in_schema=False)
    routes.add_route("/ml/{path:path}", from_workspace, methods=["GET"], include_in_schema=False)
    routes.add_route("/mlflow/{path:path}", told(ui), methods=_METHODS, include_in_schema=False)
    return routes


def _path(request: Request) -> str:
    """The request's path below the mount point, decoded."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


class _Proxy:
    """Passes a request on to the tracking server, and its answer back; parameters as for `router`."""

    def __init__(self, server: MlflowServer, authorize: Authorize, access: ModelAccess) -> None:
        self._server, self._authorize, self._access = server, authorize, access

    async def caller(self, request: Request) -> Caller:
        caller = self._authorize(request)
        if not isinstance(caller, Caller):
            caller = await caller
        if request.method not in _READING and "authorization" not in request.headers:
            _same_origin(request)
        return check_unscoped(caller)

    async def answer(self, request: Request, path: str, *, ui: bool = False) -> Response:
        who = await self.caller(request)
        more, databricks = "", not ui and "databricks-sdk" in request.headers.get("user-agent", "")
        if databricks:
            head, _, rest = path.partition("/mlflow/")
            path, more = (f"{head}/mlflow/{_RENAMED[rest]}", "max_results=1000") if rest in _RENAMED else (path, "")
        artifact = _admit(request, path, ui)
        if not self._server.ready.is_set():
            raise starting()
        if artifact:
            await self._admit_artifact(who, request, path)
        action = _registry_action(path)
        headers = [(k, v) for k, v in request.headers.items() if k not in _NOT_SENT and not k.startswith("x-forwarded")]
        fields: Mapping[str, Any] = request.query_params
        content: AsyncIterator[bytes] | bytes | None = None
        length = request.headers.get("content-length", "")
        if not artifact and "/mlflow/" in path and length.isdecimal() and int(length) <= min(_LOOKED_AT, MAX_BODY):
            await _must_be_object(request, traced=request.method == "POST" and path.endswith("/api/2.0/mlflow/traces"))
        if "content-length" in request.headers or "transfer-encoding" in request.headers:
            content = _body(request, None if artifact else MAX_BODY)
            made = path.endswith("/mlflow/experiments/create")
            if made or action or (databricks and not artifact):
                content = b"".join([chunk async for chunk in content])
                content = await asyncio.to_thread(from_databricks, content) if databricks else content
                if databricks and path.endswith("/mlflow/experiments/search") and request.method == "POST":
                    content = json.dumps({"max_results": 1000, **_object(content or b"{}")}).encode()  # left out, it is 0 there
                if databricks and request.method in ("POST", "PATCH") and (model := _LOGGED.search(path)):
                    content = json.dumps({**_object(content or b"{}"), "model_id": model[1]}).encode()  # the path says it alone
                if made or (action and request.method not in _READING):
                    fields = _object(content) if content or made else dict(request.query_params)
                    content = _new_experiment(fields, who) if made else json.dumps(fields).encode()
                headers = [(k, v) for k, v in headers if k not in ("content-length", "content-encoding")]
        if len(request.query_params.getlist("name")) > 1:
            raise bad_request("The query names 'name' twice.", "name")
        if action:
            await asyncio.to_thread(self._access.admit, who, *action, request.method, fields)
        if databricks or action or "accept-encoding" not in request.headers:
            headers = [*((k, v) for k, v in headers if k != "accept-encoding"), ("accept-encoding", "identity")]
        query = request.scope.get("query_string", b"").decode("latin-1")
        if more and "max_results" not in request.query_params:
            query = f"{query}&{more}" if query else more
        url = httpx.URL(f"http://localhost{quote(path, safe=_PLAIN)}" + (f"?{query}" if query else ""))
        try:
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]  # as they came: bytes
            onward = self._server.client.build_request(request.method, url, headers=raw, content=content)
            upstream = await self._server.client.send(onward, stream=True, follow_redirects=False)
        except ClientDisconnect:
            return Response(status_code=499)
        except httpx.HTTPError as error:
            raise silent(error) from error
        if upstream.status_code >= 500 and not (artifact or ui or "json" in upstream.headers.get("content-type", "")):
            await upstream.aclose()
            raise unavailable(f"MLflow failed with HTTP {upstream.status_code} on {path}. Check the request's fields.")
        kept = [(k.lower(), v) for k, v in upstream.headers.raw if k.lower().decode("latin-1") not in _NOT_RETURNED]
        response: Response
        if not artifact and (databricks or action) and "json" in upstream.headers.get("content-type", ""):
            body = await _whole(upstream)
            if action and upstream.is_success:
                body = await asyncio.to_thread(self._after, who, action, fields, body)
            body = await asyncio.to_thread(for_databricks, body) if databricks else body
            kept = [(k, v) for k, v in kept if k not in (b"content-length", b"content-encoding")]
            response = Response(body, upstream.status_code)
            kept.append((b"content-length", str(len(body)).encode()))
        else:
            response = StreamingResponse(_relay(upstream), upstream.status_code)
        response.raw_headers = kept
        if location := upstream.headers.get("location"):
            parts = urlsplit(location)
            response.headers["location"] = ("/mlflow" if ui else "") + parts.path + (f"?{parts.query}" if parts.query else "")
        if artifact:
            # What people upload is shown on this host: it must not run as a page of it.
            response.headers["content-security-policy"] = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        return response

    async def traces(self, request: Request) -> Response:
        """Traces with their spans, which clients of a `databricks` URI ask for at the fourth API only."""
        await self.caller(request)
        given: Any = request.query_params
        wanted = given.getlist("trace_ids")
        if request.method == "POST":
            wanted = _object(b"".join([chunk async for chunk in _body(request, MAX_BODY)])).get("trace_ids") or []
        found = await self._server.ask("GET", "/api/3.0/mlflow/traces/batchGet", {"trace_ids": wanted})
        return Response(for_databricks(json.dumps(found).encode()), media_type="application/json")

    async def _admit_artifact(self, who: Caller, request: Request, path: str) -> None:
        """The files of registered versions are read by whom the model is granted to, and never written here."""
        words = path.strip("/").split("/")
        if words[-1] == "get-artifact" and "model-versions" in words:
            await asyncio.to_thread(self._access.check, who, request.query_params.get("name", ""))
        if "mlflow-artifacts" not in words:
            return
        moved = "/".join(words[words.index("mlflow-artifacts") + 2 :]) or request.query_params.get("path", "")
        while (plain := unquote(moved)) != moved:
            moved = plain
        inner = [part for part in moved.split("/") if part not in ("", ".")]
        if inner[:1] and inner[0] in ("create", "complete", "abort"):  # a large upload's steps
            inner = inner[1:]
        first = inner[0] if inner else ""
        if ".." in inner:
            raise bad_request("The path must not contain '..'.")
        if first == REGISTERED:
            location = f"mlflow-artifacts:/{'/'.join(inner[:2])}"
            model = await asyncio.to_thread(self._access.registry.holder, location) if len(inner) > 1 else None
            if request.method not in _READING or (model is None and not who.admin):
                raise forbidden("The files of registered models change only with a new version of the model.")
            if model is not None:
                await asyncio.to_thread(self._access.check, who, model)
        elif request.method not in _READING and not first.isdigit() and not who.admin:
            raise forbidden("Files are written to the folder of an experiment: a number first.")

    def _after(self, who: Caller, action: tuple[str, str], fields: Mapping[str, Any], body: bytes) -> bytes:
        """What follows from a registry call that went well: grants are kept, a search shows what one may see."""
        match action:
            case ["registered-models", "create"]:
                self._access.created(who, str(fields["name"]))
            case ["registered-models", "rename"]:
                self._access.renamed(str(fields["name"]), str(fields["new_name"]))
            case ["registered-models", "delete"]:
                self._access.deleted(str(fields["name"]))
            case [resource, "search"]:
                found = json.loads(body)
                key = resource.replace("-", "_")
                found[key] = self._access.visible(who, found.get(key) or ())
                return json.dumps(found).encode()
        return body


def _registry_action(path: str) -> tuple[str, str] | None:
    """Resource and action of a call of the registry API, as `("registered-models", "create")`."""
    words = path.strip("/").split("/")
    if len(words) < 5 or words[2] != "mlflow" or words[3] not in ("registered-models", "model-versions"):
        return None
    return words[3], words[4]


def _admit(request: Request, path: str, ui: bool) -> bool:
    """Refuse what is not the tracking server's business; True where an artifact is moved."""
    if path == "/v1/traces":
        return False
    words = path.strip("/").split("/")
    if ".." in words or "\\" in path:
        raise bad_request("The path must not contain '..'.")
    if words[0] in ("api", "ajax-api") and len(words) > 3:
        if words[2] == "mlflow-artifacts":
            return True
        if words[2] == "mlflow" and words[3] in _RESOURCES and words[-1] != "invoke":
            return "artifact" in path
    elif ui and (words[0] in ("", "static-files", "graphql", "version", "health") or path.endswith("/get-artifact")):
        return "artifact" in path
    message = f"{path} is not served here: of MLflow's server there are tracking, registry, traces and artifacts."
    raise CallError(message, status=404, code="ENDPOINT_NOT_FOUND")


async def _must_be_object(request: Request, *, traced: bool) -> None:
    """Refuse a short JSON body that is no object: the tracking server would fail on it. Raises `CallError`."""
    if "json" in request.headers.get("content-type", "json") and "content-encoding" not in request.headers:
        body = (await request.body()).lstrip()
        if body[:1] not in (b"", b"{", b'"'):
            raise bad_request("The body must be a JSON object.")
        fields = _object(body) if traced or body[:1] == b'"' else {}
        if traced and not str(fields.get("experiment_id", "")).isdecimal():
            raise bad_request("Field 'experiment_id' must be the number of an experiment.", "experiment_id")


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
        if isinstance(fields, str):  # old clients encode twice
            fields = json.loads(fields)
    except ValueError as error:
        raise bad_request(f"The body must be a JSON object: {error}.") from error
    if not isinstance(fields, dict):
        raise bad_request("The body must be a JSON object.")
    return fields


def _new_experiment(fields: Mapping[str, Any], caller: Caller) -> bytes:
    """A folder of the server's own as an experiment's artifact location would let its files be read as artifacts."""
    if not caller.admin and (fields.get("artifact_location") or fields.get("artifactLocation")):
        raise forbidden("Only an admin may choose an experiment's artifact_location; leave it out.")
    return json.dumps(fields).encode()


def _same_origin(request: Request) -> None:
    """A write that came with a session cookie must come from a page of this host."""
    headers = request.headers
    origin = headers.get("origin") or headers.get("referer")
    if not (urlsplit(origin).netloc == headers.get("host") if origin else headers.get("sec-fetch-site") == "same-origin"):
        raise forbidden("A write without an Authorization header must come from a page of this host. Send a key as bearer token.")


async def _body(request: Request, limit: int | None) -> AsyncIterator[bytes]:
    message = f"The request is larger than the {(limit or 0) >> 20} MB that are taken here; upload large data as an artifact."
    if limit is not None and int(request.headers.get("content-length") or 0) > limit:
        raise CallError(message, status=413, code="BAD_REQUEST")
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if limit is not None and size > limit:
            raise CallError(message, status=413, code="BAD_REQUEST")
        yield chunk


async def _relay(upstream: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in upstream.aiter_raw():
            yield chunk
    finally:
        await upstream.aclose()


async def _whole(upstream: httpx.Response) -> bytes:
    try:
        return await upstream.aread()
    finally:
        await upstream.aclose()
