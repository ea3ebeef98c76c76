"""OpenAI Chat Completions.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from governance.call import Call, CallError, Event, bad_request
from serving.protocols import sse
from serving.protocols.errors import openai_error, response_error
from serving.protocols.request import (
    LOGPROBS,
    MAX_ITEMS,
    Request,
    choice,
    chosen,
    describe,
    named,
    number,
    present,
    stops,
    strings,
    tagged,
    take,
)

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def decode(body: Mapping[str, Any], *, model: str | None = None) -> Request:
    """A Chat Completions request; `model` names the endpoint where the path does. Raises `CallError` (400)."""
    name = model or named(body)
    messages = take(body, "messages", list, required=True)
    if not messages:
        raise bad_request("Field 'messages' is empty: send at least one message.", "messages")
    if len(messages) > MAX_ITEMS:
        raise bad_request(f"Field 'messages' has {len(messages)} messages; at most {MAX_ITEMS} are read.", "messages")
    options = take(body, "stream_options", dict) or {}
    include_usage = take(options, "include_usage", bool, path="stream_options.")
    limit = number(body, "max_completion_tokens", 1, 10_000_000, kind=int)
    limit = limit if limit is not None else number(body, "max_tokens", 1, 10_000_000, kind=int)
    payload = {
        "model": name,
        "input": [item for position, message in enumerate(messages) for item in _items(message, f"messages[{position}]")],
        "max_output_tokens": limit,
        "temperature": number(body, "temperature", 0, 2),
        "metadata": strings(body, "metadata") or None,
        **({} if body.keys() <= _USUAL else _unusual(body)),
    }
    stream = bool(take(body, "stream", bool))
    return Request(name, present(payload), stream=stream, options={"include_usage": bool(include_usage)}, **tagged(body))


_USUAL = frozenset(
    ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "metadata", "stream", "stream_options")
)
"""Fields that most requests make do with."""


def _unusual(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that are not usual."""
    if number(body, "n", 1, 128, kind=int) not in (None, 1):
        raise bad_request("Field 'n' must be 1: one choice is given per request.", "n")
    effort = take(body, "reasoning_effort", str)
    text_format, offered = response_format(body), tools(body)
    return {
        "tools": offered,
        "tool_choice": chosen(tool_choice(body), offered),
        "parallel_tool_calls": take(body, "parallel_tool_calls", bool),
        "text": {"format": text_format} if text_format else None,
        "top_p": number(body, "top_p", 0, 1),
        "frequency_penalty": number(body, "frequency_penalty", -2, 2),
        "presence_penalty": number(body, "presence_penalty", -2, 2),
        "seed": take(body, "seed", int),
        "logit_bias": _logit_bias(body),
        "stop": stops(body),
        "user": take(body, "user", str),
        "reasoning": {"effort": effort} if effort else None,
        "top_k": number(body, "top_k", 0, 1_000_000, kind=int),
        **logprobs(body),
        "custom_inputs": take(body, "custom_inputs", dict),
        "context": take(body, "context", dict),
    }


def _logit_bias(body: Mapping[str, Any]) -> dict[str, float] | None:
    """What is added to the scores of tokens, by their numbers in the model's vocabulary."""
    given = take(body, "logit_bias", dict) or {}
    if len(given) > 1024:
        raise bad_request(f"Field 'logit_bias' has {len(given)} tokens; at most 1024 are read.", "logit_bias")
    for token, added in given.items():
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise bad_request(f"Field 'logit_bias' has {token[:20]!r}, which is no token's number.", "logit_bias")
        if type(added) not in (int, float) or not -100 <= added <= 100:
            raise bad_request(f"Field 'logit_bias.{token}' must be a number between -100 and 100.", "logit_bias")
    return given or None


