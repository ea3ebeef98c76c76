"""Citation markers in a model's streamed answer: held back until checked, removed where the passage does not support them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agents.state import Embed
from agents.text import coverage, numbers, terms, units
from retrieval.types import Passage

Check = Callable[[int, str], Awaitable["tuple[int, int] | None"]]
"""`check(number, sentence)`: the place in passage `number` that supports the sentence, None where none does."""

MIN_COVERAGE = 0.5
"""Share of the sentence's content (by weight) that must occur in the passage."""
MIN_COVERAGE_CLOSE = 0.2
"""The same where embeddings say that a sentence of the passage means much the same."""
MIN_COSINE = 0.6

_OPEN, _CLOSE = "[【", "]】"
_PARTIAL = re.compile(r"[\[【][\s\d,;^†–-]*$")
_MARKER = re.compile(r"[\[【]\s*\^?\d+(?:\s*[,;–-]\s*\^?\d+)*\s*[\]】]")
_UNCLOSED = re.compile(r"[\[【]\s*\^?\d+(?:\s*[,;–-]\s*\^?\d+)*\s*$")
_LONGEST = 40
_BOUNDARY = re.compile(r"(?<=[.!?])[\"'”’)*_]*\s+|\n+")


@dataclass(frozen=True, slots=True)
class Marker:
    """A checked marker `[number]` at its place in the stream; `start` and `end` are the support's place in the passage."""

    number: int
    start: int
    end: int

    @property
    def text(self) -> str:
        return f"[{self.number}]"


class CitationFilter:
    """Passes text through, but not one marker that has not been checked.

    `[n]`, `[1, 2]`, `[1-3]`, `[^1]` and `【1】` are markers, wherever chunks split them; code is left alone. What comes out,
    joined, does not depend on how the text was cut into chunks.
    """

    def __init__(self, check: Check) -> None:
        self._check = check
        self._held = ""  # white space or the beginning of a marker
        self._clean = ""  # all text let through, without markers
        self._cut = 0  # where in _clean the clause after the last marker begins
        self._ticks = ""  # the run of backticks being read
        self._code = ""  # the run of backticks that opened the code being read
        self._removed = False  # the marker after the held white space has just been removed

    async def feed(self, chunk: str) -> list[str | Marker]:
        """What may be shown after `chunk`: text and checked markers, in order."""
        out: list[str | Marker] = []
        for character in chunk:
            await self._step(character, out)
        return _joined(out)

    async def finish(self) -> list[str | Marker]:
        """What is left when the text has ended."""
        out: list[str | Marker] = []
        if self._code and len(self._code) < 3:
            await self._code_step("\n", out)
            self._held = self._held[:-1]
        if self._removed:
            self._held = ""
        self._release(out)
        return _joined(out)

    async def _step(self, character: str, out: list[str | Marker]) -> None:
        if character == "`":
            self._release(out)
            self._ticks += character
            self._say(character, out)
            return
        if self._ticks:
            if not self._code:
                self._code = self._ticks
            elif len(self._ticks) >= len(self._code):
                self._code = ""
            self._ticks = ""
        if self._code:
            await self._code_step(character, out)
            return
        mark = self._held.lstrip()
        if mark:
            if character in _CLOSE:
                whole = mark + character
                if _MARKER.fullmatch(whole):
                    await self._decide(whole, out)
                else:
                    self._held += character
                    self._release(out)
            elif _PARTIAL.match(mark + character) and len(mark) < _LONGEST:
                self._held += character
            else:
                self._release(out)
                await self._step(character, out)
        elif character.isspace() and self._removed and self._held:
            self._held = "\n" if character == "\n" else self._held  # one white space for the two around a removed marker
        elif character.isspace() or character in _OPEN:
            self._held += character
        else:
            if self._removed and character in ".,;:!?)":
                self._held = ""
            self._release(out)
            if character in _CLOSE and _UNCLOSED.search(self._clean[-400:]):
                return  # what stood around a removed marker must not close into a new one
            self._say(character, out)

    async def _code_step(self, character: str, out: list[str | Marker]) -> None:
        """Inside backticks. A bracket in inline code waits for the closing backtick: a line's end shows that it was no code."""
        if len(self._code) >= 3:
            self._say(character, out)
        elif character == "\n":
            self._code, held, self._held = "", self._held + character, ""
            for waiting in held:
                await self._step(waiting, out)
        elif self._held or character in _OPEN:
            self._held += character
        else:
            self._say(character, out)

    def _say(self, text: str, out: list[str | Marker]) -> None:
        self._clean += text
        out.append(text)

    def _release(self, out: list[str | Marker]) -> None:
        self._removed = False
        if self._held:
            held, self._held = self._held, ""
            self._say(held, out)

    async def _decide(self, whole: str, out: list[str | Marker]) -> None:
        space = self._held[: len(self._held) - len(self._held.lstrip())]
        self._held = ""
        asked: list[int] = []
        for part in re.split(r"[,;]", whole.strip(_OPEN + _CLOSE)):
            ends = [int(n) for n in re.findall(r"\d+", part)[:2] if len(n) < 6]
            if len(ends) == 2 and ends[0] <= ends[1] < ends[0] + 20:
                asked.extend(range(ends[0], ends[1] + 1))
            else:
                asked.extend(ends)
        kept: list[Marker] = []
        for number in dict.fromkeys(asked):
            for sentence in self._sentences():
                place = await self._check(number, sentence)
                if place is not None:
                    kept.append(Marker(number, *place))
                    break
        if kept:
            if space:
                self._say(space, out)
            out.extend(kept)
            self._cut = len(self._clean)
        else:
            # The space before it stays held: what follows decides whether it is needed ("text [9]." becomes "text.").
            self._held, self._removed = space, True

    def _sentences(self) -> list[str]:
        """What the marker stands behind: the clause since the marker before, and the sentence."""
        text = self._clean.rstrip()
        bounds = [m.end() for m in _BOUNDARY.finditer(text) if m.end() < len(text)]
        start = bounds[-1] if bounds else 0
        sentence = text[start:].strip()
        clause = text[max(start, self._cut) :].strip() if self._cut > start else ""
        if self._cut >= len(text):  # a second marker at the same place
            return [sentence]
        return [clause, sentence] if len(terms(clause)) >= 3 else [sentence]


