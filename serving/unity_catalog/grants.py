"""Grants as Unity Catalog's API tells and changes them: on registered models, functions, indexes, volumes and connections.

Each privilege is a level of Smalti's own (`governance.grants`): a principal holds the highest that it is given. A registered
model is a securable of type `function` there. Source: https://docs.databricks.com/api/workspace/grants
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from governance.call import Caller, bad_request, not_found
from governance.grants import PRIVILEGES, PRIVILEGES_OF, Grants
from serving.protocols.request import take
from serving.unity_catalog.registered import Authorize, fields_of

_KINDS = {
    "function": ("model", "endpoint"), "model": ("model",), "registered_model": ("model",), "volume": ("volume",),
    "table": ("index",), "connection": ("connection",),
}  # fmt: skip
"""What of Smalti's a securable of each type may be; the first that is there is."""


def router(grants: Grants, authorize: Authorize, principal: Callable[[str], str], exists: Callable[[str], bool]) -> APIRouter:
    """Routes of `w.grants`.

    Parameters
    ----------
    authorize: who asks; raises `CallError`.
    principal: `KIND:NAME` of a principal that Unity Catalog names without its kind.
    exists: whether there is a `KIND:NAME`. Blocking.
    """
    routes = APIRouter()

    def check(who: Caller, securable: str, level: str) -> None:
        every = f"{securable.partition(':')[0]}:*"
        if not grants.allowed(who, every, level):
            grants.check(who, securable, level)

    def found(http: Request, who: Caller, level: str = "CAN_VIEW") -> str:
        kind, name = http.path_params["kind"].lower(), http.path_params["name"]
        if kind not in _KINDS:
            raise not_found(f"There are no grants on a {kind[:40]} here; there are on {', '.join(_KINDS)}.")
        for each in _KINDS[kind]:
            if exists(f"{each}:{name}"):
                check(who, f"{each}:{name}", level)
                return f"{each}:{name}"
        check(who, f"{_KINDS[kind][0]}:{name}", level)  # who may see nothing learns nothing
        raise not_found(f"There is no {kind} {name[:200]!r}.")

    def told(securable: str, only: str | None, *, effective: bool = False) -> dict[str, Any]:
        names = {level: name for name, level in reversed(PRIVILEGES_OF[securable.partition(":")[0]].items())}
        held: dict[str, set[str]] = {}
        for grant in grants.list(securable):
            if grant.level in names:
                held.setdefault(grant.principal.partition(":")[2], set()).add(names[grant.level])
        rows = [(holder, sorted(given)) for holder, given in held.items() if only in (None, "", holder)]
        return {
            "privilege_assignments": [
                {"principal": holder, "privileges": [{"privilege": each} for each in given] if effective else given}
                for holder, given in rows
            ]
        }

    def change(who: Caller, securable: str, fields: Mapping[str, Any]) -> None:
        known = PRIVILEGES_OF[securable.partition(":")[0]]
        names = {level: name for name, level in known.items()}
        for wanted in take(fields, "changes", list) or ():
            if not isinstance(wanted, dict):
                raise bad_request("Field 'changes' must be a list of objects.", "changes")
            holder = principal(take(wanted, "principal", str, path="changes.", required=True))
            held = {grant.level for grant in grants.list(securable, holder) if not grant.via and grant.level in names}
            levels = (held | _levels(wanted, "add", known)) - _levels(wanted, "remove", known)
            best = [level for level in PRIVILEGES.values() if level in levels]
            try:
                if best:
                    grants.grant(holder, securable, best[-1], by=who)
                else:
                    grants.revoke(holder, securable, by=who.name)
            except ValueError as error:
                raise bad_request(str(error), "changes") from None

    def read(effective: bool) -> Callable[[Request], Awaitable[Any]]:
        async def handler(http: Request) -> Any:
            who = await authorize(http)
            securable = await asyncio.to_thread(found, http, who)
            return await asyncio.to_thread(told, securable, http.query_params.get("principal"), effective=effective)

        return handler

    async def update(http: Request) -> Any:
        who, fields = await authorize(http), await fields_of(http)
        securable = await asyncio.to_thread(found, http, who, "CAN_MANAGE")
        await asyncio.to_thread(change, who, securable, fields)
        return await asyncio.to_thread(told, securable, None)

    at = "/api/2.1/unity-catalog"
    for path in ("permissions", "privilege-assignments"):
        routes.get(f"{at}/{path}/{{kind}}/{{name}}", include_in_schema=False)(read(False))
        routes.get(f"{at}/effective-{path}/{{kind}}/{{name}}", include_in_schema=False)(read(True))
    routes.patch(at + "/permissions/{kind}/{name}", include_in_schema=False)(update)
    return routes


def _levels(wanted: Mapping[str, Any], key: str, known: Mapping[str, str]) -> set[str]:
    given = {str(each).replace(" ", "_") for each in take(wanted, key, list) or ()}
    if "ALL_PRIVILEGES" in given:
        return set(known.values())
    if unknown := given - set(known):
        raise bad_request(f"There is no privilege {sorted(unknown)[0]} on it; there is {', '.join(known)}.", f"changes.{key}")
    return {known[each] for each in given}
