"""HTTP: the OpenAI and Databricks paths that lead to endpoints. Each call goes through the dispatcher, so the gateway.

Bodies are read raw and parsed once.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import orjson
from fastapi import APIRouter
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Scope

from governance.call import Call, Caller, CallError, bad_request
from serving.answering import Answering
from serving.dispatch import Dispatcher
from serving.endpoint import Endpoint
from serving.errors import request_id
from serving.protocols import chat, completions, embeddings, invocations, previous, responses, sse, ui_messages
from serving.protocols.previous import Journal
from serving.protocols.request import Encoder, Request, parse
from serving.runs import Runs, missing
from serving.stored import StoredResponses

MAX_BODY = 16 * 1024 * 1024
"""Bytes of a request body, unpacked."""

Decoded = tuple[Request, Callable[[Call], Encoder]]
Decode = Callable[[dict[str, Any], str | None], Decoded]

Before = Callable[[str, Caller], Awaitable[list[dict[str, Any]]]]
"""`before(conversation_id, caller)`: what goes before the input."""

BODY_SECONDS = 300.0
"""How long a request's body may take to come."""

_MEMBERS = 64  # of gzip in one body

_BEARER = re.compile(r"bearer\s+(\S+)\s*", re.IGNORECASE)


class Identity(Protocol):
    """What is needed of `governance.identity.Identity`."""

    def authenticate(self, secret: str | None) -> Caller: ...


class Grants(Protocol):
    """What is needed of `governance.grants.Grants`."""

    def check(self, caller: Caller, securable: str, level: str = "CAN_QUERY") -> None: ...

    def allowed(self, caller: Caller, securable: str, level: str = "CAN_QUERY") -> bool: ...

    def level(self, caller: Caller, securable: str) -> str | None: ...


def bearer(headers: Any) -> str | None:
    """The bearer token of an `Authorization` header, None where there is none."""
    match = _BEARER.fullmatch(headers.get("authorization", ""))
    return match[1] if match else None


