"""What databricks-sdk asks of experiments and the older registry under names that MLflow's own server does not have.

Sources: https://docs.databricks.com/api/workspace/experiments and …/modelregistry
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import Response

from governance.call import Caller, CallError, bad_request
from serving.protocols.request import number, take
from serving.registry import reading
from serving.tracking.access import ModelAccess, check_unscoped
from serving.tracking.server import MlflowServer
from serving.unity_catalog.registered import Authorize, answer, fields_of

_AT = "/api/2.0/mlflow/databricks"
_PERMISSIONS = "/api/2.0/permissions/experiments/{experiment_id}"
_MOST = 1000
"""Runs that one request deletes or restores."""
_DELETED = text(
    "SELECT run_uuid FROM runs WHERE experiment_id = :experiment AND lifecycle_stage = 'deleted' AND deleted_time >= :since "
    "ORDER BY deleted_time DESC LIMIT :most"
)


def deleted(database: Path, experiment: str, since_ms: int, most: int) -> list[str]:
    """Ids of the runs of an experiment that were deleted from a time on, which MLflow's own API does not tell. Blocking."""
    with reading(database, "runs") as connection:
        given = {"experiment": experiment, "since": since_ms, "most": most}
        return list(connection.execute(_DELETED, given).scalars()) if connection is not None and experiment.isdigit() else []


def router(server: MlflowServer, access: ModelAccess, authorize: Authorize) -> APIRouter:
    """`experiments.delete_runs`, `restore_runs` and permissions; `model_registry.get_model` and `transition_stage`.

    Parameters
    ----------
    server: the tracking server.
    access: who may do what with registered models.
    authorize: who asks; raises `CallError`.
    """
    routes = APIRouter()

    async def registry(who: Caller, method: str, action: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        resource, _, verb = action.partition("/")
        await asyncio.to_thread(access.admit, who, resource, verb, method, fields)
        return await server.ask(method, f"/api/2.0/mlflow/{action}", fields)

    @routes.get(f"{_AT}/registered-models/get", include_in_schema=False)
    async def model(http: Request) -> Response:
        who = check_unscoped(await authorize(http))
        name = take(await fields_of(http), "name", str, required=True)
        found = (await registry(who, "GET", "registered-models/get", {"name": name}))["registered_model"]
        level = access.grants.level(who, f"model:{name}")
        return answer({"registered_model_databricks": {**found, "id": name, "permission_level": level}})

    @routes.post(f"{_AT}/model-versions/transition-stage", include_in_schema=False)
    async def stage(http: Request) -> Response:
        who, fields = check_unscoped(await authorize(http)), await fields_of(http)
        asked = {key: take(fields, key, str, required=True) for key in ("name", "version", "stage")}
        asked["archive_existing_versions"] = bool(take(fields, "archive_existing_versions", bool))
        done = await registry(who, "POST", "model-versions/transition-stage", asked)
        return answer({"model_version_databricks": done["model_version"]})

    async def bounds(http: Request, bound: str) -> tuple[str, int, int]:
        """The experiment, the time that bounds its runs, and how many at most, of a request to change many."""
        check_unscoped(await authorize(http))
        fields = await fields_of(http)
        moment = take(fields, bound, int)
        if moment is None:
            raise bad_request(f"Missing field {bound!r}: send a time in Unix milliseconds.", bound)
        most = number(fields, "max_runs", 1, _MOST, kind=int) or _MOST
        return take(fields, "experiment_id", str, required=True), moment, most

    @routes.post(f"{_AT}/runs/delete-runs", include_in_schema=False)
    async def delete_runs(http: Request) -> Response:
        experiment, moment, most = await bounds(http, "max_timestamp_millis")
        sought = {
            "experiment_ids": [experiment],
            "filter": f"attributes.start_time <= {moment}",
            "max_results": most,
            "order_by": ["attributes.start_time ASC"],
        }
        found = (await server.ask("POST", "/api/2.0/mlflow/runs/search", sought)).get("runs") or []
        for run in found:
            await server.ask("POST", "/api/2.0/mlflow/runs/delete", {"run_id": run["info"]["run_id"]})
        return answer({"runs_deleted": len(found)})

    @routes.post(f"{_AT}/runs/restore-runs", include_in_schema=False)
    async def restore_runs(http: Request) -> Response:
        experiment, moment, most = await bounds(http, "min_timestamp_millis")
        await server.ask("GET", "/api/2.0/mlflow/experiments/get", {"experiment_id": experiment})
        found = await asyncio.to_thread(deleted, server.home / "mlflow.db", experiment, moment, most)
        for run in found:
            await server.ask("POST", "/api/2.0/mlflow/runs/restore", {"run_id": run})
        return answer({"runs_restored": len(found)})

    @routes.get(_PERMISSIONS, include_in_schema=False)
    async def permissions(http: Request, experiment_id: str) -> Response:
        """Experiments are everybody's who has a key here."""
        check_unscoped(await authorize(http))
        await server.ask("GET", "/api/2.0/mlflow/experiments/get", {"experiment_id": experiment_id})
        everybody = {"group_name": "users", "all_permissions": [{"permission_level": "CAN_MANAGE", "inherited": True}]}
        about = {"object_id": f"/experiments/{experiment_id}", "object_type": "mlflowExperiment"}
        return answer({**about, "access_control_list": [everybody]})

    @routes.get(f"{_PERMISSIONS}/permissionLevels", include_in_schema=False)
    async def levels(http: Request, experiment_id: str) -> Response:
        check_unscoped(await authorize(http))
        return answer({"permission_levels": [{"permission_level": "CAN_MANAGE", "description": "May read and change it"}]})

    @routes.put(_PERMISSIONS, include_in_schema=False)
    @routes.patch(_PERMISSIONS, include_in_schema=False)
    async def permit(http: Request, experiment_id: str) -> Response:
        check_unscoped(await authorize(http))
        message = "Experiments belong to all who have a key here, and are not granted. Grants are on models and endpoints."
        raise CallError(message, status=400, code="FEATURE_DISABLED")

    return routes
