"""Builds the Responses event sequence of one answer, in the order OpenAI's API sends it.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from governance.call import Call, Event

_UNASKED: Mapping[str, Any] = dict.fromkeys(
    ("instructions", "max_output_tokens", "previous_response_id", "conversation", "temperature", "top_p", "user", "reasoning")
)
"""Fields of the request that its response says again, as they are where it has none."""

_PIECE = 1_000  # characters of a text that are told at a time where nobody follows it


class Answer:
    """One answer being written: call `start`, then text, annotations and tool calls in any order, then `finish` once.

    Parameters
    ----------
    call: the call it answers; the response's id is `resp_` and the call's request id.
    model: what the response names as its model; the endpoint by default.
    whole: nobody follows it while it grows, so that little is told before its end: that it has begun, and its text in long
        pieces.
    """

    def __init__(self, call: Call, *, model: str | None = None, whole: bool = False) -> None:
        payload = call.payload
        self.id = f"resp_{call.request_id}"
        self._done = ""
        self._call_id = call.request_id
        self._output: list[dict[str, Any]] = []
        self._parts: list[str] = []
        self._annotations: list[Mapping[str, Any]] = []
        self._logprobs: list[Mapping[str, Any]] = []
        self._whole, self._told, self._untold = whole, 0, 0  # parts that were told, and characters that were not
        self._alternatives: int = payload.get("top_logprobs") or 0
        self._open: dict[str, Any] | None = None
        self._delta: dict[str, Any] = {}
        self._response: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": bool(payload.get("background")),
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "model": model or call.endpoint,
            "output": [],
            "parallel_tool_calls": payload.get("parallel_tool_calls", True),
            "text": payload.get("text") or {"format": {"type": "text"}},
            "tool_choice": payload.get("tool_choice") or "auto",
            "tools": payload.get("tools") or [],
            "truncation": payload.get("truncation") or "disabled",
            "metadata": payload.get("metadata") or {},
            "usage": None,
            "store": payload.get("store", True),
            **_UNASKED,
            **{key: value for key, value in payload.items() if key in _UNASKED},
        }

    @property
    def written(self) -> str:
        """The text of the answer so far."""
        return self._done + ("".join(self._parts) if self._open and self._open["type"] == "message" else "")

    def start(self) -> list[Event]:
        created = Event("response.created", {"response": dict(self._response)})
        return [created] if self._whole else [created, Event("response.in_progress", {"response": dict(self._response)})]

    def write(self, delta: str, logprobs: Sequence[Mapping[str, Any]] | None = None) -> list[Event]:
        """Text of the answer, and the log probabilities of its tokens; opens the message where none is open.

        Raises `TypeError` for what an upstream sent in place of a text.
        """
        if not delta and not logprobs:
            return []
        if not isinstance(delta, str):
            raise TypeError("no text")
        events = self._open_message() if self._open is None or self._open["type"] != "message" else []
        self._parts.append(delta)
        if logprobs:
            if any(len(each.get("top_logprobs") or ()) > self._alternatives for each in logprobs):  # llama.cpp tells all it has
                logprobs = [{**each, "top_logprobs": each["top_logprobs"][: self._alternatives]} for each in logprobs]
            self._logprobs += logprobs
        if self._whole:
            self._untold += len(delta)
            return self.rest() if not self._told or self._untold >= _PIECE else []
        told = {**self._delta, "delta": delta, "logprobs": logprobs} if logprobs else {**self._delta, "delta": delta}
        events.append(Event("response.output_text.delta", told))
        return events

    def rest(self) -> list[Event]:
        """The text that was not told yet, of an answer that is given whole."""
        text = "".join(self._parts[self._told :]) if self._whole and self._open and self._open["type"] == "message" else ""
        self._told, self._untold = len(self._parts), 0
        return [Event("response.output_text.delta", {**self._delta, "delta": text})] if text else []

    def annotate(self, annotation: Mapping[str, Any]) -> list[Event]:
        """An annotation of the text written so far."""
        events = self._open_message() if self._open is None or self._open["type"] != "message" else []
        place = {key: self._delta[key] for key in ("item_id", "output_index", "content_index")}
        told = {**place, "annotation_index": len(self._annotations), "annotation": annotation}
        self._annotations.append(annotation)
        return [] if self._whole else [*events, Event("response.output_text.annotation.added", told)]

    def call_tool(self, call_id: str, name: str) -> list[Event]:
        """Begin a call of a client's function; its arguments follow by `arguments`."""
        events = self._close()
        position = len(self._output)
        self._open = {
            "type": "function_call",
            "id": f"fc_{self._call_id}_{position}",
            "call_id": call_id,
            "name": name,
            "arguments": "",
            "status": "in_progress",
        }
        self._parts = []
        if not self._whole:
            events.append(Event("response.output_item.added", {"output_index": position, "item": dict(self._open)}))
        return events

    def arguments(self, delta: str) -> list[Event]:
        """More of the open function call's arguments (JSON text)."""
        if not delta or self._open is None:
            return []
        self._parts.append(delta)
        place = {"item_id": self._open["id"], "output_index": len(self._output)}
        return [] if self._whole else [Event("response.function_call_arguments.delta", {**place, "delta": delta})]

    def item(self, item: Mapping[str, Any]) -> list[Event]:
        """A whole output item, as `mcp_approval_request`."""
        events = self._close()
        told = {"output_index": len(self._output), "item": dict(item)}
        self._output.append(dict(item))
        if not self._whole:
            events += [Event("response.output_item.added", told), Event("response.output_item.done", told)]
        return events

    def ended(self, status: str, error: Mapping[str, str] | None = None) -> Event:
        """The end of an answer that was not finished: `cancelled` or `failed`, with what was written by then."""
        self._close("incomplete")
        response = {**self._response, "status": status, "output": self._output, "error": dict(error) if error else None}
        return Event("response.failed" if error else "response.incomplete", {"response": response})

    def finish(
        self,
        *,
        usage: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
        custom_outputs: Mapping[str, Any] | None = None,
        incomplete: str | None = None,
    ) -> list[Event]:
        """Close what is open and end the answer.

        Parameters
        ----------
        usage: `input_tokens` and `output_tokens`.
        metadata: added to the request's metadata.
        custom_outputs: as MLflow's `ResponsesAgentResponse` carries them.
        incomplete: `max_output_tokens` or `content_filter`, where the answer stopped short.
        """
        status = "incomplete" if incomplete else "completed"
        events = self._open_message() if not self._output and self._open is None else []
        events += self._close(status)
        response = {
            **self._response,
            "status": status,
            "completed_at": None if incomplete else int(time.time()),
            "incomplete_details": {"reason": incomplete} if incomplete else None,
            "output": self._output,
            "metadata": {**self._response["metadata"], **(metadata or {})},
            "usage": usage_body(usage or {}),
        }
        if custom_outputs is not None:
            response["custom_outputs"] = custom_outputs
        return [*events, Event(f"response.{status}", {"response": response})]

    def _open_message(self) -> list[Event]:
        events = self._close()
        position = len(self._output)
        item = {
            "type": "message",
            "id": f"msg_{self._call_id}_{position}",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        self._open, self._parts, self._annotations, self._logprobs = item, [], [], []
        self._told = self._untold = 0
        self._delta = {"item_id": item["id"], "output_index": position, "content_index": 0, "logprobs": []}
        if not self._whole:
            place = {"item_id": item["id"], "output_index": position, "content_index": 0}
            events.append(Event("response.output_item.added", {"output_index": position, "item": item}))
            events.append(Event("response.content_part.added", {**place, "part": _part("", [], [])}))
        return events

    def _close(self, status: str = "completed") -> list[Event]:
        if self._open is None:
            return []
        position, text = len(self._output), "".join(self._parts)
        place = {"item_id": self._open["id"], "output_index": position}
        if self._open["type"] == "message":
            self._done += text
            part = _part(text, self._annotations, self._logprobs)
            item = {**self._open, "status": status, "content": [part]}
            if self._whole:
                events = self.rest()
            else:
                done = {**place, "content_index": 0, "text": text, "logprobs": self._logprobs}
                events = [
                    Event("response.output_text.done", done),
                    Event("response.content_part.done", {**place, "content_index": 0, "part": part}),
                ]
        else:
            done = {**place, "name": self._open["name"], "arguments": text}
            events = [] if self._whole else [Event("response.function_call_arguments.done", done)]
            item = {**self._open, "status": status, "arguments": text}
        self._open = None
        self._output.append(item)
        return events if self._whole else [*events, Event("response.output_item.done", {"output_index": position, "item": item})]


def _part(text: str, annotations: list[Mapping[str, Any]], logprobs: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": logprobs}


def usage_body(usage: Mapping[str, int]) -> dict[str, Any]:
    """Token counts as the Responses API writes them."""
    read, written = int(usage.get("input_tokens", 0)), int(usage.get("output_tokens", 0))
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": int(usage.get("cached_tokens", 0)), "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": int(usage.get("reasoning_tokens", 0))},
        "total_tokens": read + written,
    }