def _items(message: Any, path: str) -> list[dict[str, Any]]:
    if not isinstance(message, dict):
        raise bad_request(f"Field {path!r} must be an object, not {describe(message)}.", path)
    role = choice(message, "role", ROLES, path=f"{path}.", required=True)
    if role in ("tool", "function"):
        call_id = take(message, "tool_call_id" if role == "tool" else "name", str, path=f"{path}.", required=True)
        return [{"type": "function_call_output", "call_id": call_id, "output": _text(message, path)}]
    items: list[dict[str, Any]] = []
    content = message.get("content")
    if role == "assistant":
        calls = take(message, "tool_calls", list, path=f"{path}.") or []
        refusal = take(message, "refusal", str, path=f"{path}.")
        if content is None and not calls and refusal is None and not message.get("function_call"):
            raise bad_request(
                f"Field '{path}.content' is missing: an assistant message needs content or tool_calls.", f"{path}.content"
            )
        text = _text(message, path) if content is not None else refusal or ""
        if text:
            items.append({"type": "message", "role": "assistant", "content": text})
        items += [_function_call(call, f"{path}.tool_calls[{position}]") for position, call in enumerate(calls)]
        return items or [{"type": "message", "role": "assistant", "content": ""}]
    parts = _parts(message, path) if isinstance(content, list) else _text(message, path)
    return [present({"type": "message", "role": role, "content": parts})]