def _presented(scope: Scope) -> str | None:
    """What `bearer` gives, read where it stands."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            match = _BEARER.fullmatch(value.decode("latin-1"))
            return match[1] if match else None
    return None


def _unpacked(packed: bytes, most: int) -> bytes:
    """What gzip packed, in one member or several (RFC 1952), or the first `most` bytes of it. Raises `zlib.error`."""
    parts: list[bytes] = []
    while packed and most > 0:
        if len(parts) == _MEMBERS:
            raise zlib.error("too many members")
        unpacker = zlib.decompressobj(31)
        parts.append(unpacker.decompress(packed, most))
        most -= len(parts[-1])
        if not unpacker.eof and most > 0:
            raise zlib.error("cut short")
        packed = unpacker.unused_data.lstrip(b"\0")  # as padding
    return b"".join(parts)


async def read_body(request: HttpRequest, limit: int = MAX_BODY) -> bytes:
    """The whole body; raises `CallError` (413) past `limit` bytes and (415) for an encoding that is not read."""

    def too_large() -> CallError:
        message = f"The body is larger than {limit / 1024 / 1024:g} MB. Send less at a time: fewer rows, or less text."
        return CallError(message, status=413, code="REQUEST_TOO_LARGE")

    length, encoding = b"", "identity"
    for name, value in request.scope["headers"]:
        if name == b"content-length":
            length = value
        elif name == b"content-encoding":
            encoding = value.decode("latin-1").lower()
    if length.isdigit() and int(length) > limit:
        raise too_large()
    chunks, size, more = [], 0, True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > limit:
                    raise too_large()
                more = message.get("more_body", False)
    except TimeoutError:
        message = f"The body did not come whole within {BODY_SECONDS:g} s. Send it again."
        raise CallError(message, status=408, code="REQUEST_TIMEOUT") from None
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if encoding == "gzip":
        try:
            body = _unpacked(body, limit + 1)
        except zlib.error:
            raise bad_request("The body is not valid gzip, or is cut short.") from None
        if len(body) > limit:
            raise too_large()
    elif encoding != "identity":
        raise CallError(f"Content-Encoding {encoding[:40]!r} is not read; send gzip or none.", status=415, code="BAD_REQUEST")
    return body


class Face:
    """The handlers of the paths that call endpoints.

    Parameters
    ----------
    dispatcher: runs calls.
    identity: who holds a key, for the listings and for requests that cannot be read.
    grants: which endpoints a caller may query.
    journal: where the response that a request continues is found; None where requests must bring their history.
    runs: runs in the background; None where there are none.
    before: the items that go before the input of a conversation's first response.
    max_body: bytes of a request body.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        identity: Identity,
        grants: Grants,
        *,
        journal: Journal | None = None,
        runs: Runs | None = None,
        before: Before | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        self.dispatcher, self._identity, self._grants = dispatcher, identity, grants
        self._journal, self._runs, self._before, self._max_body = journal, runs, before, max_body
        self._stored = journal if isinstance(journal, StoredResponses) else None

    async def answer(self, http: HttpRequest, decode: Decode) -> Any:
        """Decode a request and run it as a call."""
        name = http.path_params.get("name")
        credential = _presented(http.scope)
        identifier = request_id(http.scope)
        if credential is None:  # refused by the gateway, which records it; the body is not worth reading
            call = Call(name or "", "chat", {}, request_id=identifier)
            return Answering(self.dispatcher, call, chat.Encoder(call))
        try:
            request, encoder = decode(parse(await read_body(http, self._max_body)), name)
            if request.previous or request.thread_id:
                request = await self._continued(request, credential)
        except CallError:
            await self.caller(http)  # who has no valid key learns that first
            raise
        endpoint = self.dispatcher.endpoints.find(request.model)
        agent = endpoint is not None and endpoint.call_task == "agent" and request.task == "chat"
        call = Call(
            endpoint=request.model,
            task="agent" if agent else request.task,
            payload=request.payload,
            credential=credential,
            request_id=identifier,
            client_request_id=request.client_request_id,
            thread_id=request.thread_id if agent else None,
            stream=request.stream,
            usage_context=request.usage_context,
        )
        if request.payload.get("background") and request.task == "chat":
            return await self._background(http, call)
        if endpoint is not None:
            return Answering(self.dispatcher, call, encoder(call), endpoint=endpoint)
        return Answering(self.dispatcher, call, encoder(call), explain=partial(self._explain, credential, request.model))

    async def _background(self, http: HttpRequest, call: Call) -> Response:
        """Begin a run that outlives this connection; its Response so far, or its stream."""
        if self._runs is None:
            raise bad_request("Field 'background' must be false: answers are given here on the connection.", "background")
        caller = await self.caller(http)
        begun = await self._runs.start(replace(call, stream=True), caller)
        if call.stream:
            return self._followed(call.request_id, caller, -1)
        return Response(orjson.dumps(begun), media_type="application/json")

    def _followed(self, run_id: str, caller: Caller, after: int) -> Response:
        assert self._runs is not None
        follow = self._runs.follow(run_id, caller, after)
        encoder = responses.Encoder(Call("", "chat", {}), first=after + 1)

        async def frames() -> AsyncIterator[bytes]:
            async with aclosing(follow):
                async for _, event in follow:
                    yield encoder.event(event)

        headers = {key.decode(): value.decode() for key, value in sse.HEADERS}
        return StreamingResponse(frames(), headers=headers, media_type="text/event-stream")

    async def _continued(self, request: Request, credential: str) -> Request:
        """The request with the conversation that it continues: on the same thread, or with the history in front."""
        if self._before is not None and request.task == "chat" and (request.thread_id or "").startswith("conv_"):
            caller = await asyncio.to_thread(self._identity.authenticate, credential)
            if held := await self._before(request.thread_id or "", caller):
                return replace(request, payload={**request.payload, "input": [*held, *request.payload["input"]]})
        if not request.previous or self._journal is None:
            return request
        caller = await asyncio.to_thread(self._identity.authenticate, credential)
        found = await asyncio.to_thread(previous.find, self._journal, caller, request.previous)
        if found.thread_id:
            return replace(request, thread_id=found.thread_id)
        return replace(request, payload={**request.payload, "input": [*found.items, *request.payload["input"]]})

    def _explain(self, credential: str, model: str, error: CallError) -> CallError:
        if error.status != 404:
            return error
        better = self.dispatcher.endpoints.missing(
            model, [each.name for each in self.visible(self._identity.authenticate(credential))]
        )
        better.param = "model"
        return better

    async def caller(self, http: HttpRequest) -> Caller:
        """Who asks; raises `CallError` (401)."""
        return await self.authenticate(bearer(http.headers))

    async def authenticate(self, secret: str | None) -> Caller:
        """Who holds a key; raises `CallError` (401)."""
        return await asyncio.to_thread(self._identity.authenticate, secret)

    def visible(self, caller: Caller) -> list[Endpoint]:
        """The endpoints a caller may query."""
        return [each for each in self.dispatcher.endpoints if self._grants.allowed(caller, f"endpoint:{each.name}")]

    async def models(self, http: HttpRequest) -> Response:
        """`GET /v1/models`: the endpoints the caller may query."""
        caller = await self.caller(http)
        endpoints = await asyncio.to_thread(self.visible, caller)
        return Response(
            orjson.dumps({"object": "list", "data": [_model(each) for each in endpoints]}), media_type="application/json"
        )

    async def stored(self, http: HttpRequest) -> Response:
        """`GET /v1/responses/{response_id}`: an answer that was given before, or a run that goes on; to whom it belongs.

        With `stream=true` the run's events after `starting_after`, to its end.
        """
        caller = await self.caller(http)
        run_id = http.path_params["response_id"].removeprefix("resp_")
        query = http.query_params
        if self._stored is not None:
            await asyncio.to_thread(self._stored.check, run_id)
        found = await self._runs.get(run_id, caller) if self._runs is not None else None
        if query.get("stream") == "true":
            if found is None:
                raise missing(run_id)
            after = query.get("starting_after", "-1")
            if not re.fullmatch(r"-1|\d{1,9}", after):
                raise bad_request("Query parameter 'starting_after' must be the sequence_number of an event.", "starting_after")
            return self._followed(run_id, caller, int(after))
        if found is not None:
            return Response(orjson.dumps(found), media_type="application/json")
        if self._journal is None:
            raise CallError("Responses are not stored here.", status=404, code="RESOURCE_DOES_NOT_EXIST")
        stored = await asyncio.to_thread(
            previous.find, self._journal, caller, http.path_params["response_id"], param="response_id"
        )
        return Response(orjson.dumps(stored.response), media_type="application/json")

    async def asked(self, http: HttpRequest) -> Response:
        """`GET /v1/responses/{response_id}/input_items`: what a stored answer was given to, the oldest first."""
        caller = await self.caller(http)
        if self._journal is None:
            raise CallError("Responses are not stored here.", status=404, code="RESOURCE_DOES_NOT_EXIST")
        named = http.path_params["response_id"]
        stored = await asyncio.to_thread(previous.find, self._journal, caller, named, param="response_id")
        return Response(orjson.dumps(stored.input_items()), media_type="application/json")

    async def deleted(self, http: HttpRequest) -> Response:
        """`DELETE /v1/responses/{response_id}`: it is not found again, nor continued. A run in the background is stopped."""
        caller = await self.caller(http)
        named = http.path_params["response_id"]
        if self._stored is None:
            raise missing(named)
        if self._runs is not None:
            with contextlib.suppress(CallError):
                await self._runs.cancel(named.removeprefix("resp_"), caller)
        await asyncio.to_thread(self._stored.delete, caller, named)
        return Response(orjson.dumps({"id": named, "object": "response", "deleted": True}), media_type="application/json")

    async def counted(self, http: HttpRequest) -> Response:
        """`POST /v1/responses/input_tokens`: the tokens that limits reckon with before such a request is answered."""
        caller = await self.caller(http)
        request = responses.decode(parse(await read_body(http, self._max_body)))
        if request.model not in {each.name for each in await asyncio.to_thread(self.visible, caller)}:
            raise self.dispatcher.endpoints.missing(request.model, [each.name for each in self.visible(caller)])
        request = await self._continued(request, bearer(http.headers) or "")
        given = {key: request.payload[key] for key in ("input", "instructions", "tools", "text") if key in request.payload}
        told = {"object": "response.input_tokens", "input_tokens": max(-(-len(orjson.dumps(given)) // 4), 1)}
        return Response(orjson.dumps(told), media_type="application/json")

    async def cancelled(self, http: HttpRequest) -> Response:
        """`POST /v1/responses/{response_id}/cancel`: stop a run in the background."""
        caller = await self.caller(http)
        run_id = http.path_params["response_id"].removeprefix("resp_")
        if self._runs is None:
            raise missing(run_id)
        return Response(orjson.dumps(await self._runs.cancel(run_id, caller)), media_type="application/json")

    async def model(self, http: HttpRequest) -> Response:
        """`GET /v1/models/{name}`."""
        caller = await self.caller(http)
        endpoints = {each.name: each for each in await asyncio.to_thread(self.visible, caller)}
        name = http.path_params["name"]
        if name not in endpoints:
            raise self.dispatcher.endpoints.missing(name, list(endpoints))
        return Response(orjson.dumps(_model(endpoints[name])), media_type="application/json")


def _model(endpoint: Endpoint) -> dict[str, Any]:
    created = endpoint.created_ms // 1000
    return {"id": endpoint.name, "object": "model", "created": created, "owned_by": endpoint.creator, "task": endpoint.task}


def _chat(body: dict[str, Any], name: str | None, *, databricks: bool) -> Decoded:
    request = chat.decode(body, model=name)
    return request, lambda call: chat.Encoder(call, include_usage=request.options["include_usage"], databricks=databricks)


def _completions(body: dict[str, Any], name: str | None, *, databricks: bool) -> Decoded:
    request = completions.decode(body, model=name)
    return request, lambda call: completions.Encoder(call, include_usage=request.options["include_usage"], databricks=databricks)


def _responses(body: dict[str, Any], name: str | None, *, databricks: bool) -> Decoded:
    return responses.decode(body, model=name), responses.Encoder


def _embeddings(body: dict[str, Any], name: str | None, *, databricks: bool) -> Decoded:
    request = embeddings.decode(body, model=name)
    return request, lambda call: embeddings.Encoder(call, encoding=request.options["encoding"])


_PATHS = {"chat/completions": _chat, "completions": _completions, "responses": _responses, "embeddings": _embeddings}
_PREFIXES = ("/v1", "/serving-endpoints", "/ai-gateway/mlflow/v1", "/ai-gateway/openai/v1")


def router(face: Face) -> APIRouter:
    """The paths clients call endpoints by."""
    routes = APIRouter()

    def post(path: str, decode: Decode) -> None:
        async def handler(http: HttpRequest) -> Any:
            return await face.answer(http, decode)

        routes.add_route(path, handler, methods=["POST"], include_in_schema=False)

    for prefix in _PREFIXES:
        for path, decode in _PATHS.items():
            post(f"{prefix}/{path}", partial(decode, databricks=prefix != "/v1"))
        routes.add_route(f"{prefix}/responses/input_tokens", face.counted, methods=["POST"], include_in_schema=False)
        routes.add_route(prefix + "/responses/{response_id}", face.stored, methods=["GET"], include_in_schema=False)
        routes.add_route(prefix + "/responses/{response_id}", face.deleted, methods=["DELETE"], include_in_schema=False)
        routes.add_route(prefix + "/responses/{response_id}/input_items", face.asked, methods=["GET"], include_in_schema=False)
        routes.add_route(prefix + "/responses/{response_id}/cancel", face.cancelled, methods=["POST"], include_in_schema=False)
        routes.add_route(f"{prefix}/models", face.models, methods=["GET"], include_in_schema=False)
        routes.add_route(prefix + "/models/{name:path}", face.model, methods=["GET"], include_in_schema=False)

    def drawn(body: dict[str, Any], name: str | None) -> Decoded:
        return ui_messages.decode(body, model=name), ui_messages.Encoder

    post("/v1/agents/{name}/chat", drawn)

    def invoked(body: dict[str, Any], name: str | None) -> Decoded:
        endpoint = face.dispatcher.endpoints.find(name or "")
        return invocations.decode(body, model=name or "", task=endpoint.task if endpoint else None)

    for prefix in ("/serving-endpoints", "/api/2.0/serving-endpoints"):
        post(prefix + "/{name}/invocations", invoked)
    return routes
