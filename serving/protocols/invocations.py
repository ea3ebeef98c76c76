"""Databricks' `/serving-endpoints/{name}/invocations`: the body and the endpoint's task say which protocol it is.

Rows on an endpoint of rows; `messages` → Chat Completions; `prompt` → completions; `input` → embeddings on an embeddings
endpoint, else Responses (MLflow's `ResponsesAgent`). Streams are `data:` lines only with `[DONE]` last: MLflow's client
raises on anything else.

Source: https://docs.databricks.com/api/workspace/servingendpoints/query
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from governance.call import Call, bad_request
from serving.protocols import chat, chat_agent, completions, embeddings, responses, rows
from serving.protocols.request import Encoder, Request, take


def decode(body: Mapping[str, Any], *, model: str, task: str | None) -> tuple[Request, Callable[[Call], Encoder]]:
    """The request, and what makes its encoder.

    Parameters
    ----------
    body: the JSON object sent.
    model: the endpoint the path names.
    task: that endpoint's task, None where there is no such endpoint.
    """
    if task is None:  # the gateway says, and records, that there is no such endpoint
        return Request(model, {}), chat.Encoder
    if extra := take(body, "extra_params", dict):
        body = {**{key: _plain(value) for key, value in extra.items()}, **body}
    if task == "predict":
        return rows.decode(body, model=model), rows.Encoder
    if task == "llm/v1/embeddings" and "input" in body:
        request = embeddings.decode(body, model=model)
        return request, lambda call: embeddings.Encoder(call, encoding=request.options["encoding"])
    if "messages" in body:
        request = chat.decode(body, model=model)
        encoder = chat_agent.Encoder if task == "agent/v2/chat" else chat.Encoder
        return request, lambda call: encoder(call, databricks=True)
    if "input" in body:
        return responses.decode(body, model=model), lambda call: responses.Encoder(call, bare=True)
    if "prompt" in body:
        request = completions.decode(body, model=model)
        return request, lambda call: completions.Encoder(call, databricks=True)
    wanted = {"llm/v1/embeddings": "'input'", "agent/v1/responses": "'input' or 'messages'"}.get(task, "'messages'")
    raise bad_request(f"The body names nothing to answer: endpoint {model!r} reads {wanted}.", wanted.split("'")[1])


def _plain(value: Any) -> Any:
    """A value of `extra_params`, whose numbers and objects come as text."""
    try:
        return orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError:
        return value
