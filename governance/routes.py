"""Administration over HTTP: keys, permissions, policies and the journal.

Paths and bodies are those of the Databricks REST API where it has them, so that `databricks-sdk` speaks to them. Every
failure is raised as `CallError`; the application turns it into a response.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import orjson
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from governance.call import Caller, CallError, bad_request, forbidden, not_found
from governance.explain import explain
from governance.grants import LEVELS, Grant, Grants
from governance.identity import Identity, Kind
from governance.journal import Journal
from governance.policies import AiGatewayConfig, Policies

_OBJECTS = {
    "serving-endpoints": "endpoint",
    "vector-search-indexes": "index",
    "vector-search-endpoints": "search_endpoint",
    "registered-models": "model",
}
_SEARCH = "vector-search-endpoints"
_FIELDS = {"user": "user_name", "group": "group_name", "service_principal": "service_principal_name"}
_MEANING = {
    "CAN_VIEW": "May see that it exists and how it is configured",
    "CAN_QUERY": "May see it and call it",
    "CAN_MANAGE": "May see it, call it, and decide who else may",
}
_MAX_BODY = 1 << 20

Model = TypeVar("Model", bound=BaseModel)


class NewKey(BaseModel):
    """What a key is to be."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=256)
    kind: Literal["user", "service_principal"] = "user"
    groups: list[str] = []
    admin: StrictBool = False
    ttl: float | None = Field(default=None, gt=0, description="seconds until it expires; none: never")
    label: str = Field(default="", max_length=256)
    scopes: list[str] | None = Field(default=None, description="securables it is good for; none: all its owner's")


class AccessControl(BaseModel):
    """One principal's level, as `databricks-sdk` sends it."""

    model_config = ConfigDict(extra="forbid")

    user_name: str | None = None
    group_name: str | None = None
    service_principal_name: str | None = None
    permission_level: Literal["CAN_VIEW", "CAN_QUERY", "CAN_USE", "CAN_READ", "CAN_MANAGE"]

    @model_validator(mode="after")
    def _one(self) -> AccessControl:
        if sum(bool(name) for name in (self.user_name, self.group_name, self.service_principal_name)) != 1:
            raise ValueError("name exactly one of user_name, group_name, service_principal_name")
        return self

    @property
    def level(self) -> str:
        return "CAN_QUERY" if self.permission_level in ("CAN_USE", "CAN_READ") else self.permission_level

    @property
    def principal(self) -> str:
        return next(f"{kind}:{name}" for kind, field in _FIELDS.items() if (name := getattr(self, field)))


class Permissions(BaseModel):
    """Body of a change of permissions."""

    model_config = ConfigDict(extra="forbid")

    access_control_list: list[AccessControl] = []


class Groups(BaseModel):
    """Body of a change of groups."""

    model_config = ConfigDict(extra="forbid")

    groups: list[str]
    kind: Literal["user", "service_principal"] = "user"


