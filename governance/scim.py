"""Who is known here, as `users`, `groups`, `service_principals` and `current_user` of databricks-sdk ask for it. For reading.

Users and service principals are whoever has had a key or is in a group; a group is there while somebody is in it. Administrators
see all of them, everybody else themselves and the groups they are in.

Sources: RFC 7643 and 7644, https://docs.databricks.com/api/workspace/users, …/groups and …/serviceprincipals
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from governance.call import Caller, CallError, bad_request, not_found
from governance.identity import Identity
from governance.key import Kind

ADMINS = "admins"
"""The group of those who hold a live key of an administrator's."""
_AT = "/api/2.0/preview/scim/v2"
_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:"
_LIST = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
_MOST = 10_000
_FILTER = re.compile(r'\s*(\w+)\s+(eq|co|sw)\s+"([^"]{0,256})"\s*', re.IGNORECASE)
_MATCHES: Mapping[str, Callable[[str, str], bool]] = {"eq": str.__eq__, "co": str.__contains__, "sw": str.startswith}


@dataclass
class _Known:
    """One user or service principal."""

    name: str
    kind: Kind
    groups: frozenset[str]
    active: bool


def router(identity: Identity, *, caller: Callable[..., Any]) -> APIRouter:
    """`caller`: FastAPI dependency that gives the authenticated `Caller`, or raises `CallError` 401."""
    routes = APIRouter(tags=["governance"])
    who_asks = Depends(caller)

    def everybody() -> list[_Known]:
        found: dict[tuple[str, str], _Known] = {}
        for (kind, name), groups in identity.members().items():
            found[kind, name] = _Known(name, kind, groups, False)
        for key in identity.list_keys():
            each = found.setdefault((key.kind, key.name), _Known(key.name, key.kind, frozenset(), False))
            each.active |= key.live
            if key.admin and key.live:
                each.groups |= {ADMINS}
        return [found[each] for each in sorted(found)]

    def visible(who: Caller, resource: str) -> list[dict[str, Any]]:
        known = [each for each in everybody() if who.admin or (each.kind, each.name) == (who.kind, who.name)]
        if resource != "Groups":
            kind = "user" if resource == "Users" else "service_principal"
            return [_told(each) for each in known if each.kind == kind]
        names = {group for each in known for group in each.groups}
        return [_group(name, [each for each in known if name in each.groups]) for name in sorted(names)]

    @routes.get(f"{_AT}/Me")
    def me(who: Caller = who_asks) -> dict[str, Any]:
        groups = who.groups | {ADMINS} if who.admin else who.groups
        return {**_told(_Known(who.name, who.kind, groups, True)), "userName": who.name}

    for resource in ("Users", "Groups", "ServicePrincipals"):
        _list(routes, resource, who_asks, visible)
    return routes


def _list(routes: APIRouter, resource: str, who_asks: Any, visible: Callable[[Caller, str], list[dict[str, Any]]]) -> None:
    """The routes of one kind of resource."""

    @routes.get(f"{_AT}/{resource}", operation_id=f"list_{resource.lower()}")
    def listed(
        who: Caller = who_asks,
        filter: Annotated[str | None, Query(max_length=1024)] = None,
        startIndex: Annotated[int, Query(ge=1)] = 1,
        count: Annotated[int, Query(ge=0)] = _MOST,
    ) -> dict[str, Any]:
        found = visible(who, resource)
        if filter:
            found = list(_filtered(found, filter))
        page = found[startIndex - 1 :][: min(count, _MOST)]
        told = {"schemas": [_LIST], "totalResults": len(found), "startIndex": startIndex, "itemsPerPage": len(page)}
        return {**told, "Resources": page}

    @routes.get(f"{_AT}/{resource}/{{identifier}}", operation_id=f"get_{resource.lower()}")
    def one(identifier: str, who: Caller = who_asks) -> dict[str, Any]:
        for each in visible(who, resource):
            if each["id"] == identifier:
                return each
        raise not_found(f"There is nothing with id {identifier[:200]!r} among {resource} that you may see.")

    def refuse(who: Caller = who_asks) -> None:
        message = f"{resource} are not changed here: who has a key is known (`smalti keys create NAME --group GROUP`)."
        raise CallError(message, status=400, code="FEATURE_DISABLED")

    for path, methods in ((f"{_AT}/{resource}", ["POST"]), (f"{_AT}/{resource}/{{identifier}}", ["PUT", "PATCH", "DELETE"])):
        routes.add_api_route(path, refuse, methods=methods, include_in_schema=False)


def _filtered(found: Iterable[dict[str, Any]], asked: str) -> Iterable[dict[str, Any]]:
    """What `ATTRIBUTE eq|co|sw "VALUE"` lets through. Raises `CallError` (400)."""
    match = _FILTER.fullmatch(asked)
    if match is None:
        raise bad_request("Write 'filter' as ATTRIBUTE eq \"VALUE\"; co and sw are read as well.", "filter")
    attribute, operator, value = match[1].lower(), match[2].lower(), match[3].lower()
    for each in found:
        held = {name.lower(): given for name, given in each.items() if isinstance(given, str)}.get(attribute, "")
        if held and _MATCHES[operator](held.lower(), value):
            yield each


def _told(known: _Known) -> dict[str, Any]:
    """As RFC 7643 has a user, or Databricks a service principal."""
    user = known.kind == "user"
    own: dict[str, Any] = {"userName": known.name} if user else {"applicationId": known.name}
    if user and "@" in known.name:
        own["emails"] = [{"type": "work", "value": known.name, "primary": True}]
    return {
        "schemas": [_SCHEMA + ("User" if user else "ServicePrincipal")],
        "id": f"{known.kind}:{known.name}",
        "displayName": known.name,
        "active": known.active,
        "groups": [{"display": group, "value": f"group:{group}", "type": "direct"} for group in sorted(known.groups)],
        **own,
    }


def _group(name: str, members: Iterable[_Known]) -> dict[str, Any]:
    held = [{"display": each.name, "value": f"{each.kind}:{each.name}"} for each in members]
    return {"schemas": [_SCHEMA + "Group"], "id": f"group:{name}", "displayName": name, "members": held}