def _function_call(call: Any, path: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise bad_request(f"Field {path!r} must be an object, not {describe(call)}.", path)
    function = take(call, "function", dict, path=f"{path}.", required=True)
    return {
        "type": "function_call",
        "call_id": take(call, "id", str, path=f"{path}.", required=True),
        "name": take(function, "name", str, path=f"{path}.function.", required=True),
        "arguments": take(function, "arguments", str, path=f"{path}.function.", required=True),
    }


def _text(message: Mapping[str, Any], path: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = _parts(message, path)
        if any(part["type"] != "input_text" for part in parts):
            raise bad_request(f"Field '{path}.content' may hold text only in a message of this role.", f"{path}.content")
        return "".join(part["text"] for part in parts)
    raise bad_request(
        f"Field '{path}.content' must be a string or an array of parts, not {describe(content)}.", f"{path}.content"
    )


def _parts(message: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for position, part in enumerate(message["content"]):
        where = f"{path}.content[{position}]"
        if not isinstance(part, dict):
            raise bad_request(f"Field {where!r} must be an object, not {describe(part)}.", where)
        match take(part, "type", str, path=f"{where}.", required=True):
            case "text":
                parts.append({"type": "input_text", "text": take(part, "text", str, path=f"{where}.", required=True)})
            case "refusal":
                parts.append({"type": "input_text", "text": take(part, "refusal", str, path=f"{where}.", required=True)})
            case "image_url":
                image = take(part, "image_url", dict, path=f"{where}.", required=True)
                url = take(image, "url", str, path=f"{where}.image_url.", required=True)
                detail = take(image, "detail", str, path=f"{where}.image_url.") or "auto"
                parts.append({"type": "input_image", "image_url": url, "detail": detail})
            case kind:
                raise bad_request(f"Field '{where}.type' is {kind[:40]!r}; text and image_url parts are read.", f"{where}.type")
    if not parts:
        raise bad_request(f"Field '{path}.content' is empty: send text or at least one part.", f"{path}.content")
    return parts


def tools(body: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Chat's `tools` (or the older `functions`) as Responses tools."""
    given = take(body, "tools", list)
    if given is None:
        given = [{"type": "function", "function": function} for function in take(body, "functions", list) or []]
    decoded = []
    for position, tool in enumerate(given):
        path = f"tools[{position}]"
        if not isinstance(tool, dict):
            raise bad_request(f"Field {path!r} must be an object, not {describe(tool)}.", path)
        choice(tool, "type", ("function",), path=f"{path}.", required=True)
        function = take(tool, "function", dict, path=f"{path}.", required=True)
        decoded.append(
            {
                "type": "function",
                "name": take(function, "name", str, path=f"{path}.function.", required=True),
                "description": take(function, "description", str, path=f"{path}.function."),
                "parameters": take(function, "parameters", dict, path=f"{path}.function.")
                or {"type": "object", "properties": {}},
                "strict": bool(take(function, "strict", bool, path=f"{path}.function.")),
            }
        )
    return decoded or None


def tool_choice(body: Mapping[str, Any]) -> Any:
    """Chat's `tool_choice` as the Responses API writes it."""
    value = body.get("tool_choice")
    if isinstance(value, dict):
        choice(value, "type", ("function",), path="tool_choice.", required=True)
        function = take(value, "function", dict, path="tool_choice.", required=True)
        return {"type": "function", "name": take(function, "name", str, path="tool_choice.function.", required=True)}
    return choice(body, "tool_choice", ("none", "auto", "required"))


def response_format(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Chat's `response_format` as the Responses API's `text.format`."""
    value = take(body, "response_format", dict)
    if value is None:
        return None
    kind = choice(value, "type", ("text", "json_object", "json_schema"), path="response_format.", required=True)
    if kind != "json_schema":
        return {"type": kind}
    path = "response_format.json_schema."
    schema = take(value, "json_schema", dict, path="response_format.", required=True)
    return present(
        {
            "type": "json_schema",
            "name": take(schema, "name", str, path=path) or "response",  # databricks-langchain 0.3 sends none
            "description": take(schema, "description", str, path=path),
            "schema": take(schema, "schema", dict, path=path) or {},
            "strict": take(schema, "strict", bool, path=path),
        }
    )


def logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    """Chat's `logprobs` and `top_logprobs` as the Responses API writes them."""
    top = number(body, "top_logprobs", 0, 20, kind=int)
    if take(body, "logprobs", bool):
        return {"include": [LOGPROBS], "top_logprobs": top}
    if top:
        raise bad_request("Field 'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    return {}


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
        self._calls: dict[int, int] = {}
        self._text = False
        self._failed = False

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None, /, *, logprobs: Any = None, **more: Any) -> bytes:
        told = {"content": logprobs, "refusal": None} if logprobs else None
        choices = [{"index": 0, "delta": delta, "logprobs": told, "finish_reason": finish}]
        return sse.data({**self._head, "choices": choices, **more})

    def event(self, event: Event) -> bytes:
        body = event.data
        match event.type:
            case "response.output_text.delta":
                self._text = True
                return self._chunk({"content": body["delta"]}, logprobs=body.get("logprobs"))
            case "response.created":
                self._begin(body["response"])
                return self._chunk({"role": "assistant", "content": "", "refusal": None})
            case "response.output_item.added" if body["item"]["type"] == "function_call":
                if body["item"].get("status") == "completed":
                    return b""  # whole, with its result after it: an agent's own call
                item, position = body["item"], len(self._calls)
                self._calls[body["output_index"]] = position
                function = {"name": item["name"], "arguments": ""}
                return self._chunk(
                    {"tool_calls": [{"index": position, "id": item["call_id"], "type": "function", "function": function}]}
                )
            case "response.output_item.added" if body["item"]["type"] == "mcp_approval_request":
                position = self._calls[body["output_index"]] = len(self._calls)
                return self._chunk({"tool_calls": [{"index": position, **called(body["item"])}]})
            case "response.function_call_arguments.delta":
                position = self._calls[body["output_index"]]
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
        parts = [self._chunk({}, finish_reason(response), **more)]
        if self._include_usage and not self._databricks:
            parts.append(sse.data({**self._head, "choices": [], "usage": usage(response)}))
        parts.append(sse.DONE)
        return b"".join(parts)

    def failure(self, error: CallError) -> bytes:
        return sse.data(openai_error(error, self._call.request_id)) + sse.DONE

    def body(self, result: Mapping[str, Any]) -> bytes:
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
        answer = {
            "id": f"chatcmpl-{self._call.request_id}",
            "object": "chat.completion",
            "created": int(result.get("created_at") or 0),
            "model": result.get("model") or self._call.endpoint,
            "choices": [{"index": 0, "message": message, "logprobs": logs, "finish_reason": finish_reason(result)}],
            "usage": usage(result),
            "service_tier": "default",
            "system_fingerprint": None,
        }
        if custom := result.get("custom_outputs"):
            answer["custom_outputs"] = custom
        return orjson.dumps(answer)


def _moved(body: Mapping[str, Any], offset: int) -> Mapping[str, Any]:
    if not offset or "start_index" not in body:
        return body
    return {**body, "start_index": body["start_index"] + offset, "end_index": body["end_index"] + offset}
