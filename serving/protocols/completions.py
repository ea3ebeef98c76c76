"""OpenAI's older text completions: a prompt is one user message.

Source: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from governance.call import Call, CallError, Event, bad_request
from serving.protocols import chat, sse
from serving.protocols.errors import openai_error, response_error
from serving.protocols.request import Request, describe, number


def decode(body: Mapping[str, Any], *, model: str | None = None) -> Request:
    """A completions request; its other fields are read as Chat Completions reads them. Raises `CallError` (400)."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise bad_request(f"Field 'prompt' must be one string, not {describe(prompt)}.", "prompt")
    if body.get("best_of") not in (None, 1):
        raise bad_request("Field 'best_of' must be 1: one choice is written per request.", "best_of")
    if body.get("echo") not in (None, False):
        raise bad_request("Field 'echo' must be false: the answer holds what follows the prompt.", "echo")
    given = {**body, "messages": [{"role": "user", "content": prompt}]}
    count = number(body, "logprobs", 0, 20, kind=int)
    given |= {"logprobs": count is not None, "top_logprobs": count}
    request = chat.decode(given, model=model)
    return replace(request, payload={**request.payload, "raw": True})


class Encoder:
    """A text completion's answer; parameters as for `chat.Encoder`."""

    def __init__(self, call: Call, *, include_usage: bool = False, databricks: bool = False) -> None:
        self._call, self._include_usage, self._databricks = call, include_usage, databricks

    def _answer(
        self, response: Mapping[str, Any], text: str, finish: str | None, told: Sequence[Any] = (), **more: Any
    ) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self._call.request_id}",
            "object": "text_completion",
            "created": int(response.get("created_at") or 0),
            "model": response.get("model") or self._call.endpoint,
            "choices": [{"index": 0, "text": text, "logprobs": _logprobs(told), "finish_reason": finish}],
            **more,
        }

    def event(self, event: Event) -> bytes:
        match event.type:
            case "response.output_text.delta":
                return sse.data(self._answer({}, event.data["delta"], None, event.data.get("logprobs") or ()))
            case "response.completed" | "response.incomplete":
                response = event.data["response"]
                counts = {"usage": chat.usage(response)}
                more: dict[str, Any] = counts if self._databricks else {}
                end = sse.data(self._answer(response, "", chat.finish_reason(response)) | more)
                if self._include_usage and not self._databricks:
                    end += sse.data({**self._answer(response, "", None), "choices": []} | counts)
                return end + sse.DONE
            case "response.failed":
                return self.failure(response_error(event.data["response"]))
        return b""

    def failure(self, error: CallError) -> bytes:
        return sse.data(openai_error(error, self._call.request_id)) + sse.DONE

    def body(self, result: Mapping[str, Any]) -> bytes:
        parts = [part for item in result.get("output") or () if item["type"] == "message" for part in item["content"]]
        text = "".join(part.get("text") or "" for part in parts)
        told = [each for part in parts for each in part.get("logprobs") or ()]
        return orjson.dumps(self._answer(result, text, chat.finish_reason(result), told, usage=chat.usage(result)))


def _logprobs(told: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Log probabilities in the older API's shape."""
    if not told:
        return None
    offsets, at = [], 0
    for each in told:
        offsets.append(at)
        at += len(each["token"])
    return {
        "tokens": [each["token"] for each in told],
        "token_logprobs": [each["logprob"] for each in told],
        "top_logprobs": [{top["token"]: top["logprob"] for top in each.get("top_logprobs") or ()} for each in told],
        "text_offset": offsets,
    }