def _joined(parts: list[str | Marker]) -> list[str | Marker]:
    out: list[str | Marker] = []
    for part in parts:
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        else:
            out.append(part)
    return out


def best_place(sentence: str, passage: Passage) -> tuple[int, int]:
    """The sentence of the passage that shares most with a sentence of the answer."""
    wanted = terms(sentence)
    best, place = -1.0, (0, len(passage.text))
    for unit in units(passage.text):
        if unit.kind == "heading":
            continue
        own = terms(passage.text[unit.start : unit.end])
        shared = coverage(wanted, own) + 0.1 * coverage(own, wanted)
        if shared > best:
            best, place = shared, (unit.start, unit.end)
    return place


def make_check(passages: Sequence[Passage], embed: Embed | None = None) -> Check:
    """A check of citations against the passages.

    A sentence is supported where every number in it stands in the passage, and most of its content words do, or fewer where
    embeddings find a sentence of the passage that is close to it.
    """

    async def check(number: int, sentence: str) -> tuple[int, int] | None:
        if not 1 <= number <= len(passages) or not sentence:
            return None
        passage = passages[number - 1]
        above = " ".join([passage.title, *passage.heading])
        if not numbers(re.sub(r"^\s*\d+[.)]\s", "", sentence)) <= numbers(passage.text) | numbers(above):
            return None
        wanted = terms(sentence)
        if not wanted:
            return None
        share = coverage(wanted, set(terms(passage.text)) | set(terms(above)))
        place = best_place(sentence, passage)
        if share >= MIN_COVERAGE:
            return place
        if embed is None or share < MIN_COVERAGE_CLOSE:
            return None
        vectors = await embed([sentence[:400], passage.text[place[0] : place[1]][:400]])
        return place if float(vectors[0] @ vectors[1]) >= MIN_COSINE else None

    return check
