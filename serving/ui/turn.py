"""One question and its answer: Responses events in, what the page shows out. Knows no page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from governance.call import STEP, CallError, Event
from serving.ui.document import document_url

if TYPE_CHECKING:
    from serving.ui.services import ThreadMessage

Status = Literal["running", "completed", "stopped", "failed"]
_MARKER = re.compile(r"\[(\d{1,3})\]")


@dataclass(frozen=True, slots=True)
class Source:
    """What a citation points to. `url` is a local path or an http(s) address."""

    number: int
    title: str
    url: str
    quote: str = ""
    source: str = ""
    heading: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One line of "how this was answered". `offset_ms` counts from the first step's start."""

    name: str
    kind: str
    detail: str
    offset_ms: float
    ms: float
    failed: bool = False
    given: str = ""
    """What went in, as JSON; "" for nothing."""
    gave: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """What an answer waits for: whether a tool may be called, or a person's reply."""

    id: str
    name: str
    arguments: Mapping[str, Any]

    @property
    def approval(self) -> bool:
        return self.id.startswith("mcpr_")

    def answer(self, *, approve: bool, text: str = "") -> dict[str, Any]:
        """The item that decides. `text`: edited arguments of a call that is approved, why it is not, or the reply."""
        if not self.approval:
            return {"type": "function_call_output", "call_id": self.id, "output": text}
        item = {"type": "mcp_approval_response", "approval_request_id": self.id, "approve": approve}
        return item | ({"arguments": text} if approve and text else {"reason": text} if text else {})


@dataclass(slots=True)
class Turn:
    """An answer as far as it has come."""

    request_id: str | None = None
    text: str = ""
    sources: dict[int, Source] = field(default_factory=dict)
    status: Status = "running"
    error: str = ""
    mode: str = ""
    route: str = ""
    confidence: float | None = None
    abstained: bool = False
    asks: list[Ask] = field(default_factory=list)
    _steps: list[Mapping[str, Any]] = field(default_factory=list)

    def apply(self, event: Event) -> bool:
        """Take in one event; whether the answer's text or sources changed."""
        kind, data = event.type, event.data
        if kind == "response.output_text.delta":
            self.text += str(data.get("delta", ""))
            return True
        if kind == "response.output_text.annotation.added":
            return self._annotate(data.get("annotation") or {})
        if kind == STEP:
            self._steps.append(data)
        elif event.terminal:
            self.finish(data.get("response") or {})
            return True
        return False

    def finish(self, response: Mapping[str, Any]) -> None:
        """Take in the Response object that ends the answer, or that was kept with it."""
        outputs = response.get("custom_outputs") or {}
        content = [
            part for item in response.get("output") or () for part in item.get("content") or () if isinstance(part, Mapping)
        ]
        if text := "".join(str(part.get("text", "")) for part in content if part.get("type") == "output_text"):
            self.text = text
        for part in content:
            for annotation in part.get("annotations") or ():
                self._annotate(annotation)
        for citation in outputs.get("citations") or ():
            self._cite(citation)
        metadata = response.get("metadata") or {}
        self.mode = str(outputs.get("mode") or metadata.get("mode") or "")
        self.abstained = bool(outputs.get("abstained", str(metadata.get("abstained", "")).lower() == "true"))
        route = outputs.get("route") or metadata.get("route") or {}
        if isinstance(route, Mapping):
            self.route, self.confidence = str(route.get("label") or ""), _number(route.get("confidence"))
        else:
            self.route = str(route)
        for ask in outputs.get("waiting") or ():
            self.asks.append(Ask(str(ask["id"]), str(ask["name"]), ask.get("arguments") or {}))
        self._steps.extend(outputs.get("steps") or () if not self._steps else ())
        status = response.get("status", "completed")
        if status == "cancelled":
            self.status = "stopped"
        elif status in ("failed", "incomplete"):
            self.status = "failed"
            problem = response.get("error") or response.get("incomplete_details") or {}
            self.error = str(problem.get("message") or problem.get("reason") or "The answer ended early.")
        else:
            self.status = "completed"

    @classmethod
    def stored(cls, message: ThreadMessage) -> Turn:
        """An answer as a thread kept it."""
        turn = cls(message.request_id)
        turn.finish(message.response or {})
        turn.text = turn.text or message.text
        return turn

    def fail(self, error: BaseException) -> None:
        """The call ended with an error before its last event."""
        self.status = "failed"
        if not isinstance(error, CallError):
            self.error = "Something went wrong here. Try again; the server's log has the details."
            return
        self.error = error.message
        if error.status == 429 and error.retry_after:
            self.error += f" Try again in {max(1, round(error.retry_after))} s."

    @property
    def steps(self) -> list[Step]:
        """What was done, in order of start."""
        rows = sorted(self._steps, key=lambda row: row.get("start_ns") or 0)
        begin = next((row["start_ns"] for row in rows if row.get("start_ns")), 0)
        return [_step(row, begin) for row in rows]

    @property
    def badge(self) -> str:
        """In two or three words, how the answer came to be."""
        if self.abstained:
            return "Not in these documents"
        names = {"extractive": "Quoted from documents", "generative": "Written by a model", "canned": "Standard reply"}
        return names.get(self.mode, self.mode.capitalize() if self.mode else "Answer")

    def _cite(self, citation: Mapping[str, Any]) -> None:
        number = citation.get("number")
        if not isinstance(number, int):
            return
        start, end = citation.get("start"), citation.get("end")
        known = self.sources.get(number)
        index, document_id = citation.get("index"), citation.get("document_id")
        url = document_url(str(index), str(document_id), start, end) if index and document_id else (known.url if known else "")
        if url:
            heading = citation.get("heading") or ()
            title = str(citation.get("title") or citation.get("source") or f"Source {number}")
            quote, source = str(citation.get("quote") or ""), str(citation.get("source") or "")
            self.sources[number] = Source(number, title, url, quote, source, tuple(map(str, heading)))

    def _annotate(self, annotation: Mapping[str, Any]) -> bool:
        """A `url_citation`: its number stands in the text it spans, or is the next one free."""
        url = local_url(str(annotation.get("url") or ""))
        if not url:
            return False
        marker = _MARKER.search(self.text[annotation.get("start_index") or 0 : annotation.get("end_index") or 0])
        number = int(marker[1]) if marker else next((n for n, s in self.sources.items() if s.url == url), len(self.sources) + 1)
        known = self.sources.get(number)
        if known and known.quote:
            return False
        quote = str(annotation.get("quote") or "")
        self.sources[number] = Source(number, str(annotation.get("title") or f"Source {number}"), url, quote)
        return True


