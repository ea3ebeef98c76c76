"""OpenAI's older text completions: each prompt is one user message, and has its own `n` choices, one prompt's after another's.

Source: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from governance import choices
from governance.call import Call, CallError, Event, bad_request
from serving.protocols import chat, sse
from serving.protocols.errors import openai_error, response_error
from serving.protocols.request import Request, describe, number


def decode(body: Mapping[str, Any], *, model: str | None = None) -> Request:
    """A completions request; its other fields are read as Chat Completions reads them. Raises `CallError` (400)."""
    prompts = _prompts(body.get("prompt"))
    count = number(body, "n", 1, chat.MAX_CHOICES, kind=int) or 1
    if (choices := count * len(prompts)) > chat.MAX_CHOICES:
        said = (
            f"Field 'prompt' has {len(prompts)} prompts of {count} choices each; a request has at most {chat.MAX_CHOICES} in all."
        )
        raise bad_request(said, "prompt")
    if body.get("best_of") not in (None, count):
        raise bad_request(f"Field 'best_of' must be as many as 'n' ({count}): every choice that is written is given.", "best_of")
    if body.get("echo") not in (None, False):
        raise bad_request("Field 'echo' must be false: the answer holds what follows the prompt.", "echo")
    given = {**body, "n": choices, "messages": [{"role": "user", "content": prompt} for prompt in prompts]}
    shown = number(body, "logprobs", 0, 20, kind=int)
    given |= {"logprobs": shown is not None, "top_logprobs": shown}
    request = chat.decode(given, model=model)
    return replace(request, payload={**request.payload, "raw": True})


def _prompts(given: Any) -> list[str]:
    prompts = given if isinstance(given, list) else [given]
    if not prompts:
        raise bad_request("Field 'prompt' is an empty list: give a string, or several.", "prompt")
    for place, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            where = f"prompt[{place}]" if given is prompts else "prompt"
            raise bad_request(f"Field '{where}' must be a string, not {describe(prompt)}: tokens are not read.", "prompt")
    return prompts


class Encoder:
    """A text completion's answer; parameters as for `chat.Encoder`."""

    def __init__(self, call: Call, *, include_usage: bool = False, databricks: bool = False) -> None:
        self._call, self._include_usage, self._databricks = call, include_usage, databricks

    def _answer(self, response: Mapping[str, Any], chosen: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self._call.request_id}",
            "object": "text_completion",
            "created": int(response.get("created_at") or 0),
            "model": response.get("model") or self._call.endpoint,
            "choices": chosen,
            **more,
        }

    def event(self, event: Event) -> bytes:
        match event.type:
            case "response.output_text.delta":
                told, place = event.data.get("logprobs") or (), event.data.get("choice", 0)
                return sse.data(self._answer({}, [_choice(place, event.data["delta"], None, told)]))
            case "response.completed" | "response.incomplete":
                response = event.data["response"]
                counts = {"usage": chat.usage(response)}
                given = [_choice(place, "", chat.finish_reason(each)) for place, each in enumerate(choices.parts(response))]
                ends = [self._answer(response, [each]) for each in given]
                if self._databricks:
                    ends[-1] |= counts
                elif self._include_usage:
                    ends.append(self._answer(response, (), **counts))
                return b"".join(map(sse.data, ends)) + sse.DONE
            case "response.failed":
                return self.failure(response_error(event.data["response"]))
        return b""

    def failure(self, error: CallError) -> bytes:
        return sse.data(openai_error(error, self._call.request_id)) + sse.DONE

    def body(self, result: Mapping[str, Any]) -> bytes:
        given = []
        for place, each in enumerate(choices.parts(result)):
            parts = [part for item in each.get("output") or () if item["type"] == "message" for part in item["content"]]
            text = "".join(part.get("text") or "" for part in parts)
            told = [each for part in parts for each in part.get("logprobs") or ()]
            given.append(_choice(place, text, chat.finish_reason(each), told))
        return orjson.dumps(self._answer(result, given, usage=chat.usage(result)))


def _choice(place: int, text: str, finish: str | None, told: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    return {"index": place, "text": text, "logprobs": _logprobs(told), "finish_reason": finish}


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
