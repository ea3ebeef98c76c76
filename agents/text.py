"""Words and sentences: what the reader and the citation check compare.

Offsets are kept everywhere: a unit is `text[start:end]` of the text it was cut from.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Literal

Kind = Literal["prose", "item", "code", "table", "heading"]

_WORD = re.compile(r"\d+(?:[.,:]\d+)+|\d+(?:st|nd|rd|th)\b|\d+|[^\W\d_]+(?:['’][^\W\d_]+)?", re.UNICODE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        re.findall(
            r"\w+",
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
            "eighteen nineteen twenty",
        )
    )
}
STOP = frozenset(
    re.findall(
        r"\S+",
        "a an the of in on at by to from for with without into onto about as is are was were be been being am do does did done "
        "doing have has had having can could will would shall should may might must and or but nor not no so if then than that "
        "this these those there here it its it's i me my mine we us our you your he him his she her they them their what which "
        "who whom whose when where why how s t re ve ll d m don doesn didn isn aren wasn weren won can't cannot let also just "
        "please tell explain describe show give many much any some all each such other more most very too only own same "
        "up out off over under again further once between through during before after above below both few "
        "what's who's where's how's i'm don't doesn't",
    )
)


@cache
def _ranks() -> dict[str, int]:
    """Frequent English words by rank: the order of the BERT uncased vocabulary (Apache-2.0)."""
    words = resources.files("agents").joinpath("words.txt").read_text(encoding="utf-8").split()
    return {word: rank for rank, word in enumerate(words)}


@lru_cache(65_536)
def stem(word: str) -> str:
    """A light English stem: created, creates, creating and create are one, as are install and installation."""
    if len(word) <= 3 or not word.isascii() or not word.isalpha():
        return word
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("sses", "shes", "ches", "xes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ization", "isation", "ations", "ation", "ings", "ing", "edly", "ed", "ment", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and any(c in "aeiouy" for c in word[: -len(ending)]):
            word = word[: -len(ending)]
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    else:
        if word.endswith(("tion", "sion")) and len(word) > 5:
            word = word[:-3]
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    if word.endswith("y") and len(word) > 3:
        word = word[:-1] + "i"
    return word


@lru_cache(65_536)
def weight(word: str) -> float:
    """How much a word says, 0 for function words to 1 for rare words: its inverse frequency in English."""
    if word in STOP:
        return 0.0
    ranks = _ranks()
    rank = ranks.get(word)
    if rank is None:
        return 1.0
    return 0.25 + 0.65 * math.log(2 + rank) / math.log(2 + len(ranks))


@lru_cache(8_192)
def words(text: str) -> tuple[str, ...]:
    """Lower-case words and numbers in order; camelCase and snake_case names come apart, number words become digits."""
    found = []
    for match in _WORD.finditer(text):
        word = match.group()
        if word[0].isdigit():
            digits = re.match(r"[\d.,:]+", word)
            found.append(digits.group().replace(",", "") if digits else word)
            continue
        parts = _CAMEL.split(word) if not word.islower() and not word.isupper() else [word]
        for part in parts:
            low = part.lower().replace("’", "'")
            if low.endswith("'s"):
                low = low[:-2]
            found.append(_NUMBER_WORDS.get(low, low))
    return tuple(found)


@lru_cache(8_192)
def terms(text: str) -> dict[str, float]:
    """Stems of the content words with their weights."""
    found: dict[str, float] = {}
    for word in words(text):
        value = weight(word)
        if value > 0:
            key = stem(word)
            if value > found.get(key, 0.0):
                found[key] = value
    return found


@lru_cache(8_192)
def numbers(text: str) -> frozenset[str]:
    """The numbers in a text: digits without thousands separators, number words as digits."""
    return frozenset(word for word in words(text) if word[0].isdigit())


@lru_cache(8_192)
def names(text: str) -> frozenset[str]:
    """Stems of capitalised words (past the first word of the text) and of words with an inner capital, digit or underscore."""
    found = set()
    for match in re.finditer(r"[^\W]+", text):
        word = match.group()
        marked = word[0].isupper() and match.start() > 0
        if marked or re.search(r"[a-z][A-Z]|_|[A-Z]{2}", word):
            found.update(stem(w) for w in words(word) if weight(w) > 0 and not w[0].isdigit())
    return frozenset(found)


def coverage(wanted: dict[str, float], having: dict[str, float] | frozenset[str] | set[str]) -> float:
    """Share of the wanted terms' weight that is there, 0 where nothing is wanted."""
    total = sum(wanted.values())
    return sum(value for term, value in wanted.items() if term in having) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence, list item, table row or code block. `section` counts the headings before it."""

    start: int
    end: int
    kind: Kind
    section: int = 0


_FENCE = re.compile(r"^[ \t]*(?:[-*+][ \t]+|\d+[.)][ \t]+)?(`{3,}|~{3,})[^\n]*$", re.MULTILINE)
_LIST = re.compile(r"[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+")
_HEADING = re.compile(r"[ \t]{0,3}#{1,6}[ \t]+\S")
_UNDERLINE = re.compile(r"[ \t]*(?:={3,}|-{3,}|~{3,}|\^{3,}|\*{3,}|_{3,})[ \t]*$")
_SKIP = re.compile(r"[ \t]*(?:!!!|===[+!]? |\?\?\?\+?|:::|<!--|\[[^\]]+\]:|\.\. |:\w+:|\||[{<]%|</?\w+[^>]*>[ \t]*$)")
_END = re.compile(r"[.!?…。！？]+[\"'”’)\]*_`]*(?=\s|$)|[。！？]")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|al|approx|ca|no|nos|vol|fig|eq|dr|mr|mrs|ms|prof|st|jr|sr|inc|ltd|co|corp|gen|col|lt|sen|rep|"
    r"gov|jan|feb|mar|apr|jun|jul|aug|sept|sep|oct|nov|dec|u\.s|u\.k|u\.n|d\.c|a\.m|p\.m|z\.b|bzw|dt)|\b[A-Za-z])\.$",
    re.IGNORECASE,
)


def _sentences(text: str, start: int, end: int) -> list[tuple[int, int]]:
    spans, begin = [], start
    for match in _END.finditer(text, start, end):
        stop = match.end()
        following = text[stop:end].lstrip()
        if following and match.group()[0] == ".":
            if _ABBREVIATION.search(text, max(begin, stop - 12), match.start() + 1) and not following.startswith(("\n", "|")):
                continue
            if following[0].islower() and not following.startswith(("iP", "e-")):
                continue
        spans.append((begin, stop))
        begin = stop
    spans.append((begin, end))
    trimmed = []
    for first, last in spans:
        while first < last and text[first].isspace():
            first += 1
        while last > first and text[last - 1].isspace():
            last -= 1
        if last > first:
            trimmed.append((first, last))
    return trimmed


@lru_cache(4_096)
def units(text: str) -> tuple[Unit, ...]:
    """Cut a passage into what can be quoted, in order.

    Sentences of paragraphs, sentences of list items (without the bullet), table rows and whole fenced code blocks. A passage
    that begins or ends within a code block is understood from its fences.
    """
    fences = list(_FENCE.finditer(text))
    if len(fences) % 2:
        first = fences[0]
        bare = first.group().strip().strip("`~") == ""
        # An odd fence is either the end of a block that began in the passage before, or a block that ends in the next.
        spans = [(0, first.end())] if bare else []
        rest = fences[1:] if bare else fences
        spans += [(a.start(), b.end()) for a, b in zip(rest[::2], rest[1::2], strict=False)]
        if not bare:
            spans.append((fences[-1].start(), len(text)))
    else:
        spans = [(a.start(), b.end()) for a, b in zip(fences[::2], fences[1::2], strict=True)]
    found: list[Unit] = []
    section, at = 0, 0
    for begin, stop in [*spans, (len(text), len(text))]:
        section = _lines(text, at, begin, section, found)
        if stop > begin:
            found.append(Unit(begin, stop, "code", section))
        at = stop
    return tuple(found)


def _lines(text: str, start: int, end: int, section: int, found: list[Unit]) -> int:
    """Units of the text between two code blocks."""
    paragraph: list[int] = []  # start, end
    kind: Kind = "prose"

    def flush() -> None:
        nonlocal paragraph, kind
        if paragraph:
            found.extend(Unit(a, b, kind, section) for a, b in _sentences(text, *paragraph))
        paragraph, kind = [], "prose"

    at = start
    while at < end:
        stop = text.find("\n", at, end)
        stop = end if stop < 0 else stop
        line = text[at:stop]
        listed = _LIST.match(line)
        if not line.strip():
            flush()
        elif _HEADING.match(line):
            flush()
            section += 1
            if words := line.lstrip("# \t").rstrip():  # `# #` is a heading without words
                begin = at + len(line) - len(line.lstrip("# \t"))
                found.append(Unit(begin, begin + len(words), "heading", section))
        elif _UNDERLINE.match(line):
            if len(paragraph) == 2 and "\n" not in text[paragraph[0] : paragraph[1]] and line.strip()[0] in "=-~^":
                section += 1
                found.append(Unit(paragraph[0], paragraph[1], "heading", section))
                paragraph = []
            else:
                flush()
        elif line.lstrip().startswith("|"):
            flush()
            if not re.fullmatch(r"[\s|:+-]+", line):
                found.append(Unit(at + len(line) - len(line.lstrip()), at + len(line.rstrip()), "table", section))
        elif _SKIP.match(line):
            flush()
        elif listed:
            flush()
            paragraph, kind = [at + listed.end(), stop], "item"
        elif paragraph:
            paragraph[1] = stop
        else:
            paragraph = [at, stop]
        at = stop + 1
    flush()
    return section
