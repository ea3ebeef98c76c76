"""OAuth paths as Databricks' clients use them: where tokens are had, and the tokens.

Source: https://docs.databricks.com/aws/en/dev-tools/auth/oauth-m2m and https://www.rfc-editor.org/rfc/rfc6749#section-5
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any
from urllib.parse import parse_qs, unquote_plus

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from governance.call import CallError, bad_request
from governance.oauth import OAuth
from serving.routes import read_body

_JWT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


def router(oauth: OAuth) -> APIRouter:
    """`/oidc/.well-known/oauth-authorization-server` and `/oidc/v1/token`."""
    routes = APIRouter()

    async def about(http: Request) -> Response:
        host = str(http.base_url).rstrip("/")
        return _json(
            {
                "issuer": f"{host}/oidc",
                "authorization_endpoint": f"{host}/oidc/v1/authorize",
                "token_endpoint": f"{host}/oidc/v1/token",
                "grant_types_supported": ["client_credentials", _JWT],
                "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
                "response_types_supported": [],
                "scopes_supported": ["all-apis"],
            }
        )

    async def token(http: Request) -> Response:
        try:
            fields = {key: values[0] for key, values in parse_qs((await read_body(http, 65_536)).decode()).items()}
        except (UnicodeDecodeError, ValueError):
            raise bad_request("The body must be a form: grant_type=client_credentials.") from None
        try:
            match fields.get("grant_type"):
                case "client_credentials":
                    client, secret = _client(http, fields)
                    made, lifetime = await asyncio.to_thread(oauth.token, client, secret)
                case kind if kind == _JWT:
                    made, lifetime = await asyncio.to_thread(oauth.exchange, fields.get("assertion", ""))
                case _:
                    return _refused("unsupported_grant_type", f"grant_type must be client_credentials or {_JWT}", 400)
        except CallError as error:
            if error.status != 401:
                raise
            return _refused("invalid_client", error.message, 401)
        about = {"access_token": made, "token_type": "Bearer", "expires_in": lifetime, "scope": fields.get("scope", "all-apis")}
        return _json(about, headers={"cache-control": "no-store"})

    for path in ("/oidc/.well-known/oauth-authorization-server", "/oidc/.well-known/openid-configuration"):
        routes.add_route(path, about, methods=["GET"], include_in_schema=False)
    routes.add_route("/oidc/v1/token", token, methods=["POST"], include_in_schema=False)
    return routes


def _client(http: Request, fields: dict[str, str]) -> tuple[str, str]:
    """Client id and secret, from the Authorization header or the form."""
    kind, _, given = http.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(given, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return unquote_plus(name), unquote_plus(secret)
    return fields.get("client_id", ""), fields.get("client_secret", "")


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")


def _refused(error: str, message: str, status: int) -> Response:
    headers = {"www-authenticate": "Basic"} if status == 401 else {}
    return _json({"error": error, "error_description": message}, status, headers)
