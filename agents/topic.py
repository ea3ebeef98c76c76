"""Messages that name a topic instead of asking a question: "rate limits", "Tell me about backups".

No sentence answers them, a section does: they are met with the opening of the section about the topic.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from agents.text import coverage, terms, units, words
from retrieval.types import Passage

_ABOUT = re.compile(
    r"(?:(?:please|can you|could you|would you)\s+)*"
    r"(?:(?:tell|show|teach) (?:me|us)(?: (?:more|something|everything))? (?:about|on)"
    r"|what (?:is|was) (?:said|written|known|there)(?: (?:here|there))? (?:about|on)"
    r"|what (?:do|does|did) .{0,30}?\b(?:say|tell|state|write)s?(?: (?:me|us))? (?:about|on)"
    r"|what (?:about|do you (?:have|know) (?:about|on))"
    r"|(?:is there )?(?:anything|something|information|more|a (?:chapter|section|page)) (?:about|on)"
    r"|(?:explain|describe|introduce|summari[sz]e|outline|define)(?: (?:to )?(?:me|us))?"
    r"|(?:give (?:me|us) )?(?:an? )?(?:overview|summary|introduction|outline) (?:of|to)"
    r"|(?:find|look up|search for|go to|open) (?:the )?(?:chapter|section|page|part|passage) (?:about|on))\s+(?P<topic>.+)",
    re.IGNORECASE,
)
_PART = re.compile(r"^(?:the )?(?:chapter|section|page|part|passage)s? (?:about|on|of) ", re.IGNORECASE)
_QUESTION = re.compile(
    r"\b(?:who|whom|whose|what|when|where|which|why|how|is|are|was|were|do|does|did|can|could|may|must|shall|should|will|would"
    r"|has|have|had|i|me|my|we|you|your|it|he|she|they)\b",
    re.IGNORECASE,
)
MAX_WORDS = 5
"""Words of a topic; more say something about it, and are read as a question."""
MATCH = 0.99
"""How much of a topic a heading must hold."""


def topic_of(message: str) -> str:
    """The topic that a message names, empty where it asks something."""
    text = " ".join(message.split()).rstrip("?!. ")
    wanted = _ABOUT.fullmatch(text)
    topic = _PART.sub("", wanted["topic"] if wanted else "" if "?" in message else text)
    if _QUESTION.search(topic):
        return ""
    return topic.strip("\"'“”‘’` ") if 0 < len(words(topic)) <= MAX_WORDS and terms(topic) else ""


def opening(topic: str, passages: Sequence[Passage], sentences: int) -> tuple[Passage, list[int]] | None:
    """The passage that opens the section about a topic, and the places of its first sentences among its units.

    None where no heading names the topic.
    The heading nearest to the topic wins, then the innermost, then the order in which the passages were found.
    """
    wanted = terms(topic)
    best: tuple[float, Passage, list[int]] | None = None
    for passage in passages:
        headings = passage.heading or (passage.title,)
        for depth, heading in enumerate(reversed(headings)):
            fit = _fit(wanted, terms(heading), passage.text) - 0.1 * depth
            if fit > (best[0] if best else 0.0) and (lead := _lead(wanted, passage.text, sentences)):
                best = fit, passage, lead
    return best[1:] if best else None


def _fit(wanted: dict[str, float], heading: dict[str, float], text: str) -> float:
    """How well a heading names a topic, 0 to 1: it holds all of it, or a part of which its passage has the rest."""
    if coverage(wanted, heading) >= MATCH:
        return coverage(heading, wanted)
    if heading and coverage(heading, wanted) >= MATCH and coverage(wanted, {**terms(text), **heading}) >= MATCH:
        return 0.5 * coverage(wanted, heading)
    return 0.0


def _lead(wanted: dict[str, float], text: str, limit: int) -> list[int]:
    """The sentences a passage begins with; from the first that names the topic, where one does."""
    cut = units(text)
    prose = [place for place, unit in enumerate(cut) if unit.kind in ("prose", "item")]
    held = (terms(text[cut[place].start : cut[place].end]) for place in prose)
    named = next((i for i, own in enumerate(held) if coverage(wanted, own) >= MATCH), 0)
    lead: list[int] = []
    for place in prose[named:]:
        if len(lead) == limit or (lead and (cut[place].section, cut[place].kind) != (cut[lead[0]].section, cut[lead[0]].kind)):
            break
        lead.append(place)
    return lead
