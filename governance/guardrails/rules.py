"""Tier 1: what is forbidden in a text by its form (personal data, keywords), and how much of an unfinished text may leave.

`Rules` looks at whole texts. `Hold` looks at a text that comes in pieces and lets go of it as early as can be done safely: what
it lets go of is, whatever the pieces were, what `Rules` makes of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from governance.guardrails.fold import end_of, escapes, escaping, fold, passes, passing
from governance.guardrails.pii import MAX_SPAN, Finding, distinct, find, has_digit
from governance.guardrails.said import born_from
from governance.guardrails.spelled import open_from as spelled_from

KEYWORD = "KEYWORD"
MAX_TOKEN = 8_192
"""Characters without a space after which a text is let go of all the same, but for what was found and the last few hundred."""

_CONTEXT = 96  # characters already let go of that are looked at again, for what stands before a finding
_TAIL = 512
_SPACED = " \u00a0"
_MARKS = "\u0300-\u036f"
_FEW = 16  # keywords that are each looked for
_WORD = re.compile(r"\w+")
_DASHES = ("-", "/")
_FOREIGN = ("x ", "y ", "z ")  # what Spanish ids of foreigners begin with
_DIGIT = re.compile(r"\d")
_NEWS = re.compile(r"[\s\u2e80-\U0010ffff]")


class Blocked(Exception):
    """A guardrail refuses. `reason` says which and why, without the words it was about."""

    def __init__(self, guardrail: str, reason: str) -> None:
        super().__init__(reason)
        self.guardrail, self.reason = guardrail, reason


class Rules:
    """What to look for.

    Parameters
    ----------
    pii: `NONE`, `BLOCK` or `MASK`.
    keywords: words and phrases that refuse a text; matched whole, whatever their case, width or spacing. Scripts without spaces
        between words (Chinese, Thai …) match anywhere.
    """

    def __init__(self, pii: str = "NONE", keywords: Sequence[str] = ()) -> None:
        self.pii = pii
        folded = sorted({" ".join(fold(word, words=True)[0].split()) for word in keywords} - {""}, key=len, reverse=True)
        self._keywords = [(word.split(" ")[0], re.compile(_whole(word)), word) for word in folded]
        self._beginnings = {word[:size] for word in folded for size in range(1, len(word))}
        self._first = re.compile(f"[{re.escape(''.join({word[0] for word in folded}))}]") if folded else None
        self._longest = max(map(len, folded), default=0)
        self._by_word: dict[str, list[tuple[str, re.Pattern[str], str]]] = {}
        """Of many keywords, those that begin and end at the edge of a word, by what it is that they begin with."""
        if len(folded) > _FEW:
            for entry in self._keywords:
                run = _WORD.match(entry[2])
                if run and not (_unspaced(entry[2][0]) or _unspaced(entry[2][-1])):
                    self._by_word.setdefault(run[0], []).append(entry)
            grouped = {entry[2] for entries in self._by_word.values() for entry in entries}
            self._keywords = [entry for entry in self._keywords if entry[2] not in grouped]
        self._leads = tuple({first for first, _, _ in self._keywords})
        self.keywords = bool(folded)
        """Whether there are any."""
        self.any = self.keywords or pii != "NONE"
        """Whether anything is looked for."""

    def find(self, text: str) -> list[Finding]:
        """Everything forbidden in the text, without overlaps."""
        found: list[Finding] = []
        plain = text.isascii() and not escapes(text)  # as most texts are: they read as they are written
        if self.pii != "NONE":
            if plain:
                found = find(text)
            else:
                folded, origin = fold(text)
                found = find(folded) if origin is None else [_moved(each, origin, text) for each in find(folded)]
        if self.keywords and not (plain and self._wordless(text)):
            found += self._words(text)
        return distinct(found) if found else found

    def blocking(self, found: Sequence[Finding]) -> Blocked | None:
        """The refusal that these findings mean, if they mean one."""
        words = sum(each.kind == KEYWORD for each in found)
        if words:
            return Blocked("invalid_keywords", f"{words} forbidden {'keyword' if words == 1 else 'keywords'}")
        if found and self.pii == "BLOCK":
            return Blocked("pii", summary(found))
        return None

    def words(self, text: str) -> list[Finding]:
        """The keywords in the text."""
        plain = text.isascii() and not escapes(text)
        return [] if plain and self._wordless(text) else self._words(text)

    def _wordless(self, text: str) -> bool:
        """Whether a text that reads as it is written has no keyword, as can be told of few keywords by a glance."""
        if self._by_word:
            return False
        lower = text.lower()  # spaces change no keyword's first word
        for first in self._leads:  # noqa: SIM110 - runs for every chunk, where a generator costs more than the looks
            if first in lower:
                return False
        return True

    def _words(self, text: str) -> list[Finding]:
        folded, origin = fold(text, words=True)
        found = self._matches(folded)
        if (seen := passing(folded)) is not None:
            for each in self._matches(seen):
                if passes(folded[each.start : each.end], seen[each.start : each.end]):
                    found.append(each)
        return found if origin is None else [_moved(each, origin, text) for each in found]

    def _matches(self, folded: str) -> list[Finding]:
        found: list[Finding] = []
        likely = self._keywords
        if self._by_word:
            present = self._by_word.keys() & set(_WORD.findall(folded))
            likely = [*likely, *(entry for word in present for entry in self._by_word[word])]
        for first, pattern, _ in likely:
            if first in folded:
                found += [Finding(m.start(), m.end(), KEYWORD) for m in pattern.finditer(folded)]
        return found

    def open_from(self, text: str) -> int:
        """Where in `text` begins what more text could make forbidden, or change; its length where nothing is open."""
        folded, origin = fold(text)
        start = _open(folded) if self.pii != "NONE" else _token(folded)
        held = min(escaping(text), start if origin is None else (origin[start] if start < len(origin) else len(text)))
        if self._beginnings and self._first:
            folded, origin = fold(text, words=True)
            for looked in filter(None, (folded, passing(folded))):
                for first in self._first.finditer(looked, max(0, len(looked) - self._longest)):
                    place = first.start()
                    if looked[place:] in self._beginnings:
                        held = min(held, place if origin is None else origin[place])
                        break
        return held


def mask(text: str, found: Sequence[Finding]) -> str:
    """The text with a typed placeholder, such as `[EMAIL]`, for each finding."""
    if not found:
        return text
    parts, last = [], 0
    for each in found:
        parts += [text[last : each.start], f"[{each.kind}]"]
        last = each.end
    return "".join([*parts, text[last:]])


def summary(found: Sequence[Finding]) -> str:
    """Kinds and how many of each: `EMAIL, PHONE x2`. Never what was found."""
    counts: dict[str, int] = {}
    for each in found:
        counts[each.kind] = counts.get(each.kind, 0) + 1
    return ", ".join(kind if count == 1 else f"{kind} x{count}" for kind, count in sorted(counts.items()))


class Hold:
    """One text on its way out, in pieces. Raises `Blocked` when it may not go on.

    `before` is what was said just before it, with which it may be one text to whoever reads both.
    """

    def __init__(self, rules: Rules, before: str = "") -> None:
        self.rules = rules
        self.found: list[Finding] = []
        """Findings so far, at their places in the original text."""
        self.arrived = 0
        """Characters of the original text that have come."""
        self.gone = 0
        """Characters of the original text that were let go of, or replaced."""
        self._pieces: list[str] = []
        self._context = before
        self._buffer = ""
        self._open = False  # all that is held is one unfinished word

    @property
    def text(self) -> str:
        """The original text that has come."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def push(self, piece: str) -> str:
        """More text; gives what may leave now."""
        self.arrived += len(piece)
        self._pieces.append(piece)
        self._buffer += piece
        if self._open and len(self._buffer) < MAX_TOKEN and not _NEWS.search(piece):
            return ""
        text, begun = self._context + self._buffer, len(self._context)
        cut = max(self.rules.open_from(text), begun)
        overlong = len(text) - cut > MAX_TOKEN
        if overlong:
            cut = len(text) - _TAIL
        self._open = cut == begun and not overlong
        return self._release(text, cut) if cut > begun else ""

    @property
    def tail(self) -> str:
        """The end of the text, for what comes after it."""
        return (self._context + self._buffer)[-_CONTEXT:]

    def goes_on(self, after: str) -> bool:
        """Whether what comes after the text may still belong to its last word."""
        text = self._context + self._buffer
        whole = text + after
        return bool(self._buffer) and len(whole) < MAX_TOKEN and self.rules.open_from(whole) < len(text)

    def end(self, after: str = "") -> str:
        """The text is complete; gives the rest. `after` is what was said after it."""
        text = self._context + self._buffer
        return self._release(text, len(text), after, final=True) if self._buffer else ""

    def _release(self, text: str, cut: int, after: str = "", *, final: bool = False) -> str:
        begun = len(self._context)
        found = self.rules.find(text + after if after else text)
        if not found:  # as most texts are
            self.gone += cut - begun
            self._context, self._buffer = text[max(0, cut - _CONTEXT) : cut], text[cut:]
            return text[begun:cut]
        found = [each for each in found if each.end > begun]
        for each in found:
            if not final and (each.start < cut < each.end or (each.kind == "PRIVATE_KEY" and each.end == len(text))):
                cut = max(each.start, begun)  # it goes on, or may
                break
        last = len(text)
        found = [Finding(max(each.start, begun), min(each.end, last), each.kind) for each in found if each.start < cut]
        if refused := self.rules.blocking(found):
            raise refused
        offset = self.gone - begun
        self.found += [Finding(each.start + offset, each.end + offset, each.kind) for each in found]
        released = mask(text[begun:cut], [Finding(each.start - begun, each.end - begun, each.kind) for each in found])
        self.gone += cut - begun
        self._context, self._buffer = text[max(0, cut - _CONTEXT) : cut], text[cut:]
        return released


