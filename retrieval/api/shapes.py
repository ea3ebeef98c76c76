"""Endpoints, indexes and values as the vector search API shows them."""

from __future__ import annotations

import json
import uuid
from typing import Any

from retrieval.index import IndexInfo
from retrieval.rows.endpoints import SearchEndpoint
from retrieval.rows.store import RowIndex

PREFIX = "/api/2.0/vector-search"
BUILT_IN = "smalti"
"""The endpoint that indexes over folders are on."""
_SPACE = uuid.UUID("6f9619ff-8b86-d011-b42d-00c04fc964ff")


def endpoint(found: SearchEndpoint, count: int) -> dict[str, Any]:
    details = found.details
    more = {key: details[key] for key in ("custom_tags", "budget_policy_id") if details.get(key)}
    if policy := details.get("budget_policy_id"):
        more["effective_budget_policy_id"] = policy
    if qps := details.get("target_qps"):
        more["scaling_info"] = {"requested_target_qps": qps, "state": "SCALING_CHANGE_APPLIED"}
    return {
        "name": found.name,
        "id": found.id,
        "creator": found.creator,
        "creation_timestamp": found.created_ms,
        "last_updated_timestamp": details.get("updated_ms", found.created_ms),
        "last_updated_user": details.get("updated_by", found.creator),
        "endpoint_type": found.kind,
        "endpoint_status": {"state": found.state, "message": ""},
        "num_indexes": count,
        **more,
    }


def built_in(count: int) -> dict[str, Any]:
    status = {"state": "ONLINE", "message": "Indexes over folders."}
    more = {"creator": "smalti", "endpoint_type": "STANDARD", "endpoint_status": status, "num_indexes": count}
    return {"name": BUILT_IN, "id": BUILT_IN, **more}


def summary(index: RowIndex | IndexInfo) -> dict[str, Any]:
    """An index as lists show it."""
    if isinstance(index, IndexInfo):
        kind = {"index_type": "DELTA_SYNC", "index_subtype": "HYBRID", "primary_key": "id", "creator": "smalti"}
        return {"name": index.name, "endpoint_name": BUILT_IN, **kind}
    return {
        "name": index.name,
        "endpoint_name": index.endpoint,
        "index_type": index.spec.kind,
        "index_subtype": index.spec.subtype,
        "primary_key": index.spec.primary_key,
        "creator": index.creator,
    }


def described(index: RowIndex | IndexInfo, count: int, base: str) -> dict[str, Any]:
    """An index with its spec and status; `count` are its rows, `base` the address that the client knows the server by."""
    spec, state, message, ready = _folder(index) if isinstance(index, IndexInfo) else _rows(index, count)
    status = {
        "ready": ready,
        "detailed_state": state,
        "message": message,
        "indexed_row_count": count,
        "index_url": f"{base.rstrip('/')}{PREFIX}/indexes/{index.name}",
    }
    if isinstance(index, IndexInfo):
        skipped = [{"source": each.source, "reason": each.reason} for each in index.skipped]
        status |= {"documents": index.documents, "synced_at": index.synced_at, "skipped": skipped}
    return {**summary(index), "id": str(uuid.uuid5(_SPACE, index.name)), **spec, "status": status}


def _rows(index: RowIndex, count: int) -> tuple[dict[str, Any], str, str, bool]:
    spec, more = index.spec, dict[str, Any]()
    if spec.vector:
        more["embedding_vector_columns"] = [{"name": spec.vector, "embedding_dimension": spec.dimension}]
    if spec.text:
        entry = {"name": spec.text, "embedding_model_endpoint_name": spec.model}
        other = {"model_endpoint_name_for_query": spec.query_model} if spec.query_model != spec.model else {}
        more["embedding_source_columns"] = [entry | other]
    elif spec.query_model:
        more["embedding_source_columns"] = [{"embedding_model_endpoint_name": spec.query_model}]
    message = f"{count:,} rows."
    if spec.kind == "DIRECT_ACCESS":
        return (
            {"direct_access_index_spec": {**more, "schema_json": json.dumps(dict(spec.columns))}},
            "ONLINE_DIRECT_ACCESS",
            message,
            True,
        )
    pipeline = {"source_table": spec.source, "pipeline_type": spec.pipeline, "pipeline_id": f"smalti-{index.id}"}
    chosen = {"columns_to_sync": list(spec.chosen)} if spec.chosen else {}
    if index.syncing:
        online = "ONLINE_CONTINUOUS_UPDATE" if spec.pipeline == "CONTINUOUS" else "ONLINE_TRIGGERED_UPDATE"
        state = online if index.ready else "PROVISIONING_INITIAL_SNAPSHOT"
        message = f"The index is being brought up to date. {index.told}".strip()
    elif index.error:
        state, message = "ONLINE_PIPELINE_FAILED" if index.ready else "OFFLINE_FAILED", index.error
    else:
        state = "ONLINE_NO_PENDING_UPDATE" if index.ready else "PROVISIONING"
    return {"delta_sync_index_spec": {**pipeline, **more, **chosen}}, state, message, index.ready


def _folder(info: IndexInfo) -> tuple[dict[str, Any], str, str, bool]:
    if info.status == "SYNCING":
        state = "ONLINE_TRIGGERED_UPDATE" if info.ready else "PROVISIONING_INITIAL_SNAPSHOT"
        message = "The index is being brought up to date."
    elif info.error:
        state, message = "ONLINE_PIPELINE_FAILED" if info.ready else "OFFLINE_FAILED", info.error
    elif info.synced_at is None:
        state, message = "PROVISIONING", "The index has not been synced yet: POST to its /sync."
    else:
        state = "ONLINE_NO_PENDING_UPDATE"
        skipped = f"; {len(info.skipped):,} files skipped" if info.skipped else ""
        message = f"{info.documents:,} documents in {info.chunks:,} passages{skipped}."
    spec = {
        "source_table": info.path,
        "pipeline_type": "TRIGGERED",
        "embedding_source_columns": [{"name": "text", "embedding_model_endpoint_name": info.encoder.partition(":")[0].lower()}],
    }
    return {"delta_sync_index_spec": spec}, state, message, info.ready


def value(given: Any) -> dict[str, Any]:
    """A value as protobuf's JSON writes one of any type."""
    if isinstance(given, bool):
        return {"bool_value": given}
    if isinstance(given, int | float):
        return {"number_value": given}
    if isinstance(given, list | tuple):
        return {"list_value": {"values": [value(each) for each in given]}}
    return {"string_value": given} if given is not None else {"null_value": "NULL_VALUE"}
