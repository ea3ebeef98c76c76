"""The reader: answers by quoting the best-supported sentences, or says that the documents do not hold the answer."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from agents.state import NOT_FOUND, Citation, Embed, Reader, Reading
from agents.support import Candidate, Models, Question, candidates, models, parts_of, probability, question_values
from agents.text import Unit, terms, units
from agents.topic import opening, topic_of
from retrieval.types import Passage

SHORTLIST = 6
"""Sentences that are embedded for one answer: embedding them is most of what an answer costs."""
EMBEDDED = 240
"""Characters of a sentence that are embedded."""
MAX_QUOTES = 3


def make_reader(embed: Embed | None = None, *, threshold: float | None = None, max_quotes: int = MAX_QUOTES) -> Reader:
    """An extractive reader.

    Parameters
    ----------
    embed: sentence embeddings; without, sentences are compared by their words alone.
    threshold: probability of being answerable under which it abstains; None takes the calibrated one.
    max_quotes: sentences an answer may quote.
    """

    async def read(question: str, passages: Sequence[Passage], *, context: str = "") -> Reading:
        fitted = models()
        topic = "" if context else topic_of(question)
        if topic and (found := opening(topic, passages, max_quotes)):
            text, citations = write(_opening(Question.of(topic), *found))
            return Reading(text, tuple(citations), support=1.0)
        asked = Question.of(topic or question, context)
        ranked = await rank(asked, passages, embed, fitted)
        if not ranked:
            return Reading(NOT_FOUND, abstained=True)
        support = probability(fitted.answerable(question_values(asked, passages, ranked)))
        if support < (fitted.threshold if threshold is None else threshold):
            return Reading(NOT_FOUND, abstained=True, support=support)
        text, citations = write(select(asked, ranked, max_quotes))
        return Reading(text, tuple(citations), support=support)

    return read


async def rank(question: Question, passages: Sequence[Passage], embed: Embed | None, fitted: Models) -> list[Candidate]:
    """The short-listed sentences, best first."""
    short = candidates(question, passages)[:SHORTLIST]
    if embed is not None and short:
        vectors = await embed([question.asked, *(c.text[:EMBEDDED] for c in short)])
        for candidate, cosine in zip(short, vectors[1:] @ vectors[0], strict=True):
            candidate.values["cos"] = float(cosine)
    for candidate in short:
        candidate.score = fitted.ranker(candidate.values)
    short.sort(key=lambda c: -c.score)
    return short


@dataclass(frozen=True, slots=True)
class Quote:
    """Characters `start` to `end` of a passage, its parts as they are shown."""

    rank: int
    passage: Passage
    start: int
    end: int
    parts: Sequence[Unit]


def select(question: Question, ranked: Sequence[Candidate], limit: int) -> list[Quote]:
    """The best sentence, those that add to it, and the code or list that a sentence leads to."""
    best = ranked[0]
    chosen = [best]
    covered = set(terms(best.text))
    for candidate in ranked[1:]:
        if len(chosen) >= limit or candidate.score < best.score - 1.0 or candidate.score < -2.0:
            break
        own = set(terms(candidate.text))
        if not own or any(_same(own, set(terms(c.text))) for c in chosen):
            continue
        new = sum(w for t, w in question.terms.items() if t in own and t not in covered)
        if new > 0 or candidate.score >= best.score - 0.4:
            chosen.append(candidate)
            covered |= own
    quotes = [_extend(question, c) for c in chosen]
    quotes.sort(key=lambda q: (next(i for i, c in enumerate(chosen) if c.rank == q.rank), q.start))
    kept: list[Quote] = []
    for quote in quotes:  # a list or code block may have swallowed another choice
        if not any(k.passage.id == quote.passage.id and k.start <= quote.start and quote.end <= k.end for k in kept):
            kept.append(quote)
    return kept


def _same(a: set[str], b: set[str]) -> bool:
    return len(a & b) >= 0.6 * min(len(a), len(b))


def _extend(question: Question, candidate: Candidate) -> Quote:
    """The quote of a sentence, with what it leads to."""
    parts = parts_of(question, candidate.passage, candidate.place)
    start, whole = parts[0].start, candidate.passage.text[parts[0].start : parts[-1].end]
    # A passage may be cut inside a block of code, and then ends in white space.
    return Quote(candidate.rank, candidate.passage, start, start + len(whole.rstrip()), tuple(parts))


def _opening(question: Question, passage: Passage, places: Sequence[int]) -> list[Quote]:
    """The first sentences of a section, with what they lead to."""
    cut = units(passage.text)
    return [_extend(question, Candidate(0, passage, cut[place], place)) for place in places]


_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)(?:\{[^}]*\})?")
_LINK = re.compile(r"\[([^\]\[]+)\](?:\((?!https?://)[^)\s]*(?:\s+\"[^\"]*\")?\)|\[[^\]]*\])")
_ATTRIBUTES = re.compile(r"\{[.#:][^}]*\}")


def show(text: str, unit: Unit) -> str:
    """A unit as markdown that stands by itself: one line, links into other files reduced to their words, code dedented."""
    raw = text[unit.start : unit.end]
    if unit.kind == "code":
        return _code(raw)
    raw = _ATTRIBUTES.sub("", _LINK.sub(r"\1", _IMAGE.sub("", raw)))
    if unit.kind == "table":
        return " · ".join(cell.strip() for cell in raw.strip().strip("|").split("|") if cell.strip())
    return " ".join(raw.split())


def _code(raw: str) -> str:
    lines = raw.split("\n")
    opening = re.match(r"[ \t]*(?:[-*+][ \t]+|\d+[.)][ \t]+)?(`{3,}|~{3,})[ \t]*\{?[ \t]*\.?([\w+#-]*)", lines[0])
    fence, language = (opening.group(1), opening.group(2)) if opening else ("```", "")
    body = lines[1:] if opening else lines
    if body and body[-1].strip().strip("`~") == "":
        body = body[:-1]
    return f"{fence}{language}\n{textwrap.dedent(chr(10).join(body))}\n{fence}"


def write(quotes: Sequence[Quote]) -> tuple[str, list[Citation]]:
    """The answer: quotes in order, each with its marker; passages are numbered as they first appear."""
    text, citations = "", []
    numbered: dict[str, int] = {}
    previous: Quote | None = None
    for quote in quotes:
        number = numbered.setdefault(quote.passage.id, len(numbered) + 1)
        lead, rest = quote.parts[0], quote.parts[1:]
        listed = lead.kind == "item"
        if previous is not None:
            before = previous.parts
            block = len(before) > 1 or listed or before[0].kind != "prose" or lead.kind == "table"
            near = previous.passage.id == quote.passage.id
            text += ("\n" if listed and before[-1].kind == "item" else "\n\n") if block or not near else " "
        text += ("- " if listed else "") + show(quote.passage.text, lead) + " "
        marker = f"[{number}]"
        citations.append(Citation.of(quote.passage, number, quote.start, quote.end, len(text), len(text) + len(marker)))
        text += marker
        for unit in rest:
            shown = show(quote.passage.text, unit)
            text += f"\n- {shown}" if unit.kind == "item" and text[-2:] != "\n\n" else f"\n\n{shown}"
        previous = quote
    return text, citations
