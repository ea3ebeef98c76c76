"""How well passages support an answer: features of question, passages and sentences, and two logistic models over them.

The coefficients in `answerability.json` are made by `python -m agents.calibrate`; here they are only applied.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

from agents.text import Unit, coverage, names, numbers, terms, units, words
from retrieval.types import Passage

_EXPECTS = (
    (
        "time",
        r"\b(?:when|(?:what|which|in what|in which) (?:\w+ )?(?:year|date|day|month|century|decade|time))\b",
    ),
    (
        "number",
        r"\bhow (?:many|much|long|old|far|often|tall|high|large|big|fast|deep|wide|heavy)\b"
        r"|\bwhat (?:\w+ )?(?:percent|percentage|number|amount|age|population|rate|size|distance|temperature)\b",
    ),
    (
        "name",
        r"\b(?:who|whom|whose)\b|\bwhich (?:person|player|team|president|king|queen|author|artist|actor)\b",
    ),
    (
        "place",
        r"\bwhere\b|\b(?:what|which) (?:\w+ )?(?:country|city|state|town|place|river|region|continent|stadium)\b",
    ),
)
_MONTHS = frozenset(
    re.findall(r"\w+", "january february march april may june july august september october november december century")
)
_HOW_TO = re.compile(
    r"\bhow (?:do|can|to|would|should|does one)\b"
    r"|\b(?:example|code|command|snippet|syntax|install|configure|set ?up|usage|enable)\b"
)
_MEANING = re.compile(
    r"\W*(?:what(?:'s| is| are| does| do)|define|explain)\s+(?:the |an? )?(?:meaning of )?(?:the |an? )?(.{2,50}?)"
    r"(?: mean| represent| stand for| used for| for| do)?\W*$"
)
_META = re.compile(
    r"\W*(?:this (?:\w+ )?(?:page|section|guide|post|tutorial|chapter|document|example)\b|see\b|read more|learn more|welcome|"
    r"for more|more (?:details|information)|refer to|check out|let[’']s|in this (?:page|section|guide|post|tutorial)|suppose)",
    re.IGNORECASE,
)
MAX_QUOTE = 1_200
"""Characters of a sentence with its code block or list past which the rest is not quoted."""
MAX_ITEMS = 8

CANDIDATE_FEATURES = (
    "cov", "near", "gain", "context", "cos", "sim", "rank", "hit", "miss", "bigram", "names", "length", "asks", "item",
    "table", "title", "code", "meta", "defines", "head",
)  # fmt: skip
QUESTION_FEATURES = (
    "top_sim", "sim_margin", "best_cos", "best_cov", "max_cov", "passage_cov", "missing", "names_missing", "has_names", "hit",
    "miss", "logit", "logit_margin", "length", "cos_cov", "all_cov", "second_cos",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """What a question asks about, taken apart once."""

    text: str
    asked: str
    """What is embedded: the text, behind the question that it leans on."""
    terms: dict[str, float]
    context: dict[str, float]
    names: frozenset[str]
    numbers: frozenset[str]
    bigrams: frozenset[tuple[str, str]]
    expects: str | None
    how_to: bool
    subject: str
    """What a question of the kind "What is X?" asks the meaning of, lower case; else empty."""

    @classmethod
    def of(cls, text: str, context: str = "") -> Question:
        low = text.lower()
        wanted = terms(text)
        return cls(
            text=text,
            asked=f"{context} {text}".strip(),
            terms=wanted,
            context={t: w for t, w in terms(context).items() if t not in wanted} if context else {},
            names=names(text),
            numbers=numbers(text),
            bigrams=_bigrams(text),
            expects=next((kind for kind, pattern in _EXPECTS if re.search(pattern, low)), None),
            how_to=bool(_HOW_TO.search(low)),
            subject=match.group(1).strip() if (match := _MEANING.match(low)) else "",
        )


def _data(text: str) -> bool:
    """Is this data or markup, such as a piece of JSON, where a sentence is expected?"""
    marks = sum(text.count(mark) for mark in '{}[]<>"=;')
    return marks >= 12 and marks > 0.12 * len(text)


def _bigrams(text: str) -> frozenset[tuple[str, str]]:
    kept = list(terms(text))
    return frozenset(pairwise(kept))


@dataclass(slots=True)
class Candidate:
    """A unit that may be quoted. `rank` counts its passage from 0."""

    rank: int
    passage: Passage
    unit: Unit
    place: int
    """Position among the passage's units."""
    values: dict[str, float] = field(default_factory=dict)
    first: float = 0.0
    score: float = -math.inf
    """Log-odds of holding the answer."""

    @property
    def text(self) -> str:
        return self.passage.text[self.unit.start : self.unit.end]


