"""An answer on its way out: its events, with nothing forbidden in any of them.

Text leaves with the delay that is needed to see where its last word ends; the arguments of a tool call leave when they are
complete, because what JSON escapes can only be read then. Events that say something about a text wait until it has left, and a
model's own chunks that are no texts until the last has come: only then can be told what they say together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_not
from typing import Any

from governance.call import CHUNK, STEP, TERMINAL, Call, Event
from governance.guardrails import pieces
from governance.guardrails.pii import Finding, distinct
from governance.guardrails.rules import Hold, Rules, mask, moved
from governance.guardrails.said import lead
from governance.guardrails.texts import (
    FREE,
    LARGE,
    OBJECT,
    PROTOCOL,
    ROWS,
    STRUCTURE,
    json_text,
    named,
    number,
    strings_of,
    telling,
    told,
    vector,
    walk,
    word,
)

_TEXT, _TEXT_DONE = "response.output_text.delta", "response.output_text.done"
_ARGUMENTS = "response.function_call_arguments."
_ENDING = ("done", "added")
_GENERATED = ("output", "custom_outputs", "error", "output_text")
_OF_TEXT = ("text", "type", "annotations")
_ADDRESSES = STRUCTURE | {"item_id", "name"}
_PLACES = frozenset({"document_id", "passage_id", "trace_id", "thread_id", "index"})


def said_in(events: Sequence[Event]) -> list[str]:
    """Every text of an answer, those that came in pieces as a whole."""
    deltas: dict[tuple[Any, ...], list[str]] = {}
    texts: list[str] = []
    for event in events:
        if event.type.endswith(".delta") and isinstance(event.data.get("delta"), str):
            deltas.setdefault(_place(event), []).append(event.data["delta"])
        else:
            texts += strings_of(event.data)
    chunks = [event.data["delta"] for event in events if event.type == CHUNK]
    return [*texts, *pieces.joined(chunks), *("".join(parts) for parts in deltas.values())]


def _place(event: Event) -> tuple[Any, ...]:
    """Which text of an answer a piece belongs to."""
    data = event.data
    return event.type, data.get("output_index"), data.get("content_index"), data.get("summary_index")


class Shield:
    """Feeds on an engine's events and gives those that may leave; raises `Blocked`."""

    def __init__(self, rules: Rules, call: Call) -> None:
        self.rules = rules
        self._call = call
        self._holds: dict[tuple[Any, ...], tuple[Hold, Event]] = {}
        self._arguments: dict[Any, tuple[list[str], Event]] = {}
        self._waiting: list[tuple[Hold, int, Event]] = []
        self._texts: list[Hold] = []
        self._tokens: dict[int, list[tuple[int, int, list[Any]]]] = {}
        self._other: list[Finding] = []
        self._response: Mapping[str, Any] = {}
        self._said: list[str] = []
        self._called: list[str] = []
        self._output: Sequence[Any] = ()
        self._in_chunks, self._chunks = False, list[Any]()
        self._ended_by: list[Event] = []  # the end of a text whose last word is held, and what came after it
        self._before, self._across = "", dict[int, list[Finding]]()

    @property
    def found(self) -> Sequence[Finding]:
        """What was masked: in the text and the arguments, or, where there was none, elsewhere in the answer."""
        found = [each for hold in self._texts for each in hold.found] if self._texts else []
        return found or self._other

    @property
    def sent(self) -> str:
        """The answer's text so far, as it leaves."""
        if self._said:
            return "".join(self._said)
        items = [item for item in self._output if isinstance(item, OBJECT)]  # of an answer that came whole
        parts = [part for item in items for part in item.get("content") or () if isinstance(part, OBJECT)]
        return "".join(part.get("text") or "" for part in parts)

    @property
    def arguments(self) -> Sequence[str]:
        """The arguments of the tool calls so far, as they leave."""
        items = [item for item in self._output if isinstance(item, OBJECT)]
        return self._called or [item["arguments"] for item in items if isinstance(item.get("arguments"), str)]

    def feed(self, event: Event) -> list[Event]:
        """What may leave now that this event has come."""
        kind, data = event.type, event.data
        if self._ended_by and kind != STEP:
            return self._after(event)
        if kind in TERMINAL:
            early = [*self._flush(), *self._chunked()] if self._holds or self._waiting or self._chunks else ()
            return [*early, self._ended(event)]
        if kind == STEP:
            masked = walk(data, self._masked, frozenset({"name", "kind", "status"})) if self.rules.pii != "NONE" else data
            return [Event(kind, masked)]
        if kind in ("response.created", "response.in_progress", "response.queued"):
            self._response = data.get("response") or {}
            return [event]
        if kind.startswith(_ARGUMENTS):
            return self._argument(event)
        if kind == CHUNK:
            self._in_chunks = True
            if self._chunks or not isinstance(data["delta"], str):
                self._chunks.append(data["delta"])
                return []
        if kind.endswith(".delta") and isinstance(data.get("delta"), str):
            return self._delta(event)
        if kind.endswith("annotation.added"):
            return self._annotation(event)
        if kind == _TEXT_DONE and any(hold.gone < hold.arrived for hold, _ in self._holds.values()):
            self._ended_by = [event]
            return []
        ready = self._flush() if kind.rpartition(".")[2] in _ENDING else []
        shown = Event(kind, self._guarded(data))
        if self._waiting or any(hold.gone < hold.arrived for hold, _ in self._holds.values()):
            hold = next(iter(self._holds.values()))[0]
            self._waiting.append((hold, hold.arrived, shown))
            return ready
        return [*ready, shown]

    def _ended(self, event: Event) -> Event:
        """The terminal event as it may leave."""
        body = "result" if event.type == "result" else "response"
        inner = event.data.get(body, event.data)
        if self._call.task in ROWS:
            if self._in_chunks:  # which it has once more
                self._other = []
                inner = {**inner, "predictions": pieces.masked(inner["predictions"], self._found)}
            looked = walk(inner, self._checked, frozenset(), numbers=True)
        elif (looked := self._body(inner)) is inner:
            return event
        return Event(event.type, {**event.data, body: looked} if body in event.data else looked)

    def said(self, ready: Sequence[Event]) -> list[str]:
        """The texts of a result and of what comes with it, those that came in pieces as a whole."""
        result = ready[-1].data.get("result") if self._in_chunks else None
        whole = pieces.joined(result["predictions"]) if result else []
        return [*whole, *strings_of([each.data for each in ready])]

    def stopped(self, sent: str) -> Event:
        """The terminal event of an answer that a guardrail stopped after `sent`."""
        content = [{"type": "output_text", "text": sent, "annotations": [], "logprobs": []}]
        message = {
            "type": "message",
            "id": f"msg_{self._call.request_id}_0",
            "role": "assistant",
            "status": "incomplete",
            "content": content,
        }
        base = {"id": f"resp_{self._call.request_id}", "object": "response", "model": self._call.endpoint, "metadata": {}}
        details = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": [message]}
        return Event("response.incomplete", {"response": {**base, **self._response, **details}})

    # --- within ---

    def _after(self, event: Event) -> list[Event]:
        """An event behind the end of a text. Texts of one answer are read one after the other, so the last word of one waits for
        the first of the next, or for the end."""
        self._ended_by.append(event)
        if event.type not in TERMINAL and event.type != _TEXT:
            return []
        after = "".join(
            each.data["delta"] for each in self._ended_by if each.type == _TEXT and isinstance(each.data["delta"], str)
        )
        holds = [hold for (kind, *_), (hold, _) in self._holds.items() if kind == _TEXT]
        if event.type not in TERMINAL and any(hold.goes_on(after) for hold in holds):
            return []
        told, waited, self._ended_by = self._flush(after), self._ended_by, []
        return [*told, *(each for one in waited for each in self.feed(one))]

    def _delta(self, event: Event) -> list[Event]:
        key = _place(event)
        hold = self._holds[key][0] if key in self._holds else self._new(self._before if event.type == _TEXT else "")
        self._holds[key] = (hold, event)
        if event.data.get("logprobs"):
            end = hold.arrived + len(event.data["delta"])
            self._tokens.setdefault(id(hold), []).append((hold.arrived, end, event.data["logprobs"]))
        return self._told(event, hold, hold.push(event.data["delta"]))

    def _told(self, event: Event, hold: Hold, text: str) -> list[Event]:
        told: list[Event] = []
        if text:
            if event.type == _TEXT:
                self._said.append(text)
            if self._tokens:
                told.append(Event(event.type, {**event.data, "delta": text, "logprobs": self._left(hold)}))
            else:
                told.append(event if text == event.data["delta"] else Event(event.type, {**event.data, "delta": text}))
        while self._waiting and self._waiting[0][0].gone >= self._waiting[0][1]:
            of, _, waiting = self._waiting.pop(0)
            told.append(Event(waiting.type, self._moved(waiting.data, of.found)))
        return told

    def _left(self, hold: Hold) -> list[Any]:
        """The tokens whose text has left as it was, which have not left yet."""
        left: list[Any] = []
        waiting = self._tokens.get(id(hold), [])
        while waiting and waiting[0][1] <= hold.gone:
            begin, end, tokens = waiting.pop(0)
            if not any(each.start < end and begin < each.end for each in hold.found):
                left += tokens
        return left

    def _flush(self, after: str = "") -> list[Event]:
        """The texts that were open are complete; `after` is how the answer goes on."""
        told: list[Event] = []
        for hold, event in self._holds.values():
            if event.type == _TEXT:
                self._before = hold.tail
                told += self._told(event, hold, hold.end(after))
            else:
                told += self._told(event, hold, hold.end())
        told += [Event(event.type, self._moved(event.data, hold.found)) for hold, _, event in self._waiting]
        self._holds.clear()
        self._waiting.clear()
        return told

    def _new(self, before: str = "") -> Hold:
        hold = Hold(self.rules, before)
        self._texts.append(hold)
        return hold

    def _annotation(self, event: Event) -> list[Event]:
        shown = Event(event.type, self._guarded(event.data))
        hold = next((hold for (kind, *_), (hold, _) in self._holds.items() if kind == "response.output_text.delta"), None)
        if hold is None:
            return [shown]
        if hold.gone < hold.arrived or self._waiting:
            self._waiting.append((hold, hold.arrived, shown))
            return []
        return [Event(shown.type, self._moved(shown.data, hold.found))]

    def _chunked(self) -> list[Event]:
        """The chunks that waited."""
        shown = pieces.masked(self._chunks, self._found)
        return [Event(CHUNK, {"delta": walk(chunk, self._checked, frozenset(), numbers=True)}) for chunk in shown]

    def _found(self, text: str) -> Sequence[Finding]:
        """What is to be masked in a text. Raises `Blocked`."""
        found = self._found_in(text)
        if found and (refused := self.rules.blocking(found)):
            raise refused
        self._other += found
        return found

    def _argument(self, event: Event) -> list[Event]:
        place = event.data.get("output_index")
        if event.type.endswith("delta"):
            self._arguments.setdefault(place, ([], event))[0].append(str(event.data.get("delta") or ""))
            return []
        parts, first = self._arguments.pop(place, ([], event))
        found = len(self._other)
        whole = json_text(str(event.data.get("arguments", "".join(parts))), self._checked)
        self._called.append(whole)
        hold = self._new()
        hold.found = self._other[found:]
        del self._other[found:]
        told = [Event(first.type, {**first.data, "delta": whole})] if parts else []
        return [*self._flush(), *told, Event(event.type, {**event.data, "arguments": whole})]

    def _found_in(self, text: str) -> list[Finding]:
        """What is forbidden in a text, which may be one that has left in pieces already."""
        for hold in reversed(self._texts):
            if hold.arrived == len(text) and hold.gone == hold.arrived and hold.text == text:
                return hold.found
        return self.rules.find(text)

    def _checked(self, text: str) -> str:
        """For texts that go to the client: refused or masked."""
        if not text:
            return text
        found = self._found(text)
        return mask(text, found) if found else text

    def _masked(self, text: str) -> str:
        """For what only traces show."""
        return mask(text, self.rules.find(text))

    def _guarded(self, value: Any) -> Any:
        """A body of an event: its texts checked, and annotations at the places where their words now are. What is as it was is
        the same object."""
        if isinstance(value, str):
            return self._checked(value)
        if isinstance(value, (list, tuple)):
            if vector(value):
                return value
            items = [self._guarded(item) for item in value]
            return items if any(map(is_not, items, value)) else value
        if isinstance(value, OBJECT):
            if value.get("type") == "output_text":
                if isinstance(text := value.get("text"), str):
                    return self._part(value)
                if text:
                    raise TypeError("a text that is none")
            made: dict[Any, Any] = {}
            for key, item in value.items():
                if not item:
                    continue
                if key not in PROTOCOL and telling(key, item):
                    looked = told(lead(key), item, self._checked)
                elif not isinstance(item, str):
                    looked = self._guarded(item) if key not in FREE or not isinstance(item, OBJECT) else self._free(item)
                elif key == "arguments":
                    looked = json_text(item, self._checked)
                elif key not in _PLACES and not (key in _ADDRESSES and named(item)):
                    looked = self._checked(item)
                else:
                    continue
                if looked is not item:
                    made[key] = looked
            if "text" in made and value.get("logprobs"):
                made["logprobs"] = []
            masked = {**value, **made} if made else value
            if value.keys() <= PROTOCOL or all(map(word, value)):
                return masked
            return {key if word(key) else self._checked(key): item for key, item in masked.items()}
        return number(value, self._checked) if type(value) is int and value >= LARGE else value

    def _free(self, value: Mapping[str, Any]) -> Any:
        """The same for an object in which no key is the protocol's."""
        looked = walk(value, self._checked, frozenset())
        return value if looked == value else looked

    def _part(self, part: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same for a text with its annotations."""
        found = self._found_in(part["text"])
        if across := self._across.get(id(part)):
            found = distinct([*found, *across])
        if found and (refused := self.rules.blocking(found)):
            raise refused
        made = {key: self._guarded(item) for key, item in part.items() if item and key not in _OF_TEXT}
        if notes := part.get("annotations"):
            made["annotations"] = [self._moved(self._guarded(note), found) for note in notes]
        if found:
            self._other += found
            made["text"] = mask(part["text"], found)
            if part.get("logprobs"):
                made["logprobs"] = []  # their tokens are what was masked
        return {**part, **made} if made else part

    def _body(self, body: Any) -> Any:
        """The terminal body: of a response what was generated (the rest is the request's own), of a result all."""
        if not isinstance(body, OBJECT) or (body.get("object") != "response" and "output" not in body):
            return self._guarded(body)
        made: dict[str, Any] = {}
        self._across = pieces.across(body.get("output") or (), self.rules.find)
        for key in _GENERATED:
            item = body.get(key)
            if item and (looked := self._guarded(item)) is not item:
                made[key] = looked
        if self._texts and self._texts[0].found:
            custom = made.get("custom_outputs", body.get("custom_outputs"))
            if isinstance(custom, OBJECT) and (citations := custom.get("citations")):
                shifted = [self._moved(each, self._texts[0].found, "text_start", "text_end") for each in citations]
                made["custom_outputs"] = {**custom, "citations": shifted}
        self._output = made.get("output", body.get("output")) or ()
        return {**body, **made} if made else body

    @staticmethod
    def _moved(data: Any, found: Sequence[Finding], begin: str = "start_index", end: str = "end_index") -> Any:
        if not found or not isinstance(data, Mapping):
            return data
        if isinstance(data.get("annotation"), Mapping):
            return {**data, "annotation": Shield._moved(data["annotation"], found)}
        if isinstance(data.get(begin), int) and isinstance(data.get(end), int):
            return {**data, begin: moved(data[begin], found), end: moved(data[end], found)}
        return data
