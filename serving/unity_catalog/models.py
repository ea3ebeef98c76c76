"""Unity Catalog's registered models and their versions, as databricks-sdk asks for them.

Sources: https://docs.databricks.com/api/workspace/registeredmodels and …/modelversions
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from governance.call import Caller
from serving.protocols.request import take
from serving.unity_catalog.registered import Authorize, Catalog, answer, fields_of, page_of, three_levels


def router(catalog: Catalog, authorize: Authorize) -> APIRouter:
    """Routes of databricks-sdk's `registered_models` and `model_versions`. `authorize` tells who asks, or raises `CallError`."""
    routes = APIRouter()

    async def create(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        parts = [take(fields, key, str, required=True) for key in ("catalog_name", "schema_name", "name")]
        return _model(await catalog.create(who, {"name": ".".join(parts), "description": take(fields, "comment", str)}))

    async def listing(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        rows, token = await catalog.search(who, "registered-models", page_of(fields, 100))
        prefix = ".".join(filter(None, (fields.get("catalog_name"), fields.get("schema_name"))))
        return {
            "registered_models": [_model(row) for row in rows if not prefix or row["name"].startswith(prefix + ".")],
            "next_page_token": token,
        }

    async def get(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        return _model(await catalog.model(who, http.path_params["name"]))

    async def update(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        name = three_levels(http.path_params["name"])
        new = take(fields, "new_name", str)
        if new and "." not in new:
            new = f"{name.rpartition('.')[0]}.{new}"
        comment = take(fields, "comment", str)
        if new is None and comment is None:
            return _model(await catalog.model(who, name))
        return _model(await catalog.update(who, name, comment, new))

    async def delete(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        await catalog.delete(who, three_levels(http.path_params["name"]))
        return {}

    async def set_alias(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        version = take(fields, "version_num", int, required=True)
        given = {**_named(http, "name", "alias"), "version": str(version)}
        await catalog.call(who, "POST", "registered-models", "alias", given)
        return {"alias_name": given["alias"], "version_num": version}

    async def delete_alias(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        return await catalog.call(who, "DELETE", "registered-models", "alias", _named(http, "name", "alias"))

    async def by_alias(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        given = _named(http, "name", "alias")
        return _version(await catalog.by_alias(who, given["name"], given["alias"]))

    async def versions(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        name = three_levels(http.path_params["name"])
        await catalog.model(who, name)
        wanted = {**page_of(fields, 1000), "filter": "name = '{}'".format(name.replace("'", ""))}
        rows, token = await catalog.search(who, "model-versions", wanted)
        return {"model_versions": [_version(row) for row in rows], "next_page_token": token}

    async def version(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        given = _named(http, "name", "version")
        return _version(await catalog.version(who, given["name"], given["version"]))

    async def update_version(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        given = {**_named(http, "name", "version"), "description": take(fields, "comment", str) or ""}
        return _version((await catalog.call(who, "PATCH", "model-versions", "update", given))["model_version"])

    async def delete_version(http: Request, who: Caller, fields: Mapping[str, Any]) -> Any:
        return await catalog.call(who, "DELETE", "model-versions", "delete", _named(http, "name", "version"))

    def add(method: str, path: str, work: Callable[[Request, Caller, Mapping[str, Any]], Awaitable[Any]]) -> None:
        async def handler(http: Request) -> Response:
            who = await authorize(http)
            return answer(await work(http, who, await fields_of(http)))

        routes.add_route(f"/api/2.1/unity-catalog/{path}", handler, methods=[method], include_in_schema=False)

    for path, answers in {
        "models": {"POST": create, "GET": listing},
        "models/{name}": {"GET": get, "PATCH": update, "DELETE": delete},
        "models/{name}/aliases/{alias}": {"GET": by_alias, "PUT": set_alias, "DELETE": delete_alias},
        "models/{name}/versions": {"GET": versions},
        "models/{name}/versions/{version}": {"GET": version, "PATCH": update_version, "DELETE": delete_version},
    }.items():
        for method, work in answers.items():
            add(method, path, work)
    return routes


def _model(row: Mapping[str, Any]) -> dict[str, Any]:
    catalog, schema, name = row["name"].split(".")
    return {
        "full_name": row["name"],
        "catalog_name": catalog,
        "schema_name": schema,
        "name": name,
        "comment": row.get("description"),
        "created_at": row.get("creation_timestamp"),
        "updated_at": row.get("last_updated_timestamp"),
        "aliases": [_alias(alias) for alias in row.get("aliases") or ()],
    }


def _alias(alias: Mapping[str, Any]) -> dict[str, Any]:
    return {"alias_name": alias["alias"], "version_num": int(alias["version"])}


def _version(row: Mapping[str, Any]) -> dict[str, Any]:
    catalog, schema, name = row["name"].split(".")
    return {
        "catalog_name": catalog,
        "schema_name": schema,
        "model_name": name,
        "version": int(row["version"]),
        "status": row.get("status", "READY"),
        "comment": row.get("description"),
        "source": row.get("source"),
        "run_id": row.get("run_id") or None,
        "created_at": row.get("creation_timestamp"),
        "updated_at": row.get("last_updated_timestamp"),
        "aliases": [{"alias_name": each, "version_num": int(row["version"])} for each in row.get("aliases") or ()],
    }


def _named(http: Request, *keys: str) -> dict[str, str]:
    return {key: http.path_params[key] for key in keys}