def _expected(question: Question, text: str) -> tuple[float, float]:
    """Does the sentence hold the kind of thing the question asks for? (hit, miss), both 0 where it asks for no kind."""
    if question.expects is None:
        return 0.0, 0.0
    found = numbers(text) - question.numbers
    if question.expects == "number":
        good = bool(found)
    elif question.expects == "time":
        good = any(len(n) in (3, 4) or ":" in n for n in found) or bool(_MONTHS & set(words(text)) - set(words(question.text)))
    else:
        opening = re.match(r"[^\w]*([A-Z]\w+)", text)
        people = set(names(text)) | (set(terms(opening.group(1))) if opening else set())
        good = bool(people - set(question.terms))
    return (1.0, 0.0) if good else (0.0, 1.0)


def candidates(question: Question, passages: Sequence[Passage]) -> list[Candidate]:
    """Every sentence, item and row of the passages with its lexical features, best first by a rough score."""
    found: list[Candidate] = []
    seen: set[tuple[str, int, int]] = set()
    for rank, passage in enumerate(passages):
        cut = units(passage.text)
        above = terms(" ".join([passage.title, *passage.heading]))
        title = coverage(question.terms, above)
        whole = terms(passage.text)
        for place, unit in enumerate(cut):
            if unit.kind in ("code", "heading") or _data(passage.text[unit.start : unit.end]):
                continue
            key = (passage.document_id, passage.start + unit.start, passage.start + unit.end)
            if key in seen:  # overlapping chunks of one document
                continue
            seen.add(key)
            found.append(_candidate(question, Candidate(rank, passage, unit, place), cut, above, title, whole))
    found.sort(key=lambda c: -c.first)
    return found


def _candidate(
    question: Question,
    candidate: Candidate,
    cut: Sequence[Unit],
    above: Mapping[str, float],
    title: float,
    whole: Mapping[str, float],
) -> Candidate:
    passage, unit, place = candidate.passage, candidate.unit, candidate.place
    text = candidate.text
    own = terms(text)
    around: set[str] = set(own) | set(above)
    for neighbour in cut[max(0, place - 1) : place + 2]:
        around.update(terms(passage.text[neighbour.start : neighbour.end][:600]))
    cov, near = coverage(question.terms, own), coverage(question.terms, around)
    hit, miss = _expected(question, text)
    marked = question.names | question.numbers
    have = set(own) | set(above) | numbers(text)
    heading = terms(passage.heading[-1] if passage.heading else passage.title)
    parts = parts_of(question, passage, place)
    defines = bool(question.subject) and _defines(question.subject, text)
    candidate.values = {
        "cov": cov,
        "near": near,
        "gain": coverage(question.terms, set(whole) | set(above)),
        "context": coverage(question.context, around),
        "cos": 0.0,
        "sim": passage.similarity,
        "rank": 1.0 / (1 + candidate.rank),
        "hit": hit,
        "miss": miss,
        "bigram": len(question.bigrams & _bigrams(text)) / len(question.bigrams) if question.bigrams else 0.0,
        "names": len(marked & have) / len(marked) if marked else 0.5,
        "length": math.log(1 + min(len(words(text)), 60)),
        "asks": float(text.rstrip().endswith("?")),
        "item": float(unit.kind == "item"),
        "table": float(unit.kind == "table"),
        "title": title,
        "code": float(question.how_to and parts[-1].kind == "code"),
        "meta": float(bool(_META.match(text))),
        "defines": float(defines),
        "head": coverage(question.terms, set(own) | set(heading)),
    }
    v = candidate.values
    candidate.first = cov + 0.4 * near + 0.5 * passage.similarity + 0.2 * v["rank"] + 0.15 * (hit - miss)
    candidate.first += 0.3 * v["code"] + 0.4 * v["defines"] - 0.3 * v["meta"] - 0.3 * (len(own) < 3 and not v["code"])
    return candidate


