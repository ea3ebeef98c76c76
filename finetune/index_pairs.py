"""An index's own pairs of questions and passages, for `embed` and `rerank`: what was asked of it, and its headings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.rows import normal

SHORT = 40
"""Characters under which a passage says too little to be found by its heading."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """A passage of an index."""

    id: str
    text: str
    title: str
    heading: tuple[str, ...]


def scanned(rows: Iterable[Mapping[str, Any]]) -> Iterator[Indexed]:
    """Passages as the scan of an index gives them."""
    for row in rows:
        fields = {field["key"]: field["value"] for field in row["fields"]}
        words = (fields.get("heading") or {}).get("list_value") or {}
        heading = tuple(str(each.get("string_value") or "") for each in words.get("values") or ())
        plain = {key: str((fields.get(key) or {}).get("string_value") or "") for key in ("id", "text", "title")}
        yield Indexed(plain["id"], plain["text"], plain["title"], heading)


def asked(calls: Iterable[Mapping[str, Any]], index: str, disliked: Collection[str]) -> Iterator[tuple[str, str]]:
    """Questions with the passages that their answers cite, of calls that succeeded and that nobody found bad."""
    for call in calls:
        if call["status_code"] != 200 or call["databricks_request_id"] in disliked:
            continue
        try:
            request, response = json.loads(call["request"] or "{}"), json.loads(call["response"] or "{}")
            cited = (response.get("custom_outputs") or {}).get("citations") or ()
            question = _question(request.get("input") or request.get("messages"))
        except (ValueError, AttributeError):
            continue
        for citation in cited if question else ():
            if citation.get("index") == index:
                yield question, str(citation.get("passage_id"))


def pairs_of(passages: Sequence[Indexed], questions: Iterable[tuple[str, str]], *, headings: bool = True) -> list[dict[str, str]]:
    """Rows of `query` and `positive`: questions that were asked first, then headings; each once."""
    by_id = {passage.id: passage for passage in passages}
    found = [(question, by_id[passage].text) for question, passage in questions if passage in by_id]
    if headings:
        found += [(_heading(each), each.text) for each in passages if len(each.text) >= SHORT and _heading(each)]
    unique = {(normal(query), normal(text)): (query, text) for query, text in reversed(found)}
    return [{"query": query, "positive": text} for query, text in reversed(unique.values())]


def split(rows: Sequence[Mapping[str, str]], share: float) -> tuple[list[Mapping[str, str]], list[Mapping[str, str]]]:
    """Rows to train on and to judge on: the question decides, so that none is in both, also once more were asked."""

    def held_out(row: Mapping[str, str]) -> bool:
        return int(hashlib.sha256(normal(row["query"]).encode()).hexdigest()[:8], 16) / 2**32 < share

    return [row for row in rows if not held_out(row)], [row for row in rows if held_out(row)]


def every_row(page: Callable[[str | None], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """All rows of a scan, page by page; `page(last_primary_key)` asks for one."""
    last: str | None = None
    while rows := (answer := page(last)).get("data"):
        yield from rows
        if (after := answer.get("last_primary_key")) in (None, last):
            return
        last = after


def _question(given: Any) -> str:
    """The last thing the user said."""
    if isinstance(given, str):
        return given.strip()
    for message in reversed(given or ()):
        if isinstance(message, Mapping) and message.get("role") == "user":
            content: Any = message.get("content")
            parts = [content] if isinstance(content, str) else [str(part.get("text") or "") for part in content or ()]
            return " ".join(parts).strip()
    return ""


def _heading(passage: Indexed) -> str:
    """The headings above a passage, from the title on, each once."""
    words = dict.fromkeys(word for word in (passage.title, *passage.heading) if word)
    return " ".join(words) if len(words) > 1 else ""
