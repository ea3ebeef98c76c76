"""Prompts under the registry URI `databricks-uc`: the same ones that MLflow's own registry keeps, under grants of their names.

MLflow keeps a prompt as a registered model with a tag, and its text as a tag of a version; the paths here are those of
mlflow/protos/unity_catalog_prompt_service.proto. Of `model:CATALOG.SCHEMA.NAME` BROWSE shows a prompt, MANAGE changes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from governance.call import Caller, CallError, bad_request, not_found
from serving.protocols.request import take
from serving.unity_catalog.registered import Authorize, Catalog, answer, fields_of, page_of

_AT = "/api/2.0/mlflow/unity-catalog/prompts"
_IS_PROMPT = "mlflow.prompt.is_prompt"
_TEXT = "mlflow.prompt.text"
_KIND = "_mlflow_prompt_type"
_SOURCE = "prompt-template"
"""Versions must have a source; of prompts MLflow takes this one."""

Work = Callable[[Caller, dict[str, str], Mapping[str, Any]], Awaitable[Any]]


def router(catalog: Catalog, authorize: Authorize) -> APIRouter:
    """Routes of `mlflow.genai.register_prompt`, `load_prompt`, `search_prompts` and what belongs to them."""
    routes = APIRouter()

    def at(method: str, path: str) -> Callable[[Work], Work]:
        def add(work: Work) -> Work:
            async def handler(http: Request) -> Response:
                who = await authorize(http)
                named = {key: str(value) for key, value in http.path_params.items()}
                return answer(await work(who, named, await fields_of(http)) or {})

            routes.add_route(_AT + path, handler, methods=[method], include_in_schema=False)
            return work

        return add

    async def found(who: Caller, name: str) -> dict[str, Any]:
        return _prompts(await catalog.model(who, name))

    async def version_of(who: Caller, name: str, number: str) -> dict[str, Any]:
        return _prompts(await catalog.version(who, name, number))

    # --- prompts; what has a fixed last word comes before what has a name there ---

    @at("POST", "")
    async def create(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        given = take(fields, "prompt", dict) or {}
        name = take(fields, "name", str) or take(given, "name", str, path="prompt.", required=True)
        tags = [*_tags(given), {"key": _IS_PROMPT, "value": "true"}]
        wanted = {"name": name, "description": take(given, "description", str), "tags": tags}
        try:
            return _prompt(await catalog.create(who, wanted))
        except CallError as error:
            if error.code == "RESOURCE_ALREADY_EXISTS":
                error.code = "ALREADY_EXISTS"  # by which MLflow's client knows that there is only a version to be made
            raise

    @at("POST", "/search")
    async def search(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        schema = take(fields, "catalog_schema", dict, required=True)
        within = [take(schema, key, str, path="catalog_schema.", required=True) for key in ("catalog_name", "schema_name")]
        conditions = [f"tags.`{_IS_PROMPT}` = 'true'", "name LIKE '" + ".".join(within).replace("'", "") + ".%'"]
        if more := take(fields, "filter", str):
            conditions.append(more)
        rows, token = await catalog.search(who, "registered-models", {**page_of(fields, 100), "filter": " AND ".join(conditions)})
        return {"prompts": [_prompt(row) for row in rows], "next_page_token": token}

    @at("GET", "/{name}")
    async def get(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        return _prompt(await found(who, named["name"]))

    @at("PATCH", "/{name}")
    async def update(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        await found(who, named["name"])
        given = take(fields, "prompt", dict) or fields
        return _prompt(await catalog.update(who, named["name"], take(given, "description", str), None))

    @at("DELETE", "/{name}")
    async def delete(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        await found(who, named["name"])
        await catalog.delete(who, named["name"])

    @at("POST", "/{name}/tags")
    async def tag(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        await found(who, named["name"])
        await catalog.call(who, "POST", "registered-models", "set-tag", {"name": named["name"], **_tag(fields)})

    @at("DELETE", "/{name}/tags/{key}")
    async def untag(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        await found(who, named["name"])
        await catalog.call(who, "DELETE", "registered-models", "delete-tag", named)

    # --- versions ---

    @at("POST", "/{name}/versions")
    async def create_version(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        name = named["name"]
        await found(who, name)
        given = take(fields, "prompt_version", dict, required=True)
        text = _text(take(given, "template", str, path="prompt_version.", required=True))
        tags = [*_tags(given), {"key": _IS_PROMPT, "value": "true"}, {"key": _TEXT, "value": text}]
        made = {"name": name, "source": _SOURCE, "description": take(given, "description", str), "tags": tags}
        return _version((await catalog.call(who, "POST", "model-versions", "create", made))["model_version"])

    @at("POST", "/{name}/versions/search")
    async def versions(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        await found(who, named["name"])
        which = f"name = '{named['name']}' AND tags.`{_IS_PROMPT}` = 'true'"
        rows, token = await catalog.search(who, "model-versions", {**page_of(fields, 100), "filter": which})
        return {"prompt_versions": [_version(row) for row in rows], "next_page_token": token}

    @at("GET", "/{name}/versions/by-alias/{alias}")
    async def by_alias(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        row = await catalog.by_alias(who, named["name"], named["alias"])
        return _version(await version_of(who, named["name"], row["version"]))

    @at("GET", "/{name}/versions/{version}")
    async def get_version(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        return _version(await version_of(who, named["name"], named["version"]))

    @at("PATCH", "/{name}/versions/{version}")
    async def update_version(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        await version_of(who, named["name"], named["version"])
        given = take(fields, "prompt_version", dict) or fields
        wanted = {**named, "description": take(given, "description", str) or ""}
        return _version((await catalog.call(who, "PATCH", "model-versions", "update", wanted))["model_version"])

    @at("DELETE", "/{name}/versions/{version}")
    async def delete_version(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        await version_of(who, named["name"], named["version"])
        await catalog.call(who, "DELETE", "model-versions", "delete", named)

    @at("POST", "/{name}/versions/{version}/tags")
    async def tag_version(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        await version_of(who, named["name"], named["version"])
        await catalog.call(who, "POST", "model-versions", "set-tag", {**named, **_tag(fields)})

    @at("DELETE", "/{name}/versions/{version}/tags/{key}")
    async def untag_version(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        await version_of(who, named["name"], named["version"])
        await catalog.call(who, "DELETE", "model-versions", "delete-tag", named)

    @at("POST", "/{name}/aliases/{alias}")
    async def alias(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        number = take(fields, "version", str, required=True)
        await version_of(who, named["name"], number)
        await catalog.call(who, "POST", "registered-models", "alias", {**named, "version": number})

    @at("DELETE", "/{name}/aliases/{alias}")
    async def unalias(who: Caller, named: dict[str, str], fields: Mapping[str, Any]) -> Any:
        await found(who, named["name"])
        await catalog.call(who, "DELETE", "registered-models", "alias", named)

    return routes


def _prompts(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a prompt, or of a version of one; raises `CallError` 404 for another model's."""
    if not any(tag["key"] == _IS_PROMPT for tag in row.get("tags") or ()):
        raise not_found(f"{row['name']!r} is a registered model, no prompt.")
    return row