def router(
    identity: Identity,
    grants: Grants,
    policies: Policies,
    journal: Journal,
    *,
    caller: Callable[..., Any],
    exists: Callable[[str], bool] = lambda securable: True,
    named: Callable[[str, str], str] = lambda kind, identifier: identifier,
) -> APIRouter:
    """Routes of this room.

    Parameters
    ----------
    caller: FastAPI dependency that gives the authenticated `Caller`, or raises `CallError` 401.
    exists: whether a securable (`endpoint:NAME`, `index:NAME`) is known; permissions of others are 404.
    named: the name of what a path names, which may be an id: `named("endpoint", "0f3c…")`.
    """
    routes = APIRouter(tags=["governance"])
    who_asks, sent = Depends(caller), Depends(json_body)

    def manager(who: Caller, kind: str, name: str) -> str:
        securable = f"{kind}:{name}"
        grants.check(who, securable, "CAN_MANAGE")
        if not exists(securable):
            raise not_found(f"there is no {kind} {name!r} here")
        return securable

    # --- keys and groups ---

    @routes.post("/api/2.0/smalti/keys", openapi_extra=_schema(NewKey))
    def create_key(body: Any = sent, who: Caller = who_asks) -> dict[str, Any]:
        _admin(who)
        wanted = parse_body(NewKey, body)
        try:
            key, secret = identity.create_key(
                wanted.name,
                kind=wanted.kind,
                groups=wanted.groups,
                admin=wanted.admin,
                ttl=wanted.ttl,
                label=wanted.label,
                by=who.name,
                scopes=wanted.scopes,
            )
        except ValueError as error:
            raise bad_request(str(error)) from None
        return {"key": secret, **key.as_dict()}

    @routes.post("/api/2.0/smalti/keys/{key_id}/rotate")
    def rotate_key(
        key_id: str, who: Caller = who_asks, overlap: Annotated[float, Query(ge=0, le=31_536_000)] = 86_400.0
    ) -> dict[str, Any]:
        _admin(who)
        try:
            key, secret = identity.rotate(key_id, overlap=overlap, by=who.name)
        except KeyError as error:
            raise not_found(error.args[0]) from None
        except ValueError as error:
            raise bad_request(str(error)) from None
        return {"key": secret, **key.as_dict()}

    @routes.get("/api/2.0/smalti/keys")
    def list_keys(who: Caller = who_asks, name: str | None = None) -> dict[str, Any]:
        _admin(who)
        return {"keys": [key.as_dict() for key in identity.list_keys(name)]}

    @routes.delete("/api/2.0/smalti/keys/{key_id}")
    def revoke_key(key_id: str, who: Caller = who_asks) -> dict[str, Any]:
        _admin(who)
        try:
            return identity.revoke(key_id, by=who.name).as_dict()
        except KeyError as error:
            raise not_found(error.args[0]) from None

    @routes.put("/api/2.0/smalti/principals/{name}/groups", openapi_extra=_schema(Groups))
    def set_groups(name: str, body: Any = sent, who: Caller = who_asks) -> dict[str, Any]:
        _admin(who)
        wanted = parse_body(Groups, body)
        kind: Kind = wanted.kind
        try:
            return {"name": name, "kind": kind, "groups": list(identity.set_groups(name, wanted.groups, kind=kind, by=who.name))}
        except ValueError as error:
            raise bad_request(str(error)) from None

    # --- permissions ---

    def permissions_of(path: str, kind: str) -> None:
        at = f"/api/2.0/permissions/{path}/{{name}}"

        def get_permissions(name: str, who: Caller = who_asks) -> dict[str, Any]:
            name = named(kind, name)
            return _permissions(path, name, grants.list(manager(who, kind, name)))

        def change(who: Caller, name: str, body: Any, replace: bool) -> dict[str, Any]:
            name = named(kind, name)
            securable = manager(who, kind, name)
            wanted = parse_body(Permissions, body)
            if kind != "model" and any(entry.permission_level == "CAN_READ" for entry in wanted.access_control_list):
                raise bad_request("CAN_READ is a level of registered models; give CAN_VIEW or CAN_QUERY.", "permission_level")
            try:
                entries = [(entry.principal, entry.level) for entry in wanted.access_control_list]
                grants.apply(securable, entries, replace=replace, by=who)
            except ValueError as error:
                raise bad_request(str(error), "access_control_list") from None
            return _permissions(path, name, grants.list(securable))

        def update_permissions(name: str, body: Any = sent, who: Caller = who_asks) -> dict[str, Any]:
            return change(who, name, body, False)

        def set_permissions(name: str, body: Any = sent, who: Caller = who_asks) -> dict[str, Any]:
            return change(who, name, body, True)

        def permission_levels(name: str, who: Caller = who_asks) -> dict[str, Any]:
            manager(who, kind, named(kind, name))
            levels = LEVELS[1:] if path == _SEARCH else LEVELS
            return {
                "permission_levels": [
                    {"permission_level": _named(path, level), "description": _MEANING[level]} for level in levels
                ]
            }

        routes.get(at, name=f"{kind}_permissions")(get_permissions)
        routes.patch(at, name=f"update_{kind}_permissions", openapi_extra=_schema(Permissions))(update_permissions)
        routes.put(at, name=f"set_{kind}_permissions", openapi_extra=_schema(Permissions))(set_permissions)
        routes.get(f"{at}/permissionLevels", name=f"{kind}_permission_levels")(permission_levels)

    for path, kind in _OBJECTS.items():
        permissions_of(path, kind)

    # --- policy ---

    @routes.put("/api/2.0/serving-endpoints/{name}/ai-gateway", openapi_extra=_schema(AiGatewayConfig))
    def put_ai_gateway(name: str, body: Any = sent, who: Caller = who_asks) -> dict[str, Any]:
        connection = name.startswith("connection:")  # has limits and guardrails as an endpoint has
        manager(who, *(name.split(":", 1) if connection else ("endpoint", name)))
        try:
            return policies.set(name, parse_body(AiGatewayConfig, body), by=who.name).as_dict()
        except ValueError as error:
            raise bad_request(str(error), "guardrails") from None

    # --- journal ---

    @routes.get("/api/2.0/smalti/journal")
    def read_journal(
        who: Caller = who_asks,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        endpoint: str | None = None,
        since: str | None = None,
        request_id: str | None = None,
    ) -> dict[str, Any]:
        if not who.admin:
            if endpoint is None:
                raise forbidden("only an admin may read the whole journal; name an endpoint that you manage")
            kind = "index" if exists(f"index:{endpoint}") and not exists(f"endpoint:{endpoint}") else "endpoint"
            grants.check(who, f"{kind}:{endpoint}", "CAN_MANAGE")
        try:
            return {"rows": list(journal.rows(since, limit, endpoint, request_id=request_id, newest=True))}
        except ValueError as error:
            raise bad_request(str(error), "since") from None

    return routes


