"""What every protocol decodes into, and the checks they share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import orjson

from governance.call import CallError, Event, bad_request

MAX_ITEMS = 20_000
"""Messages or items in one request."""
LOGPROBS = "message.output_text.logprobs"
"""What the Responses API's `include` names log probabilities."""

_TAGS = frozenset(("context", "custom_inputs", "client_request_id", "usage_context"))
_NOT_JSON = re.compile(rb"[\[:,]\s*-?(?:NaN|Infinity)\b")
_NAMES = {str: "a string", bool: "true or false", int: "an integer", float: "a number", dict: "an object", list: "an array"}


@dataclass(frozen=True, slots=True)
class Request:
    """A decoded request.

    Parameters
    ----------
    model: name of the endpoint; empty where the path names it.
    payload: a Responses API request (or `{"input": [...]}` for embeddings, or rows in one of MLflow's formats).
    task: what the protocol asks for; a chat protocol reaches chat models and agents.
    stream: whether the client wants events.
    thread_id: the conversation it continues, if it names one.
    previous: id of the response it continues (`previous_response_id`), which is looked up later.
    client_request_id, usage_context: Databricks' tags for the journal.
    options: how the answer is to be encoded.
    """

    model: str
    payload: Mapping[str, Any]
    task: Literal["chat", "embeddings", "predict"] = "chat"
    stream: bool = False
    thread_id: str | None = None
    previous: str | None = None
    client_request_id: str | None = None
    usage_context: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class Encoder(Protocol):
    """Turns an answer into what one protocol's clients read; one instance serves one answer."""

    def event(self, event: Event) -> bytes:
        """What to send for this event; empty where the protocol has nothing to say."""
        ...

    def failure(self, error: CallError) -> bytes:
        """What to send when the stream breaks without a terminal event."""
        ...

    def body(self, result: Mapping[str, Any]) -> bytes:
        """The whole answer, not streamed."""
        ...


def parse(raw: bytes) -> dict[str, Any]:
    """A request body as a JSON object; raises `CallError` (400)."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        hint = "Send null for a number that is missing." if _NOT_JSON.search(raw) else "Send a JSON object."
        raise bad_request(f"The body is not valid JSON ({error.msg} at {where}). {hint}") from None
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.")
    return body


def take(body: Mapping[str, Any], key: str, kind: type, *, path: str = "", required: bool = False) -> Any:
    """`body[key]` checked to be of `kind`; None where absent or null. Raises `CallError` (400) naming the field."""
    value = body.get(key)
    name = f"{path}{key}"
    if value is None:
        if required:
            raise bad_request(f"Missing field {name!r}: send {_NAMES[kind]}.", name)
        return None
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise bad_request(f"Field {name!r} must be {_NAMES[kind]}, not {describe(value)}.", name)
    return value


def named(body: Mapping[str, Any]) -> str:
    """The endpoint that `model` names. Raises `CallError` (400)."""
    name = take(body, "model", str, required=True)
    if not name:
        raise bad_request("Field 'model' must name an endpoint; GET /v1/models lists them.", "model")
    return name


def number(body: Mapping[str, Any], key: str, low: float, high: float, *, kind: type = float) -> Any:
    """A number within bounds, or None."""
    value = take(body, key, kind)
    if value is not None and not low <= value <= high:
        raise bad_request(f"Field {key!r} must be between {low:g} and {high:g}, not {value}.", key)
    return value


def choice(body: Mapping[str, Any], key: str, values: Sequence[str], *, path: str = "", required: bool = False) -> Any:
    """A string out of `values`, or None."""
    value = take(body, key, str, path=path, required=required)
    if value is not None and value not in values:
        shown = value if len(value) <= 40 else value[:37] + "..."
        raise bad_request(f"Field {path + key!r} must be one of {', '.join(values)}, not {shown!r}.", path + key)
    return value


def strings(body: Mapping[str, Any], key: str) -> dict[str, str]:
    """An object with string values (`metadata`, `usage_context`); empty where absent."""
    value = take(body, key, dict) or {}
    for name, entry in value.items():
        if not isinstance(entry, str):
            raise bad_request(f"Field '{key}.{name}' must be a string, not {describe(entry)}.", f"{key}.{name}")
    return value


def chosen(value: Any, tools: Sequence[Mapping[str, Any]] | None) -> Any:
    """A decoded `tool_choice`, which must be able to be followed. Raises `CallError` (400)."""
    if value == "required" and not tools:
        raise bad_request("Field 'tool_choice' is 'required', but there are no 'tools': send some.", "tool_choice")
    if isinstance(value, dict) and not any(tool["name"] == value["name"] for tool in tools or ()):
        raise bad_request(f"Field 'tool_choice' names {value['name'][:80]!r}, which is not among 'tools'.", "tool_choice")
    return value


def stops(body: Mapping[str, Any]) -> list[str] | None:
    """`stop` as a list: a string or up to 16 strings."""
    value = body.get("stop")
    if value is None:
        return None
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or len(value) > 16 or not all(isinstance(entry, str) for entry in value):
        raise bad_request("Field 'stop' must be a string or an array of at most 16 strings.", "stop")
    return value or None


def tagged(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Request` that Databricks' requests carry: thread, ids and tags."""
    if _TAGS.isdisjoint(body):
        return {"thread_id": None, "client_request_id": None, "usage_context": {}}
    context = take(body, "context", dict) or {}
    custom = take(body, "custom_inputs", dict) or {}
    thread = take(custom, "thread_id", str, path="custom_inputs.") or take(context, "conversation_id", str, path="context.")
    return {
        "thread_id": thread_name(thread) if thread else None,
        "client_request_id": take(body, "client_request_id", str),
        "usage_context": strings(body, "usage_context"),
    }


def thread_name(value: str) -> str:
    """A thread id as a client may choose it: 1 to 128 printable characters."""
    if not value or len(value) > 128 or not value.isprintable():
        raise bad_request("A conversation's id must be 1 to 128 printable characters.", "conversation")
    return value


def describe(value: Any) -> str:
    """What a wrong value is, in JSON's words."""
    if value is None:
        return "null"
    for kind in (bool, str, int, float, dict, list):
        if isinstance(value, kind):
            return _NAMES[kind] if kind is not bool else str(value).lower()
    return type(value).__name__


def present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` without those that are None."""
    return {key: value for key, value in fields.items() if value is not None}
