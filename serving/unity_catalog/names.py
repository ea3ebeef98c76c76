"""What Unity Catalog's names lead to: catalogs, schemas, tables and functions, as databricks-sdk lists and looks them up.

There is nothing to be made here: a catalog and a schema are there once something that the caller may see bears their name
(a registered model, an index, a volume, a function, for administrators a source table), and `main.default` always is.

Sources: https://docs.databricks.com/api/workspace/catalogs, …/schemas, …/tables and …/functions
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request

from agents import AgentLoadError
from governance.call import Caller, CallError, not_found
from serving.errors import ORG_ID
from serving.unity_catalog.registered import Authorize

if TYPE_CHECKING:
    from serving.platform import Platform

_AT = "/api/2.1/unity-catalog"
_ALWAYS = "main.default"

Named = Mapping[str, Iterable[str]]
"""Full names (`catalog.schema.name`) by kind: `tables`, `functions`, and whatever else bears such names."""


def visible(platform: Platform) -> Callable[[Caller], Named]:
    """What a server has that bears names of three levels, as far as a caller may see it. Blocking."""
    rows, grants = platform.indexes.over_rows, platform.grants

    def names(who: Caller) -> Named:
        def may(kind: str, found: Iterable[str]) -> list[str]:
            return [name for name in found if grants.allowed(who, f"{kind}:{name}", "CAN_VIEW")]

        sources = [each["name"] for each in rows.tables.list()] if who.admin else []
        return {
            "tables": [*may("index", [each.name for each in [*platform.indexes.list(), *rows.list()]]), *sources],
            "functions": may("endpoint", [each.name for each in platform.settings.functions]),
            "models": may("model", platform.registry.names()),
            "volumes": platform.volumes.names(who),
        }

    return names


def taken(platform: Platform, function: str) -> Iterable[Any]:
    """The arguments of a declared function; none where it cannot be loaded. Blocking."""
    try:
        return platform.inputs(function)
    except AgentLoadError:
        return ()


def router(visible: Callable[[Caller], Named], authorize: Authorize, inputs: Callable[[str], Iterable[Any]]) -> APIRouter:
    """Routes of `w.catalogs`, `w.schemas`, `w.tables`, `w.functions` and `w.metastores`, for reading.

    Parameters
    ----------
    visible: the names that a caller may see. Blocking.
    authorize: who asks; raises `CallError`.
    inputs: the columns (`name`, `type`) that a function takes.
    """
    routes = APIRouter()

    async def named(http: Request) -> dict[str, set[str]]:
        who = await authorize(http)
        found = await asyncio.to_thread(visible, who)
        return {kind: {name for name in names if name.count(".") == 2} for kind, names in found.items()}

    async def schemas_of(http: Request) -> set[str]:
        found = await named(http)
        return {_ALWAYS, *(name.rpartition(".")[0] for names in found.values() for name in names)}

    def get(path: str) -> Callable[[Any], Any]:
        return routes.get(_AT + path, include_in_schema=False)

    @get("/catalogs")
    async def catalogs(http: Request) -> Any:
        return {"catalogs": [_catalog(name) for name in sorted({each.partition(".")[0] for each in await schemas_of(http)})]}

    @get("/catalogs/{name}")
    async def catalog(http: Request, name: str) -> Any:
        if name not in {each.partition(".")[0] for each in await schemas_of(http)}:
            raise _missing("catalog", name)
        return _catalog(name)

    @get("/schemas")
    async def schemas(http: Request) -> Any:
        within = http.query_params.get("catalog_name", "") + "."
        return {"schemas": [_schema(name) for name in sorted(await schemas_of(http)) if name.startswith(within)]}

    @get("/schemas/{name}")
    async def schema(http: Request, name: str) -> Any:
        if name not in await schemas_of(http):
            raise _missing("schema", name)
        return _schema(name)

    async def below(http: Request, kind: str) -> list[str]:
        query = http.query_params
        within = f"{query.get('catalog_name', '')}.{query.get('schema_name', '')}."
        return sorted(name for name in (await named(http)).get(kind, ()) if name.startswith(within))

    @get("/tables")
    async def tables(http: Request) -> Any:
        return {"tables": [{**_leaf(name), "table_type": "MANAGED"} for name in await below(http, "tables")]}

    @get("/table-summaries")
    async def summaries(http: Request) -> Any:
        names = [
            name for name in (await named(http)).get("tables", ()) if name.startswith(f"{http.query_params.get('catalog_name')}.")
        ]
        query = http.query_params
        fits = [name for name in sorted(names) if _like(name.split(".")[1], query.get("schema_name_pattern"))]
        fits = [name for name in fits if _like(name.split(".")[2], query.get("table_name_pattern"))]
        return {"tables": [{"full_name": name, "table_type": "MANAGED"} for name in fits]}

    @get("/tables/{name}/exists")
    async def exists(http: Request, name: str) -> Any:
        return {"table_exists": name in (await named(http)).get("tables", ())}

    async def told(function: str) -> dict[str, Any]:
        return _function(function, await asyncio.to_thread(inputs, function))

    @get("/functions")
    async def functions(http: Request) -> Any:
        return {"functions": [await told(name) for name in await below(http, "functions")]}

    @get("/functions/{name}")
    async def function(http: Request, name: str) -> Any:
        if name not in (await named(http)).get("functions", ()):
            raise _missing("function", name)
        return await told(name)

    @get("/current-metastore-assignment")
    async def assignment(http: Request) -> Any:
        await authorize(http)
        return {"metastore_id": _identifier("metastore"), "workspace_id": int(ORG_ID), "default_catalog_name": "main"}

    @get("/metastore_summary")
    async def summary(http: Request) -> Any:
        await authorize(http)
        return _METASTORE

    @get("/metastores")
    async def metastores(http: Request) -> Any:
        await authorize(http)
        return {"metastores": [_METASTORE]}

    @get("/metastores/{name}")
    async def metastore(http: Request, name: str) -> Any:
        await authorize(http)
        if name != _METASTORE["metastore_id"]:
            raise _missing("metastore", name)
        return _METASTORE

    return routes


def _missing(kind: str, name: str) -> CallError:
    return not_found(f"There is no {kind} {name[:200]!r} that you may see.")


def _identifier(name: str) -> str:
    raw = hashlib.sha256(name.encode()).hexdigest()
    return f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:32]}"


_METASTORE = {"metastore_id": _identifier("metastore"), "name": "smalti", "global_metastore_id": _identifier("metastore")}


def _like(name: str, pattern: str | None) -> bool:
    """Whether a name is like a pattern of SQL's."""
    return not pattern or fnmatchcase(name, pattern.replace("%", "*").replace("_", "?"))


def _catalog(name: str) -> dict[str, Any]:
    return {
        "name": name, "full_name": name, "catalog_type": "MANAGED_CATALOG", "securable_type": "CATALOG",
        "isolation_mode": "OPEN", "metastore_id": _identifier("metastore"), "owner": "admins",
    }  # fmt: skip


def _schema(name: str) -> dict[str, Any]:
    catalog, _, short = name.partition(".")
    return {
        "name": short, "full_name": name, "catalog_name": catalog, "schema_id": _identifier(name),
        "metastore_id": _identifier("metastore"), "owner": "admins",
    }  # fmt: skip


def _leaf(name: str) -> dict[str, Any]:
    catalog, schema, short = name.split(".")
    return {"name": short, "full_name": name, "catalog_name": catalog, "schema_name": schema}


def _function(name: str, columns: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    taken = [
        {
            "name": column["name"], "type_name": str(column["type"]).upper(), "type_text": str(column["type"]),
            "position": position, **({} if column.get("required", True) else {"parameter_default": "NULL"}),
        }
        for position, column in enumerate(columns)
    ]  # fmt: skip
    return {**_leaf(name), "routine_body": "EXTERNAL", "external_language": "python", "input_params": {"parameters": taken}}