def _tags(fields: Mapping[str, Any]) -> list[dict[str, str]]:
    return [_tag(each) for each in take(fields, "tags", list) or () if isinstance(each, dict)]


def _tag(fields: Mapping[str, Any]) -> dict[str, str]:
    key = take(fields, "key", str, required=True)
    if key in (_IS_PROMPT, _TEXT):
        raise bad_request(f"The tag {key!r} is the registry's own.", "key")
    return {"key": key, "value": take(fields, "value", str) or ""}


def _own(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The tags without those that make a prompt of it."""
    return [tag for tag in row.get("tags") or () if tag["key"] not in (_IS_PROMPT, _TEXT)]


def _moments(row: Mapping[str, Any]) -> dict[str, str]:
    """When it was made and changed, as protobuf writes points in time."""
    told = {key: row.get(key) for key in ("creation_timestamp", "last_updated_timestamp")}
    return {key: datetime.fromtimestamp(int(ms) / 1000, UTC).isoformat() for key, ms in told.items() if ms}


def _text(template: str) -> str:
    """A template as MLflow's own registry keeps it: text as it is, messages as JSON; it comes as JSON either way."""
    try:
        given = orjson.loads(template)
    except orjson.JSONDecodeError as error:
        where = "prompt_version.template"
        raise bad_request(f"Field {where!r} must be JSON, a string or an array of messages: {error}.", where) from None
    return given if isinstance(given, str) else orjson.dumps(given).decode()


def _prompt(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": model["name"],
        "description": model.get("description"),
        "tags": _own(model),
        "aliases": list(model.get("aliases") or ()),
        **_moments(model),
    }


def _version(row: Mapping[str, Any]) -> dict[str, Any]:
    held = {tag["key"]: tag["value"] for tag in row.get("tags") or ()}
    if _TEXT not in held:
        raise not_found(f"Version {row['version']} of {row['name']} has no text.")
    text = held[_TEXT]
    return {
        "name": row["name"],
        "version": str(row["version"]),
        "description": row.get("description"),
        "template": text if held.get(_KIND) == "chat" else orjson.dumps(text).decode(),
        "tags": _own(row),
        "aliases": [{"alias": alias, "version": str(row["version"])} for alias in row.get("aliases") or ()],
        **_moments(row),
    }