def moved(place: int, found: Sequence[Finding]) -> int:
    """Where a place of the original text lies in the masked one; within a finding, at its placeholder's end."""
    shift = 0
    for each in found:
        if each.start >= place:
            break
        shift += len(each.kind) + 2 - (min(each.end, place) - each.start)
    return place + shift


def _moved(finding: Finding, origin: Sequence[int], text: str) -> Finding:
    return Finding(origin[finding.start], end_of(origin[finding.end - 1], text), finding.kind)


def _whole(word: str) -> str:
    begin = "" if _unspaced(word[0]) else r"(?<!\w)"
    end = "" if _unspaced(word[-1]) else rf"(?![\w{_MARKS}])"
    return begin + re.escape(word) + end


def _unspaced(char: str) -> bool:
    """Whether words of its script stand without spaces between them, or it is no letter at all."""
    return ord(char) >= 0x2E80 or 0x0E00 <= ord(char) <= 0x0EFF or 0x1000 <= ord(char) <= 0x109F or not char.isalnum()


def _apart(char: str) -> bool:
    return char.isspace() or ord(char) >= 0x2E80


def _token(text: str) -> int:
    """Where the unfinished word at the end begins."""
    place = len(text)
    while place and not _apart(text[place - 1]):
        place -= 1
    return place