def _admin(who: Caller) -> None:
    if not who.admin:
        raise forbidden(f"{who.kind}:{who.name} is no admin: keys and groups are managed with an admin key")


async def json_body(request: Request) -> Any:
    """The JSON body, whatever content type it claims."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MAX_BODY:
            raise CallError(f"the body is larger than {_MAX_BODY} bytes", status=413, code="BAD_REQUEST")
    try:
        return orjson.loads(bytes(raw) or b"{}")
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is no JSON: {error}") from None


def parse_body(model: type[Model], body: Any) -> Model:
    """A body as what a route takes. Raises `CallError` (400) naming the field."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        param = ".".join(str(part) for part in error.errors()[0]["loc"]) or None
        raise bad_request(explain(error, "", model), param) from None


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def _named(path: str, level: str) -> str:
    """A level in the words of what it is on: a vector search endpoint is used, not queried."""
    return "CAN_USE" if path == _SEARCH and level == "CAN_QUERY" else level


def _permissions(path: str, name: str, held: list[Grant]) -> dict[str, Any]:
    """In the shape of `ServingEndpointPermissions`."""
    entries: dict[str, dict[str, Any]] = {}
    for grant in held:
        kind, _, who = grant.principal.partition(":")
        entry = entries.setdefault(grant.principal, {_FIELDS[kind]: who, "display_name": who, "all_permissions": []})
        permission: dict[str, Any] = {"permission_level": _named(path, grant.level), "inherited": bool(grant.via)}
        if grant.via:
            permission["inherited_from_object"] = [grant.via]
        entry["all_permissions"].append(permission)
    return {
        "object_id": f"/{path}/{name}",
        "object_type": path.removesuffix("es").removesuffix("s") if path.endswith("xes") else path.removesuffix("s"),
        "access_control_list": list(entries.values()),
    }