def _defines(subject: str, text: str) -> bool:
    """Does the sentence begin as a definition: "A subject is", "Subjects (plural) are"?"""
    start = re.sub(r"^(?:the|an?) ", "", text[:120].lower().lstrip("*_`[ "))
    rest = start.removeprefix(subject)
    verbs = r"s?[`*_\])]*\S*,? (?:\([^)]*\) )?(?:is|are|was|were|means?|represents?|refers?|allows?)\b"
    return len(rest) < len(start) and bool(re.match(verbs, rest))


def parts_of(question: Question, passage: Passage, place: int) -> list[Unit]:
    """The unit at `place`, with the code block or the list items that it leads to."""
    cut = units(passage.text)
    parts = [cut[place]]
    leads = passage.text[cut[place].start : cut[place].end].rstrip().rstrip("*_`").endswith(":")
    for number in range(place + 1, len(cut)):
        unit = cut[number]
        if unit.section != parts[0].section or unit.end - parts[0].start > MAX_QUOTE:
            break
        if unit.kind == "code" and (leads or question.how_to) and not (question.how_to and _drawn(passage.text, unit)):
            parts.append(unit)
            break
        if unit.kind == "item" and leads and parts[0].kind != "item" and len(parts) <= MAX_ITEMS:
            parts.append(unit)
            continue
        # A short sentence between the one chosen and its code ("For example:") is quoted with it.
        short = unit.kind == "prose" and len(parts) == 1 and unit.end - unit.start < 80
        if question.how_to and short and number + 1 < len(cut) and cut[number + 1].kind == "code":
            parts.append(unit)
            continue
        break
    return parts[:1] if len(parts) > 1 and parts[-1].kind == "prose" else parts


def _drawn(text: str, unit: Unit) -> bool:
    """A block that shows output, a table or a tree, not code."""
    return bool(re.search(r"^[ \t]*(?:\+[-=+]{3,}|\|[ -]|[├└│┌])", text[unit.start : unit.end], re.MULTILINE))


class Logistic:
    """A logistic model: named features, coefficients, an intercept."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.coefficients: dict[str, float] = dict(spec["coefficients"])
        self.intercept = float(spec["intercept"])

    def __call__(self, values: Mapping[str, float]) -> float:
        """Log-odds."""
        return self.intercept + sum(c * values[name] for name, c in self.coefficients.items())


@dataclass(frozen=True, slots=True)
class Models:
    """What `answerability.json` holds: `ranker` over sentences, `answerable` over questions, and its threshold."""

    ranker: Logistic
    answerable: Logistic
    threshold: float


@cache
def models() -> Models:
    """The models in `answerability.json`, read once."""
    spec = json.loads(resources.files("agents").joinpath("answerability.json").read_text(encoding="utf-8"))
    return Models(Logistic(spec["ranker"]), Logistic(spec["answerable"]), float(spec["threshold"]))


def question_values(question: Question, passages: Sequence[Passage], ranked: Sequence[Candidate]) -> dict[str, float]:
    """Features of how well the passages answer the question; `ranked` are the scored candidates, best first."""
    best = ranked[0]
    sims = sorted((p.similarity for p in passages), reverse=True)
    rest = sims[1:] or [0.0]
    cosines = sorted((c.values["cos"] for c in ranked), reverse=True)
    passage = best.passage
    here = set(terms(passage.text)) | set(terms(" ".join([passage.title, *passage.heading])))
    everywhere: set[str] = set()
    for p in passages:
        everywhere |= set(terms(p.text)) | set(terms(" ".join([p.title, *p.heading])))
    marked = question.names | question.numbers
    having = here | numbers(passage.text)
    covs = [c.values["cov"] for c in ranked]
    return {
        "top_sim": sims[0],
        "sim_margin": sims[0] - sum(rest) / len(rest),
        "best_cos": cosines[0],
        "best_cov": best.values["cov"],
        "max_cov": max(covs),
        "passage_cov": coverage(question.terms, here),
        "missing": max((w for t, w in question.terms.items() if t not in here), default=0.0),
        "names_missing": len(marked - having) / len(marked) if marked else 0.0,
        "has_names": float(bool(marked)),
        "hit": best.values["hit"],
        "miss": best.values["miss"],
        "logit": best.score,
        "logit_margin": best.score - ranked[1].score if len(ranked) > 1 else 0.0,
        "length": math.log(1 + len(question.terms)),
        "cos_cov": best.values["cos"] * best.values["cov"],
        "all_cov": coverage(question.terms, everywhere),
        "second_cos": cosines[1] if len(cosines) > 1 else 0.0,
    }


def probability(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))
