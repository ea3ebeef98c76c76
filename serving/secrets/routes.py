"""The secrets API: scopes, secrets and access lists. Source: https://docs.databricks.com/api/workspace/secrets"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from governance.call import Caller, CallError, bad_request, not_found
from serving.protocols.request import parse, take
from serving.routes import read_body
from serving.secrets.scopes import EVERYONE, MAX_VALUE, Scopes
from serving.tracking.access import check_unscoped

Work = Callable[[Caller, Mapping[str, Any]], Any]


def router(scopes: Scopes, authorize: Callable[[Request], Awaitable[Caller]], principal: Callable[[str], str]) -> APIRouter:
    """Routes.

    Parameters
    ----------
    authorize: who asks; raises `CallError`.
    principal: `KIND:NAME` of a principal that is named without its kind.
    """

    def text(fields: Mapping[str, Any], key: str) -> str:
        return take(fields, key, str, required=True)

    def holder(fields: Mapping[str, Any]) -> str:
        given = text(fields, "principal")
        return EVERYONE if given == "users" else principal(given)

    def create(who: Caller, fields: Mapping[str, Any]) -> Any:
        if take(fields, "scope_backend_type", str) not in (None, "DATABRICKS"):
            raise CallError("Scopes are kept by this server only.", status=400, code="INVALID_PARAMETER_VALUE")
        first = take(fields, "initial_manage_principal", str)
        if first not in (None, "", "users"):
            raise CallError("initial_manage_principal is 'users' or left out.", status=400, code="INVALID_PARAMETER_VALUE")
        scopes.create(who, text(fields, "scope"), for_everyone=first == "users")

    def listing(who: Caller, fields: Mapping[str, Any]) -> Any:
        return {"scopes": [{"name": name, "backend_type": "DATABRICKS"} for name in scopes.scopes(who)]}

    def put(who: Caller, fields: Mapping[str, Any]) -> Any:
        value, raw = take(fields, "string_value", str), take(fields, "bytes_value", str)
        if (value is None) == (raw is None):
            raise bad_request("Send the secret as exactly one of 'string_value' and 'bytes_value'.", "string_value")
        try:
            given = value.encode() if value is not None else base64.b64decode(raw, validate=True)
        except (binascii.Error, ValueError):
            raise bad_request("Field 'bytes_value' must be base64, 'string_value' plain text.", "bytes_value") from None
        scopes.put(who, text(fields, "scope"), text(fields, "key"), given)

    def keys(who: Caller, fields: Mapping[str, Any]) -> Any:
        found = scopes.keys(who, text(fields, "scope"))
        return {"secrets": [{"key": key, "last_updated_timestamp": changed} for key, changed in found]}

    def get(who: Caller, fields: Mapping[str, Any]) -> Any:
        key = text(fields, "key")
        return {"key": key, "value": base64.b64encode(scopes.get(who, text(fields, "scope"), key)).decode()}

    def acls(who: Caller, fields: Mapping[str, Any]) -> Any:
        return {"items": [_item(*pair) for pair in scopes.acls(who, text(fields, "scope")).items()]}

    def get_acl(who: Caller, fields: Mapping[str, Any]) -> Any:
        held = scopes.acls(who, text(fields, "scope"))
        wanted = holder(fields)
        if wanted not in held:
            raise not_found(f"There is no access of {fields['principal']} to scope {fields['scope']}.")
        return _item(wanted, held[wanted])

    handlers: dict[tuple[str, str], Work] = {
        ("POST", "scopes/create"): create,
        ("POST", "scopes/delete"): lambda who, fields: scopes.delete(who, text(fields, "scope")),
        ("GET", "scopes/list"): listing,
        ("POST", "put"): put,
        ("POST", "delete"): lambda who, fields: scopes.remove(who, text(fields, "scope"), text(fields, "key")),
        ("GET", "list"): keys,
        ("GET", "get"): get,
        ("POST", "acls/put"): lambda who, fields: scopes.put_acl(
            who, text(fields, "scope"), holder(fields), text(fields, "permission")
        ),
        ("POST", "acls/delete"): lambda who, fields: scopes.delete_acl(who, text(fields, "scope"), holder(fields)),
        ("GET", "acls/list"): acls,
        ("GET", "acls/get"): get_acl,
    }
    routes = APIRouter()

    def add(method: str, path: str, work: Work) -> None:
        async def handler(http: Request) -> Response:
            who = check_unscoped(await authorize(http))
            fields = dict(http.query_params) if method == "GET" else parse(await read_body(http, 2 * MAX_VALUE) or b"{}")
            made = await asyncio.to_thread(work, who, fields)
            headers = {"cache-control": "no-store"}
            return Response(orjson.dumps(made or {}), headers=headers, media_type="application/json")

        routes.add_route(f"/api/2.0/secrets/{path}", handler, methods=[method], include_in_schema=False)

    for (method, path), work in handlers.items():
        add(method, path, work)
    return routes


def _item(principal: str, permission: str) -> dict[str, str]:
    return {"principal": principal.partition(":")[2], "permission": permission}
