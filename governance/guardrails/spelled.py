"""E-mail addresses as people write them so that programs do not see them: `ann (at) example dot com`, `ann @ example . com`."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOP = (
    "(?:com|org|net|edu|gov|mil|int|info|biz|io|ai|dev|app|eu|de|uk|us|fr|es|it|nl|be|ch|at|se|no|dk|fi|pl|pt|br|mx|ar|cl|in|jp|cn|kr"
    r"|au|nz|ca|co|me|tv|za|ru|ua|cz|ie|gr|hu|ro|tr|il)(?![\w-])"
)
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?"
_BETWEEN = r"[(\[{<](?:dot|\.|punkt|point|punto|ponto)[)\]}>]"
_SAID = rf"(?: dot | {_BETWEEN} |{_BETWEEN})"
_DOMAIN = {  # after a plain `at`, which says little, the dots must be said; after others they may be written
    True: re.compile(rf"{_LABEL}(?:{_SAID}{_LABEL}){{0,3}}{_SAID}{_TOP}", re.IGNORECASE),
    False: re.compile(rf"{_LABEL}(?:(?:{_SAID}| \. |\.){_LABEL}){{0,3}}(?:{_SAID}| \. |\.){_TOP}", re.IGNORECASE),
}
_BRACKETS = {sign: re.compile(rf"\{sign}(?=[AaDdPp@Ää])(?i:at|@|ät|arroba|dot|punkt)[)\]}}>]") for sign in "([{<"}
_LOCAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")
_OTHERS = (
    "a an and are as at available be but by for found from he her here him hosted i in is it look looked looking me not of on "
    "online or out she site server so that the their them there they this to up us visit was we were with you your"
)
_NOBODY = frozenset(_OTHERS.split())
"""Words before `at` that are nobody's name."""


def _said(*words: str) -> frozenset[str]:
    """The words, and them in brackets."""
    return frozenset([words[0], words[1], *(f"{begin}{word}{end}" for begin, end in ("()", "[]", "{}", "<>") for word in words)])


_ATS, _DOTS = _said("at", "@", "ät", "arroba"), _said("dot", ".", "punkt", "point", "punto", "ponto")
_AT_IN = re.compile(r"@|[(\[{<](?:at|ät|arroba)[)\]}>]| at ", re.IGNORECASE)
_BEGUN = frozenset(word[:size] for word in _ATS for size in range(len(word) + 1))
_FAR, _WORDS = 128, 10
"""Characters and words that an address has at most."""


def spelled(text: str) -> Iterator[tuple[int, int]]:
    """Where such addresses lie."""
    if "@" in text:
        place = text.find(" @ ")
        while place >= 0:
            yield from _around(text, place, place + 3, said=False)
            place = text.find(" @ ", place + 1)
    for sign, pattern in _BRACKETS.items():
        if sign in text:
            for m in pattern.finditer(text):
                if m[0][1].lower() in "dp":
                    yield from _before(text, m.start())
                    continue
                spaced = text[m.start() - 1 : m.start()] == " " == text[m.end() : m.end() + 1]
                yield from _around(text, m.start() - spaced, m.end() + spaced, said=False)
    place = text.find(" dot ")
    while place >= 0:
        yield from _before(text, place)
        place = text.find(" dot ", place + 1)


def _before(text: str, dot: int) -> Iterator[tuple[int, int]]:
    """With the `at` that stands before a dot."""
    floor = max(0, dot - _FAR)
    if (place := text.rfind(" at ", floor, dot)) >= 0:
        yield from _around(text, place, place + 4, said=True)
    if (place := text.rfind("@", floor, dot)) >= 0:
        yield from _around(text, place, place + 1, said=True)


def _around(text: str, at: int, after: int, *, said: bool) -> Iterator[tuple[int, int]]:
    start = at
    while start > max(0, at - 64) and text[start - 1] in _LOCAL:
        start -= 1
    if start == at or text[start:at].lower() in _NOBODY or (start and text[start - 1].isalnum()):
        return
    domain = _DOMAIN[said].match(text, after)
    if domain and domain.end() - start <= _FAR and text.count(" ", start, domain.end()) < _WORDS:
        yield start, domain.end()


def open_from(text: str, start: int) -> int:
    """Where an address may have begun that more text could complete; `start`, where the unfinished word begins, if none has."""
    tail = text[-_FAR:]
    if ("@" in tail or " at " in tail or "(" in tail or "[" in tail or "{" in tail or "<" in tail) and _AT_IN.search(tail):
        words = tail.split(" ")[-_WORDS - 1 :]
        for number in range(len(words) - 2, -1, -1):
            if words[number + 1].lower() in _ATS and _goes_on(words[number + 2 :]):
                return _name_from(text, len(text) - sum(map(len, words[number + 1 :])) - len(words) + number + 1, start)
            if words[number].lower() not in _ATS and _AT_IN.search(words[number]) and _goes_on(["", *words[number + 1 :]]):
                return min(start, len(text) - sum(map(len, words[number:])) - len(words) + number + 1)
    if start and text[start - 1] == " " and (start == len(text) or text[start:].lower() in _BEGUN):
        return _name_from(text, start - 1, start)
    return start


def _goes_on(words: list[str]) -> bool:
    """Whether these are labels and dots in turns, the last one unfinished."""
    return all((word.lower() in _DOTS) == bool(place % 2) for place, word in enumerate(words[:-1]))


def _name_from(text: str, end: int, start: int) -> int:
    """Where the word begins that ends there, if it may be the name in an address."""
    begin = end
    while begin > 0 and text[begin - 1] in _LOCAL and end - begin < 64:
        begin -= 1
    return start if begin == end or text[begin:end].lower() in _NOBODY else min(begin, start)
