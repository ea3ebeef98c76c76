"""Registered models as Unity Catalog has them, over MLflow's own registry: one set of models, whichever API asks.

`/api/2.0/mlflow/unity-catalog/…` is what `mlflow.set_registry_uri("databricks-uc")` speaks (mlflow/protos/
databricks_uc_registry_service.proto). Names have three levels, and grants are those of `ModelAccess`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from governance.call import Caller, CallError, bad_request, not_found
from serving.files.artifacts import for_databricks, from_databricks
from serving.protocols.request import parse, take
from serving.routes import read_body
from serving.tracking.access import ModelAccess

if TYPE_CHECKING:
    from serving.tracking.server import MlflowServer

MAX_BODY = 1 << 20
_NAME = re.compile(r"[^./\\\x00-\x1f ]{1,255}(\.[^./\\\x00-\x1f ]{1,255}){2}")
_MLFLOW = "/api/2.0/mlflow"

_LOGGED = re.compile(r"\bm-[0-9a-f]{32}\b")
_MODEL_ID = "smalti.model_id"
"""Tag with the logged model a version was made from, where its source does not name it."""

Authorize = Callable[[Request], Awaitable[Caller]]


class Catalog:
    """The registry's calls with the caller's grants checked; each raises `CallError`."""

    def __init__(self, server: MlflowServer, access: ModelAccess) -> None:
        self._ask, self.access = server.ask, access

    async def call(self, who: Caller, method: str, resource: str, action: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """One call of MLflow's registry API on a model with a name of three levels."""
        if "name" in fields:
            fields = {**fields, "name": three_levels(fields["name"])}
        await asyncio.to_thread(self.access.admit, who, resource, action, method, fields)
        if (method, action) == ("GET", "alias"):
            return await self._of_alias(fields)
        return await self._ask(method, f"{_MLFLOW}/{resource}/{action}", {k: v for k, v in fields.items() if v is not None})

    async def _of_alias(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The version of an alias. One that is not there is a 404 in Unity Catalog, a wrong value in MLflow's own registry."""
        try:
            return await self._ask(
                "GET", f"{_MLFLOW}/registered-models/alias", {key: fields.get(key) for key in ("name", "alias")}
            )
        except CallError as error:
            if error.code == "INVALID_PARAMETER_VALUE" and "alias" in error.message:
                raise not_found(error.message) from None
            raise

    async def model(self, who: Caller, name: str) -> dict[str, Any]:
        return (await self.call(who, "GET", "registered-models", "get", {"name": name}))["registered_model"]

    async def version(self, who: Caller, name: str, version: str) -> dict[str, Any]:
        found = await self.call(who, "GET", "model-versions", "get", {"name": name, "version": version})
        return found["model_version"]

    async def by_alias(self, who: Caller, name: str, alias: str) -> dict[str, Any]:
        return (await self.call(who, "GET", "registered-models", "alias", {"name": name, "alias": alias}))["model_version"]

    async def search(self, who: Caller, resource: str, fields: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
        found = await self.call(who, "GET", resource, "search", fields)
        rows = self.access.visible(who, found.get(resource.replace("-", "_")) or ())
        return [dict(row) for row in rows if _NAME.fullmatch(str(row["name"]))], found.get("next_page_token")

    async def create(self, who: Caller, fields: Mapping[str, Any]) -> dict[str, Any]:
        made = (await self.call(who, "POST", "registered-models", "create", fields))["registered_model"]
        await asyncio.to_thread(self.access.created, who, made["name"])
        return made

    async def update(self, who: Caller, name: str, description: str | None, new_name: str | None) -> dict[str, Any]:
        if new_name and new_name != name:
            wanted = {"name": name, "new_name": three_levels(new_name)}
            made = await self.call(who, "POST", "registered-models", "rename", wanted)
            await asyncio.to_thread(self.access.renamed, name, new_name)
            if description is None:
                return made["registered_model"]
            name = new_name
        wanted = {"name": name, "description": description or ""}
        return (await self.call(who, "PATCH", "registered-models", "update", wanted))["registered_model"]

    async def delete(self, who: Caller, name: str) -> None:
        await self.call(who, "DELETE", "registered-models", "delete", {"name": name})
        await asyncio.to_thread(self.access.deleted, name)

    async def begin(self, who: Caller, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A version that waits for its files."""
        name = three_levels(take(fields, "name", str, required=True))
        source = take(fields, "source", str, required=True)
        await asyncio.to_thread(self.access.check, who, name, "CAN_MANAGE")
        given = {key: take(fields, key, str) for key in ("run_id", "description", "model_id")}
        tags = _tags(fields)
        if given["model_id"] and given["model_id"] not in source:
            tags.append({"key": _MODEL_ID, "value": given["model_id"]})
        given |= {"name": name, "source": source, "tags": tags}
        return (await self._ask("POST", "/smalti/model-versions/begin", given))["model_version"]

    async def finish(self, who: Caller, fields: Mapping[str, Any]) -> dict[str, Any]:
        name = three_levels(take(fields, "name", str, required=True))
        await asyncio.to_thread(self.access.check, who, name, "CAN_MANAGE")
        given = {"name": name, "version": str(fields.get("version", ""))}
        return (await self._ask("POST", "/smalti/model-versions/finish", given))["model_version"]


def router(catalog: Catalog, authorize: Authorize) -> APIRouter:
    """Routes of MLflow's client: those of its open registry with other shapes for some fields.

    `authorize` tells who asks, or raises `CallError`.
    """
    routes = APIRouter()
    models, versions = "registered-models", "model-versions"

    async def create_model(who: Caller, fields: Mapping[str, Any]) -> Any:
        wanted = {"name": fields.get("name"), "description": take(fields, "description", str), "tags": _tags(fields)}
        return {"registered_model": await catalog.create(who, wanted)}

    async def update_model(who: Caller, fields: Mapping[str, Any]) -> Any:
        name = three_levels(fields.get("name"))
        given = take(fields, "description", str), take(fields, "new_name", str)
        return {"registered_model": await catalog.update(who, name, *given)}

    async def delete_model(who: Caller, fields: Mapping[str, Any]) -> Any:
        await catalog.delete(who, three_levels(fields.get("name")))
        return {}

    async def create_version(who: Caller, fields: Mapping[str, Any]) -> Any:
        return {"model_version": _version(await catalog.begin(who, fields))}

    async def finish_version(who: Caller, fields: Mapping[str, Any]) -> Any:
        return {"model_version": _version(await catalog.finish(who, fields))}

    async def search_models(who: Caller, fields: Mapping[str, Any]) -> Any:
        rows, token = await catalog.search(who, models, page_of(fields, 100))
        return {"registered_models": [_told(row) for row in rows], "next_page_token": token}

    async def search_versions(who: Caller, fields: Mapping[str, Any]) -> Any:
        rows, token = await catalog.search(who, versions, {**page_of(fields, 1000), "filter": fields.get("filter")})
        return {"model_versions": [_version(row) for row in rows], "next_page_token": token}

    async def lineage(who: Caller, fields: Mapping[str, Any]) -> Any:
        await asyncio.to_thread(catalog.access.check, who, three_levels(fields.get("name")))
        return {}  # which program loaded a version is not kept

    async def enabled(who: Caller, fields: Mapping[str, Any]) -> Any:
        return {"is_databricks_sdk_models_artifact_repository_enabled": True}

    def as_it_is(method: str, resource: str, action: str) -> Callable[[Caller, Mapping[str, Any]], Awaitable[Any]]:
        async def passed(who: Caller, fields: Mapping[str, Any]) -> Any:
            found = await catalog.call(who, method, resource, action, {"name": None, **fields})
            model = found.get("registered_model")
            if model:
                return {"registered_model": _told(model)}
            return {"model_version": _version(found["model_version"])} if found.get("model_version") else found

        return passed

    def add(method: str, path: str, work: Callable[[Caller, Mapping[str, Any]], Awaitable[Any]]) -> None:
        async def handler(http: Request) -> Response:
            who = await authorize(http)
            return answer(await work(who, await fields_of(http)))

        routes.add_route(f"{_MLFLOW}/unity-catalog/{path}", handler, methods=[method], include_in_schema=False)

    add("POST", f"{models}/create", create_model)
    add("PATCH", f"{models}/update", update_model)
    add("DELETE", f"{models}/delete", delete_model)
    add("GET", f"{models}/search", search_models)
    add("POST", f"{versions}/create", create_version)
    add("POST", f"{versions}/finalize", finish_version)
    add("GET", f"{versions}/search", search_versions)
    add("POST", f"{versions}/emit-lineage", lineage)
    add("GET", f"{models}:is-databricks-sdk-models-artifact-repository-enabled", enabled)
    for method, resource, action in (
        ("GET", models, "get"),
        ("GET", models, "alias"),
        ("POST", models, "alias"),
        ("DELETE", models, "alias"),
        ("POST", models, "set-tag"),
        ("DELETE", models, "delete-tag"),
        ("GET", versions, "get"),
        ("PATCH", versions, "update"),
        ("DELETE", versions, "delete"),
        ("GET", versions, "get-download-uri"),
        ("POST", versions, "set-tag"),
        ("DELETE", versions, "delete-tag"),
    ):
        add(method, f"{resource}/{action}", as_it_is(method, resource, action))
    return routes


def three_levels(name: Any) -> str:
    """The name, checked. Raises `CallError` (400) in words that MLflow's client looks for."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request(f"{str(name)[:80]!r} is no model's name: specify all three levels, as catalog.schema.model.", "name")
    return name


async def fields_of(http: Request) -> dict[str, Any]:
    if http.method == "GET":
        return dict(http.query_params)
    raw = await read_body(http, MAX_BODY)
    fields = dict(http.query_params) if http.method == "DELETE" else {}
    return fields | parse(from_databricks(raw) or b"{}")


def page_of(fields: Mapping[str, Any], most: int) -> dict[str, Any]:
    size = str(fields.get("max_results") or "")
    return {
        "max_results": min(int(size), most) if size.isascii() and size.isdigit() and 0 < len(size) < 9 and int(size) else most,
        "page_token": fields.get("page_token"),
    }


def _tags(fields: Mapping[str, Any]) -> list[dict[str, str]]:
    tags = take(fields, "tags", list) or []
    for tag in tags:
        if not isinstance(tag, dict) or not isinstance(tag.get("key"), str):
            raise bad_request("Field 'tags' must be a list of objects with 'key' and 'value'.", "tags")
    return [{"key": tag["key"], "value": str(tag.get("value") or "")} for tag in tags]


def _told(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model without the versions that only the open registry's answer has."""
    return {key: value for key, value in model.items() if key != "latest_versions"}


def _version(row: Mapping[str, Any]) -> dict[str, Any]:
    """A version in the fields of Unity Catalog: aliases are objects, and the logged model is named."""
    tags = [tag for tag in row.get("tags") or () if tag["key"] != _MODEL_ID]
    kept = next((tag["value"] for tag in row.get("tags") or () if tag["key"] == _MODEL_ID), None)
    found = _LOGGED.search(row.get("source") or "")
    aliases = [{"alias": alias, "version": str(row["version"])} for alias in row.get("aliases") or ()]
    model = kept or (found[0] if found else None)
    known = {key: value for key, value in row.items() if key not in ("current_stage", "run_link")}
    return {**known, "tags": tags, "aliases": aliases, **({"model_id": model} if model else {})}


def answer(body: Any) -> Response:
    return Response(for_databricks(orjson.dumps(_filled(body))), media_type="application/json")


def _filled(body: Any) -> Any:
    """Without empty fields, which clients would read as values."""
    return {key: value for key, value in body.items() if value is not None} if isinstance(body, dict) else body
