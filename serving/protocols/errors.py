"""Errors in each protocol's own shape.

Sources: https://platform.openai.com/docs/guides/error-codes and https://docs.databricks.com/api/workspace/introduction
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.call import CallError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    424: "server_error",
    429: "rate_limit_error",
}
_CODES = {
    401: "invalid_api_key",
    403: "permission_denied",
    404: "model_not_found",
    413: "request_too_large",
    424: "failed_dependency",
    429: "rate_limit_exceeded",
}

_FAILED = {"rate_limit_exceeded": (429, "REQUEST_LIMIT_EXCEEDED"), "invalid_prompt": (400, "BAD_REQUEST")}


def openai_error(error: CallError, request_id: str) -> dict[str, Any]:
    """The body OpenAI's clients read."""
    kind = _TYPES.get(error.status) or ("server_error" if error.status >= 500 else "invalid_request_error")
    code = _CODES.get(error.status) or ("server_error" if error.status >= 500 else error.code.lower())
    if error.code == "ENDPOINT_NOT_FOUND":  # a path, not a model
        code = "not_found"
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code, "request_id": request_id}}


def databricks_error(error: CallError, request_id: str) -> dict[str, Any]:
    """The body Databricks' SDK reads; `details` carries the request id as its error details do."""
    detail = {"@type": "type.googleapis.com/google.rpc.RequestInfo", "request_id": request_id, "serving_data": ""}
    return {"error_code": error.code, "message": error.message, "details": [detail]}


def response_error(response: Mapping[str, Any]) -> CallError:
    """The error a failed response carries, as a `CallError` again."""
    body = response.get("error") or {}
    status, code = _FAILED.get(body.get("code") or "", (500, "INTERNAL_ERROR"))
    message = str(body.get("message") or "The answer failed. Send the request again.")
    return CallError(message, status=status, code=code)
