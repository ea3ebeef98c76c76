"""Personal access tokens: keys that people make, list and delete for themselves, as databricks-sdk's `tokens` asks for them.

A token is good for what the key is good for that made it, for as long at most, and ends with it. Administrators see and delete
everybody's (`token_management`).

Source: https://docs.databricks.com/api/workspace/tokens and …/tokenmanagement
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from governance.call import Caller, CallError, bad_request, forbidden, not_found
from governance.identity import Identity
from governance.key import Key
from governance.routes import json_body, parse_body

MOST = 600
"""Tokens that one may hold, as on Databricks."""


class NewToken(BaseModel):
    """What a token is to be."""

    model_config = ConfigDict(extra="forbid")

    comment: str = Field(default="", max_length=256)
    lifetime_seconds: int | None = Field(default=None, gt=0, description="none: as long as the key that makes it")


class Told(BaseModel):
    """What of a token can be changed."""

    comment: str = Field(default="", max_length=256)


class Change(BaseModel):
    """A change of a token."""

    token: Told
    update_mask: str = "comment"


class TokenId(BaseModel):
    """Which token is meant."""

    token_id: str


def router(identity: Identity, *, caller: Callable[..., Any]) -> APIRouter:
    """`caller`: FastAPI dependency that gives the authenticated `Caller`, or raises `CallError` 401."""
    routes = APIRouter(tags=["governance"])
    who_asks, sent = Depends(caller), Depends(json_body)

    def held(who: Caller) -> list[Key]:
        return [key for key in identity.list_keys(who.name) if key.kind == who.kind and key.live]

    @routes.post("/api/2.0/token/create")
    def create(body: Any = sent, who: Caller = who_asks) -> dict[str, Any]:
        wanted, own = parse_body(NewToken, body), held(who)
        if len(own) >= MOST:
            message = f"{who.kind}:{who.name} has {len(own)} keys, which is the most. Delete one that is not needed."
            raise CallError(message, status=400, code="QUOTA_EXCEEDED")
        ends = next((key.expires for key in own if key.id == who.key_id), None)
        rest = ends - time.time() if ends is not None else None
        life = min((each for each in (wanted.lifetime_seconds, rest) if each is not None), default=None)
        try:
            key, secret = identity.create_key(
                who.name, kind=who.kind, admin=who.admin, ttl=life, label=wanted.comment, parent=who.key_id, by=who.name
            )
        except ValueError as error:
            raise bad_request(str(error)) from None
        return {"token_value": secret, "token_info": _told(key)}

    @routes.get("/api/2.0/token/list")
    def own(who: Caller = who_asks) -> dict[str, Any]:
        return {"token_infos": [_told(key) for key in held(who)]}

    @routes.post("/api/2.0/token/delete")
    def delete(body: Any = sent, who: Caller = who_asks) -> dict[str, Any]:
        token = parse_body(TokenId, body).token_id
        if token not in {key.id for key in held(who)}:
            raise not_found(f"{who.kind}:{who.name} has no token with id {token[:80]!r}.")
        identity.revoke(token, by=who.name)
        return {}

    @routes.patch("/api/2.0/token/{token}")
    def change(token: str, body: Any = sent, who: Caller = who_asks) -> dict[str, Any]:
        wanted = parse_body(Change, body)
        if wanted.update_mask not in ("comment", "*"):
            raise bad_request("Field 'update_mask' must be 'comment': nothing else of a token can be changed.", "update_mask")
        if token not in {key.id for key in held(who)}:
            raise not_found(f"{who.kind}:{who.name} has no token with id {token[:80]!r}.")
        try:
            identity.relabel(token, wanted.token.comment, by=who.name)
        except ValueError as error:
            raise bad_request(str(error), "comment") from None
        return {}

    def everybodys(who: Caller) -> dict[str, dict[str, Any]]:
        if not who.admin:
            raise forbidden(f"{who.kind}:{who.name} is no admin: the tokens of others are managed with an admin key")
        return {key.id: _told(key, whose=True) for key in identity.list_keys() if key.live}

    def one(who: Caller, token: str) -> dict[str, Any]:
        found = everybodys(who).get(token)
        if found is None:
            raise not_found(f"There is no token with id {token[:80]!r}.")
        return found

    @routes.get("/api/2.0/token-management/tokens")
    def managed(who: Caller = who_asks, created_by_username: str | None = None) -> dict[str, Any]:
        found = everybodys(who).values()
        return {"token_infos": [each for each in found if created_by_username in (None, each["created_by_username"])]}

    @routes.get("/api/2.0/token-management/tokens/{token}")
    def look(token: str, who: Caller = who_asks) -> dict[str, Any]:
        return {"token_info": one(who, token)}

    @routes.delete("/api/2.0/token-management/tokens/{token}")
    def end(token: str, who: Caller = who_asks) -> dict[str, Any]:
        one(who, token)
        identity.revoke(token, by=who.name)
        return {}

    return routes


def _told(key: Key, *, whose: bool = False) -> dict[str, Any]:
    """As `PublicTokenInfo`, or for administrators `TokenInfo`. Times are Unix milliseconds, -1 for never."""
    told = {
        "token_id": key.id,
        "creation_time": int(key.created * 1000),
        "expiry_time": -1 if key.expires is None else int(key.expires * 1000),
        "comment": key.label,
    }
    return told | {"created_by_username": key.name} if whose else told