def _open(text: str) -> int:
    """Where the unfinished word at the end begins, or the groups before it that it may go on with."""
    end = len(text)
    start = _token(text)
    begun = text.rfind("-----BEGIN", max(0, end - MAX_SPAN))
    if begun >= 0:
        start = min(start, begun)
    begun = min(spelled_from(text, start), born_from(text, start))
    return begun if begun == 0 else min(begun, _grouped(text, start))


def _grouped(text: str, start: int) -> int:
    """Where the unfinished word at the end begins, or the groups of digits before it that it may go on with."""
    end = len(text)
    if start < end and text[start].islower() and (end - start > 4 or start < 5 or not text[start - 2].isdecimal()):
        return start
    before = text[max(0, end - 3 * MAX_SPAN) : start]
    if before.islower() and before[-2:] not in _FOREIGN and not _has_digit(before):
        return start  # neither digits nor a country's code are there to go on with
    held = place = start
    while end - place <= 2 * MAX_SPAN or place == start:
        gap = place
        while gap and place - gap < 2 and text[gap - 1] in _SPACED:
            gap -= 1
        if gap == place or not gap or _apart(text[gap - 1]):
            break
        first = gap
        while first and not _apart(text[first - 1]):
            first -= 1
        word = text[first:gap]
        if word in _DASHES:
            place = first
            continue
        digit = _has_digit(word)
        short = len(word) <= 4 and word.isalnum() and (word.isupper() or (len(word) == 4 and word.isascii()))
        if not digit and not short and word not in "xyz":
            break
        place = first
        if digit or len(word) <= 2:
            held = first
    return held


def _has_digit(word: str) -> bool:
    return has_digit(word) if word.isascii() else _DIGIT.search(word) is not None
