"""OpenTelemetry's names for what a call of a model or an agent is about.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from typing import Any

from governance.call import CallRecord

_OPERATIONS = {"agent": "invoke_agent", "chat": "chat", "embeddings": "embeddings"}


def attributes(record: CallRecord) -> dict[str, Any]:
    """Of a call's span; of a call that is of no model and no agent there are none."""
    call = record.call
    if (operation := _OPERATIONS.get(call.task)) is None:
        return {}
    told: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "smalti",
        "gen_ai.request.model": call.endpoint,
        "gen_ai.conversation.id": call.thread_id,
        "gen_ai.usage.input_tokens": record.usage.get("input_tokens"),
        "gen_ai.usage.output_tokens": record.usage.get("output_tokens"),
        "error.type": str(record.status_code) if record.status_code >= 400 else None,
    }
    if operation == "invoke_agent":
        told["gen_ai.agent.name"] = call.endpoint
    for name, key in (("temperature", "temperature"), ("top_p", "top_p"), ("max_output_tokens", "max_tokens")):
        if isinstance(given := call.payload.get(name), int | float) and not isinstance(given, bool):
            told[f"gen_ai.request.{key}"] = given if key == "max_tokens" else float(given)
    response = record.response or {}
    if isinstance(model := response.get("model"), str):
        told["gen_ai.response.model"] = model
    return told
