"""Asks an endpoint by its address, as a client would: OpenAI Responses, OpenAI Chat Completions or MLflow invocations."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from evals.data import Prediction

if TYPE_CHECKING:
    import httpx

Protocol = Literal["responses", "chat", "invocations"]
RETRIED = (408, 429, 502, 503, 504)
ATTEMPTS = 3
MAX_WAIT = 30.0
"""Seconds to wait at most before asking again, whatever the server says."""


class Ask:
    """`async ask(question or record) -> Prediction` of one endpoint.

    Parameters
    ----------
    client: with the base URL and the credentials; the caller closes it.
    model: the endpoint's or the model's name. protocol: what is spoken.
    path: where to send to; default for `invocations` `/serving-endpoints/MODEL/invocations`, else OpenAI's below the base URL.

    An answer with an error, or none, is a `Prediction.error`. What may pass by itself (no connection, 429, 503) is tried
    `ATTEMPTS` times, as the server says when. Latency is that of the attempt that was answered.
    """

    def __init__(self, client: httpx.AsyncClient, model: str, protocol: Protocol = "responses", path: str | None = None) -> None:
        default = {
            "responses": "responses",
            "chat": "chat/completions",
            "invocations": f"serving-endpoints/{model}/invocations",
        }
        self.client, self.model, self.protocol = client, model, protocol
        self.path = default[protocol] if path is None else path

    async def __call__(self, asked: str | Mapping[str, Any]) -> Prediction:
        import httpx

        error = ""
        for attempt in range(ATTEMPTS):
            started = time.perf_counter()
            try:
                answer = await self.client.post(self.path, json=self._body(asked))
            except httpx.HTTPError as problem:
                error, wait = f"{type(problem).__name__}: {problem}".removesuffix(": "), 0.5 * 2**attempt
            else:
                latency = (time.perf_counter() - started) * 1e3
                request_id = answer.headers.get("x-request-id", "")
                if answer.status_code not in RETRIED:
                    return _read(answer, latency, request_id)
                error, wait = _refusal(answer), _retry_after(answer, attempt)
            if attempt + 1 < ATTEMPTS:
                await asyncio.sleep(min(wait, MAX_WAIT))
        return Prediction(error=f"{error} (asked {ATTEMPTS} times)")

    def _body(self, asked: str | Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(asked, str):
            return {"dataframe_records": [dict(asked)]}
        messages = [{"role": "user", "content": asked}]
        if self.protocol == "responses":
            return {"model": self.model, "input": asked}
        return {"model": self.model, "messages": messages} if self.protocol == "chat" else {"messages": messages}


def _retry_after(answer: httpx.Response, attempt: int) -> float:
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return 0.5 * 2**attempt


def _refusal(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        error = body.get("error")
        message = error.get("message") if isinstance(error, Mapping) else body.get("message") or error
    except (ValueError, AttributeError):
        message = answer.text
    return f"HTTP {answer.status_code}: {str(message)[:300]}"


def _read(answer: httpx.Response, latency: float, request_id: str) -> Prediction:
    if not answer.is_success:
        return Prediction(error=_refusal(answer), latency_ms=latency, request_id=request_id)
    try:
        body = answer.json()
        return prediction(body, latency, request_id)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        said = f"the answer is in no known shape ({type(error).__name__}: {error}): {answer.text[:200]}"
        return Prediction(error=said, latency_ms=latency, request_id=request_id)


def prediction(body: Mapping[str, Any], latency: float | None, request_id: str) -> Prediction:
    """An answer in any of the shapes, told apart by what it holds."""
    if body.get("status") == "failed":
        message = (body.get("error") or {}).get("message", "the response failed")
        return Prediction(error=message, latency_ms=latency, request_id=request_id)
    fields: dict[str, Any] = {"latency_ms": latency, "request_id": request_id}
    if "predictions" in body:
        fields |= _predicted(body["predictions"])
    elif "choices" in body:
        message = body["choices"][0]["message"]
        calls = [call["function"]["name"] for call in message.get("tool_calls") or ()]
        fields |= {"text": message.get("content") or "", "tools": tuple(calls)}
    else:
        items = body["output"]
        parts = [part for item in items if item["type"] == "message" for part in item["content"]]
        called = ("function_call", "mcp_call")
        fields |= {
            "text": "".join(part["text"] for part in parts if part["type"] == "output_text"),
            "tools": tuple(item["name"] for item in items if item["type"] in called),
        }
    outputs, usage = body.get("custom_outputs") or {}, body.get("usage") or {}
    quotes = {cited.get("passage_id"): cited.get("quote") for cited in outputs.get("citations") or ()}
    passages = tuple(
        {**passage, **({"quote": quotes[passage["id"]]} if quotes.get(passage.get("id")) else {})}
        for passage in outputs.get("passages") or ()
    )
    return Prediction(
        **fields,
        sources=tuple(dict.fromkeys(passage["source"] for passage in passages)),
        abstained=bool(outputs.get("abstained")),
        trace_id=outputs.get("trace_id"),
        passages=passages,
        route=str((outputs.get("route") or {}).get("label") or ""),
        tokens=usage.get("total_tokens"),
        cost=usage.get("cost"),
    )


def _predicted(predictions: Any) -> dict[str, Any]:
    """A classical model's answer to one record: a label or number, or an object of label and probabilities."""
    first = predictions[0] if isinstance(predictions, list) else predictions
    if isinstance(first, Mapping):
        label = next((first[key] for key in ("label", "prediction", "class") if key in first), None)
        probabilities = first.get("probabilities")
        if not isinstance(probabilities, Mapping):
            probabilities = {label: first["score"]} if "score" in first and label is not None else None
        if label is None:
            return {"text": json.dumps(first, ensure_ascii=False)}
    else:
        label, probabilities = first, None
    if isinstance(label, bool):
        label = str(label).lower()
    return {"text": str(label), "label": label, "probabilities": probabilities}
