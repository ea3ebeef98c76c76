"""What `previous_response_id` continues: the journal's row of that answer is its stored response.

Source: https://platform.openai.com/docs/guides/conversation-state
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from governance.call import Caller, not_found


class Journal(Protocol):
    """What is needed of `governance.journal.Journal`."""

    def rows(self, *, limit: int | None = None, request_id: str | None = None) -> Iterator[Mapping[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Previous:
    """A stored response of a caller.

    Parameters
    ----------
    response: the Response object as it was given.
    items: the conversation up to and with it, as input items.
    asked: what of these the request brought.
    thread_id: the thread it belongs to, where it belongs to one.
    """

    response: Mapping[str, Any]
    items: list[dict[str, Any]]
    thread_id: str | None
    asked: int = 0

    def input_items(self) -> dict[str, Any]:
        """The list that `GET /v1/responses/{response_id}/input_items` answers."""
        held = self.items[: self.asked]
        data = [{"id": f"{self.response['id']}_{position}", **item} for position, item in enumerate(held)]
        for item in data:
            if item.get("type", "message") == "message" and isinstance(item.get("content"), str):
                kind = "output_text" if item.get("role") == "assistant" else "input_text"
                item |= {"status": "completed", "content": [{"type": kind, "text": item["content"]}]}
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return {"object": "list", "data": data, **ends, "has_more": False}


def find(journal: Journal, caller: Caller, response_id: str, *, param: str | None = "previous_response_id") -> Previous:
    """The response of that id; another caller's is not there. Blocking. Raises `CallError` (404)."""
    missing = not_found(
        f"There is no stored response {response_id[:80]!r} of yours. "
        "Send the conversation so far in 'input', or name a 'conversation'."
    )
    missing.param = param
    row = next(journal.rows(limit=1, request_id=response_id.removeprefix("resp_")), None)
    if row is None or (row["requester"], row["requester_kind"]) != (caller.name, caller.kind) or row["parent_request_id"]:
        raise missing
    request, response = _json(row["request"]), _json(row["response"])
    if request.get("store") is False or response.get("object") != "response" or response.get("id") != response_id:
        raise missing
    given = request.get("input") or []
    items = [*given, *(item for each in response.get("output") or () if (item := as_input(each)))]
    return Previous(response, items, row["thread_id"], len(given))


def _json(text: str | None) -> dict[str, Any]:
    body = orjson.loads(text) if text else None
    return body if isinstance(body, dict) else {}


def as_input(output: Mapping[str, Any]) -> dict[str, Any] | None:
    """An item of an answer as an item of what is asked next; None for what is not said again."""
    if output.get("type") == "message":
        text = "".join(part.get("text") or part.get("refusal") or "" for part in output.get("content") or ())
        return {"type": "message", "role": "assistant", "content": text}
    if output.get("type") == "function_call":
        return {key: output[key] for key in ("type", "call_id", "name", "arguments")}
    if output.get("type") == "function_call_output":
        return {key: output[key] for key in ("type", "call_id", "output")}
    return None
