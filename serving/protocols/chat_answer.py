"""OpenAI Chat Completions: the answer, whole and streamed.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from governance import choices
from governance.call import Call, CallError, Event
from serving.protocols import sse
from serving.protocols.errors import openai_error, response_error


def usage(response: Mapping[str, Any]) -> dict[str, Any]:
    """A response's usage in Chat's names."""
    counts = response.get("usage") or {}
    prompt, completion = counts.get("input_tokens", 0), counts.get("output_tokens", 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": counts.get("total_tokens", prompt + completion),
        "prompt_tokens_details": {"cached_tokens": (counts.get("input_tokens_details") or {}).get("cached_tokens", 0)},
        "completion_tokens_details": {"reasoning_tokens": (counts.get("output_tokens_details") or {}).get("reasoning_tokens", 0)},
    }


CALLS = ("function_call", "mcp_approval_request")
"""Items that are tool calls in Chat's words. What asks for approval is answered by its tool message: `true`, `false`, or an
object with `approve` and, if wanted, `arguments` or a `reason`."""


def called(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item of `CALLS` as Chat's tool call."""
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item.get("call_id") or item["id"], "type": "function", "function": function}


def asked(output: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The calls of an answer that the client is to make: an agent's own have their results beside them."""
    settled = {item.get("call_id") for item in output if item.get("type") == "function_call_output"}
    return [called(item) for item in output if item.get("type") in CALLS and item.get("call_id") not in settled]


def finish_reason(response: Mapping[str, Any]) -> str:
    """Why the answer ended, in Chat's words."""
    if response.get("status") == "incomplete":
        reason = (response.get("incomplete_details") or {}).get("reason")
        return "content_filter" if reason == "content_filter" else "length"
    return "tool_calls" if asked(response.get("output") or ()) else "stop"


def annotation(body: Mapping[str, Any]) -> dict[str, Any]:
    """A Responses annotation as Chat nests it."""
    kind = body.get("type", "url_citation")
    return {"type": kind, kind: {key: value for key, value in body.items() if key != "type"}}


class Encoder:
    """Chat Completions' answer.

    Parameters
    ----------
    call: the call being answered.
    include_usage: the client asked for usage in the stream.
    databricks: the client came by a Databricks path: usage rides on the last content chunk, whether asked for or not,
        because those clients drop chunks without choices.
    """

    def __init__(self, call: Call, *, include_usage: bool = False, databricks: bool = False) -> None:
        self._call, self._include_usage, self._databricks = call, include_usage, databricks
        self._head: dict[str, Any] = {}
        self._calls: dict[tuple[int, int], int] = {}  # place among its choice's calls, by choice and item
        self._called: Counter[int] = Counter()
        self._choice = 0  # that is being told

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None, /, *, logprobs: Any = None, **more: Any) -> bytes:
        told = {"content": logprobs, "refusal": None} if logprobs else None
        chosen = [{"index": self._choice, "delta": delta, "logprobs": told, "finish_reason": finish}]
        return sse.data({**self._head, "choices": chosen, **more})

    def _place(self, body: Mapping[str, Any]) -> int:
        """The place of a call that begins."""
        position = self._calls[self._choice, body["output_index"]] = self._called[self._choice]
        self._called[self._choice] += 1
        return position

    def event(self, event: Event) -> bytes:
        body = event.data
        self._choice = body.get("choice", 0)
        match event.type:
            case "response.output_text.delta":
                return self._chunk({"content": body["delta"]}, logprobs=body.get("logprobs"))
            case "response.created":
                self._begin(body["response"])
                return self._chunk({"role": "assistant", "content": "", "refusal": None})
            case "response.output_item.added" if body["item"]["type"] == "function_call":
                if body["item"].get("status") == "completed":
                    return b""  # whole, with its result after it: an agent's own call
                item, position = body["item"], self._place(body)
                function = {"name": item["name"], "arguments": ""}
                return self._chunk(
                    {"tool_calls": [{"index": position, "id": item["call_id"], "type": "function", "function": function}]}
                )
            case "response.output_item.added" if body["item"]["type"] == "mcp_approval_request":
                return self._chunk({"tool_calls": [{"index": self._place(body), **called(body["item"])}]})
            case "response.function_call_arguments.delta":
                position = self._calls[self._choice, body["output_index"]]
                return self._chunk({"tool_calls": [{"index": position, "function": {"arguments": body["delta"]}}]})
            case "response.output_text.annotation.added":
                return self._chunk({"annotations": [annotation(body["annotation"])]})
            case "response.completed" | "response.incomplete":
                return self._end(body["response"])
            case "response.failed":
                return self.failure(response_error(body["response"]))
        return b""

    def _begin(self, response: Mapping[str, Any]) -> None:
        self._head = {
            "id": f"chatcmpl-{self._call.request_id}",
            "object": "chat.completion.chunk",
            "created": int(response.get("created_at") or 0),
            "model": response.get("model") or self._call.endpoint,
            "service_tier": "default",
            "system_fingerprint": None,
        }
        if self._include_usage and not self._databricks:
            self._head["usage"] = None

    def _end(self, response: Mapping[str, Any]) -> bytes:
        if not self._head:
            self._begin(response)
        more: dict[str, Any] = {}
        if custom := response.get("custom_outputs"):
            more["custom_outputs"] = custom
        if self._databricks:
            more["usage"] = usage(response)
        parts: list[bytes] = []
        given = choices.parts(response)
        for self._choice, each in enumerate(given):
            parts.append(self._chunk({}, finish_reason(each), **(more if self._choice + 1 == len(given) else {})))
        if self._include_usage and not self._databricks:
            parts.append(sse.data({**self._head, "choices": [], "usage": usage(response)}))
        parts.append(sse.DONE)
        return b"".join(parts)

    def failure(self, error: CallError) -> bytes:
        return sse.data(openai_error(error, self._call.request_id)) + sse.DONE

    def body(self, result: Mapping[str, Any]) -> bytes:
        answer = {
            "id": f"chatcmpl-{self._call.request_id}",
            "object": "chat.completion",
            "created": int(result.get("created_at") or 0),
            "model": result.get("model") or self._call.endpoint,
            "choices": [{"index": place, **_choice(each)} for place, each in enumerate(choices.parts(result))],
            "usage": usage(result),
            "service_tier": "default",
            "system_fingerprint": None,
        }
        if custom := result.get("custom_outputs"):
            answer["custom_outputs"] = custom
        return orjson.dumps(answer)


def _choice(result: Mapping[str, Any]) -> dict[str, Any]:
    """One whole choice without its index."""
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
    texts: list[str] = []
    calls = asked(result.get("output") or ())
    told: list[Any] = []
    for item in result.get("output") or ():
        if item["type"] == "message":
            for part in item["content"]:
                offset = sum(map(len, texts))
                texts.append(part.get("text") or part.get("refusal") or "")
                told += part.get("logprobs") or ()
                message["annotations"] += [annotation(_moved(each, offset)) for each in part.get("annotations") or ()]
    if texts or not calls:
        message["content"] = "".join(texts)
    if calls:
        message["tool_calls"] = calls
    logs = {"content": told, "refusal": None} if told else None
    return {"message": message, "logprobs": logs, "finish_reason": finish_reason(result)}


def _moved(body: Mapping[str, Any], offset: int) -> Mapping[str, Any]:
    if not offset or "start_index" not in body:
        return body
    return {**body, "start_index": body["start_index"] + offset, "end_index": body["end_index"] + offset}