def local_url(url: str) -> str:
    """A citation's address as the page links it: our own documents by path, other http(s) addresses as they are, else nothing."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if parts.path.startswith("/documents/") and parts.scheme in ("", "http", "https"):
        return parts.path + (f"?{parts.query}" if parts.query else "")
    return url if parts.scheme in ("http", "https") and parts.netloc else ""


def sureness(confidence: float) -> str:
    """A confidence in words; never all of it."""
    return "over 99% sure" if confidence > 0.99 else f"{confidence:.0%} sure"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _step(row: Mapping[str, Any], begin: int) -> Step:
    start, end = row.get("start_ns") or begin, row.get("end_ns") or row.get("start_ns") or begin
    attributes = row.get("attributes") or {}
    parts: list[str] = []
    if label := attributes.get("label"):
        confidence = _number(attributes.get("confidence"))
        parts.append(str(label) if confidence is None else f"{label}, {sureness(confidence)}")
    outputs = row.get("outputs")
    passages = outputs.get("passages", outputs.get("documents")) if isinstance(outputs, Mapping) else outputs
    if row.get("kind") == "retrieval" and isinstance(passages, Sequence) and not isinstance(passages, str):
        parts.append(f"{len(passages)} passage{'' if len(passages) == 1 else 's'}")
    parts += [str(value) for key in ("model", "mode", "tool") if (value := attributes.get(key))]
    failed = str(row.get("status", "ok")).lower() in ("error", "failed")
    name = str(row.get("name") or row.get("kind") or "step")
    return Step(
        name,
        str(row.get("kind") or ""),
        " · ".join(parts),
        (start - begin) / 1e6,
        max(0.0, (end - start) / 1e6),
        failed,
        _json(row.get("inputs")),
        _json(outputs),
    )


def _json(value: Any, most: int = 4000) -> str:
    if value in (None, "", {}, []):
        return ""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return text if len(text) <= most else f"{text[:most]} …"
