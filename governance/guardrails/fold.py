"""The form in which texts are compared: what looks like a letter or a digit is one, and what cannot be seen is not there.

Compatibility forms (full width, mathematical, circled) become plain ones by Unicode's NFKC or NFKD, digits of every script those
of ASCII, dashes a hyphen; default-ignorable characters, and in personal data combining marks, vanish; the escapes of ASCII in
JSON, URLs and HTML are what they stand for. Letters of other scripts that look like Latin ones
(https://www.unicode.org/reports/tr39/) count as those where they stand in a word with Latin letters or digits; of a word that has
none, `passing` tells what it looks like.
"""

from __future__ import annotations

import re
import unicodedata
import urllib.parse
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

_DASHES = frozenset(
    "\u058a\u05be\u1400\u1806\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u207b\u208b\u2212\u2e3a\u2e3b\u2e40\u301c\u30a0\ufe58"
    "\ufe63\uff0d"
)

_OTHERWISE = {"\u2800": " ", "\u3002": ".", "\uff0e": ".", "\uff61": "."}

_ALIKE = {  # in either case
    **dict(zip("аеорсухіјѕһԁԛԝӏցհոսօοναικρյ", "aeopcyxijshdqwlghnuoovaikpj", strict=True)),
    **dict(zip("АВЕКМНОРСТУХІЈЅԚԜӀΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEKMHOPCTYXIJSQWIABEZHIKMNOPTYX", strict=True)),
    **dict(zip("ıɑɡ", "iag", strict=True)),
}
_LATIN = str.maketrans(_ALIKE)
_FOLDED_LATIN = str.maketrans(  # where case does not count, a small letter may stand for its capital
    {
        **dict(zip("вкмнтβηιμτυχζ", "bkmhtbhimtuxz", strict=True)),
        **{char: plain for char, plain in _ALIKE.items() if char.islower()},
    }
)
_PASSING = _LATIN | str.maketrans("гσγѵѡϲϳ", "royvwcj")  # for words in which no letter is Latin; as in the table of UTS #39
_PASSING_LOOSELY = _PASSING | _FOLDED_LATIN
_LOOKS = [(chr(code), chr(code).translate(_PASSING_LOOSELY)) for code in _PASSING_LOOSELY if chr(code).islower()]
_LEAST, _LEAST_LOOSELY = 4, 5
"""Letters from which a word that is wholly of letters like Latin ones may be taken for one: Russian and Greek have shorter
words that look like English ones (нет, то, сор, μα), and next to none of that length."""
_LIKE = frozenset(map(chr, [0x131, 0x251, 0x261, *range(0x370, 0x530), *range(0x561, 0x588)]))
_LIKE_IN = re.compile("[\u0131\u0251\u0261\u0370-\u052f\u0561-\u0587]")
_RUN_OF_WORD = re.compile(r"\w+")

_UNSEEN = (  # default-ignorable and format characters
    "\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890-\u089f\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001345f\U0001bca0-\U0001bcaf"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_OVERLAYS = "\u0305\u0320-\u0322\u0332-\u0338\u033f\u0346-\u034a\u035c-\u0362\u0489\u20d0-\u20ff"
_INVISIBLE = re.compile(f"[{_UNSEEN}\u0300-\u036f{_OVERLAYS}]")
_INVISIBLE_IN_WORDS = re.compile(f"[{_UNSEEN}{_OVERLAYS}]")

_ENTITIES = {
    "nbsp": "\u00a0", "ensp": " ", "emsp": " ", "thinsp": " ", "shy": "\u00ad", "zwj": "\u200d", "zwnj": "\u200c",
    "ZeroWidthSpace": "\u200b", "commat": "@", "period": ".", "plus": "+", "hyphen": "-", "dash": "-", "lowbar": "_", "lpar": "(",
    "rpar": ")", "colon": ":", "sol": "/", "num": "#", "equals": "=",
}  # fmt: skip
_BACK, _PER, _AND, _HEX = r"\\{1,8}", "%(?:25){0,3}", "&(?:amp;){0,3}", "[0-9A-Fa-f]"
_ESCAPED = re.compile(  # an escape's own sign may be escaped itself
    rf"{_BACK}u(?P<high>[dD][89abAB]{_HEX}{{2}}){_BACK}u(?P<low>[dD][c-fC-F]{_HEX}{{2}})"
    rf"|{_BACK}u(?P<four>{_HEX}{{4}})|{_BACK}u\{{(?P<braced>{_HEX}{{2,5}})\}}|{_BACK}x(?P<two>{_HEX}{{2}})"
    rf"|(?P<bytes>{_PER}[2-7]{_HEX}|{_PER}[c-fC-F]{_HEX}(?:{_PER}[89abAB]{_HEX}){{1,3}})"
    rf"|{_AND}#(?:[xX]0{{0,6}}(?P<hex>{_HEX}{{2,5}})|0{{0,6}}(?P<decimal>\d{{2,6}}));?|{_AND}(?P<named>{'|'.join(_ENTITIES)});"
)
_BEGUN = re.compile(rf"(?:\\+[ux]?\{{?{_HEX}{{0,5}}(?:\\+u?{_HEX}{{0,3}})?|(?:%{_HEX}{{0,2}}){{1,16}}|&[#;0-9A-Za-z]{{0,32}})\Z")
_PERCENT = re.compile(rf"%[2-7c-fC-F]{_HEX}")
_ENTITY = re.compile(r"&(?:#|[A-Za-z]{2,14};)")
_RUN_OF_SPACES = re.compile(r"\s\s+|[^\S ]")
_SPACES = frozenset("\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f")
_MIXED = re.compile(r"[A-Za-z0-9][^\WA-Za-z0-9]|[^\WA-Za-z0-9][A-Za-z0-9]")
_KINDS = bytes(97 if chr(code).isalnum() else 111 if chr(code) in "?_" else 45 for code in range(128)) + bytes(128)
_FEW = 48  # characters to replace, one after the other; of more, each of the text is looked at

_Spans = list[tuple[int, int, int]]
"""Begin and end of what was replaced by another number of characters, and that number; in order."""


def fold(text: str, *, words: bool = False) -> tuple[str, Sequence[int] | None]:
    """The text as it is compared, and for each of its characters where it came from (None: the same place).

    For `words` case and runs of spaces count no more, and combining marks do.
    """
    escaped = escapes(text)
    plain = text.isascii()
    if not escaped and plain and not (words and _oddly_spaced(text)):
        return (text.casefold() if words else text), None
    seen = set(text)
    odd = set() if plain else {char for char in seen if char > "\x7f"}
    if digits := {char: plainer for char in odd if (plainer := _plain(char)) != char}:
        text = _replaced(text, digits)
        odd = (odd - digits.keys()) | set(digits.values())
        escaped = escaped or escapes(text)
    if words and odd & _LIKE:
        text = _latin(text, _LATIN)  # as long as capitals can be told from small letters
    steps: list[Callable[[], _Spans]] = []
    changed = {char: form for char in odd if (form := _form(char, words)) != char}
    if escaped or any(len(form) != 1 for form in changed.values()):
        steps.append(partial(_spans, text, changed, words))
    if escaped:
        stood = [_stood(m[0], words) for m in _ESCAPED.finditer(text)]
        odd = odd.union(*stood)
        text = _unescaped(text, changed, words)
    elif changed:
        text = _replaced(text, changed)
    if words:
        text = text.casefold()  # of letters of ASCII: all else is folded, and keeps its length
        if "  " in text or seen & _SPACES:
            steps.append(partial(_runs_of_spaces, text))
            text = _RUN_OF_SPACES.sub(" ", text)
    if _LIKE & odd.union(*changed.values()):
        text = _latin(text, _FOLDED_LATIN if words else _LATIN)
    return text, _Origin(len(text), steps) if steps else None


class _Origin(Sequence[int]):
    """Where each character of a folded text came from, worked out when first asked: most texts hold nothing forbidden."""

    def __init__(self, size: int, steps: list[Callable[[], _Spans]]) -> None:
        self._size, self._steps = size, steps
        self._replaced: list[tuple[list[int], _Spans]] | None = None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(self._size))]
        place = range(self._size)[place]
        if self._replaced is None:
            self._replaced = [_begins(step()) for step in reversed(self._steps)]
        for begins, spans in self._replaced:
            last = bisect_right(begins, place) - 1
            if last >= 0:
                start, end, size = spans[last]
                beyond = place - begins[last] - size
                place = start if beyond < 0 else end + beyond
        return place


def _begins(spans: _Spans) -> tuple[list[int], _Spans]:
    """Where each span's replacement begins in the text made."""
    begins, shift = [], 0
    for start, end, size in spans:
        begins.append(start + shift)
        shift += size - (end - start)
    return begins, spans


def _spans(text: str, changed: Mapping[str, str], words: bool) -> _Spans:
    found = [(place, place + 1, len(form)) for place, char in enumerate(text) if len(form := changed.get(char, char)) != 1]
    return sorted([*found, *((m.start(), m.end(), len(_stood(m[0], words))) for m in _ESCAPED.finditer(text))])


def _runs_of_spaces(text: str) -> _Spans:
    return [(m.start(), m.end(), 1) for m in _RUN_OF_SPACES.finditer(text)]


def _replaced(text: str, changed: Mapping[str, str]) -> str:
    """The text with what each character is changed to."""
    if len(changed) > _FEW or any(part in changed for form in changed.values() for part in form):
        return "".join([changed.get(char, char) for char in text])
    for char, form in changed.items():
        text = text.replace(char, form)
    return text


def _unescaped(text: str, changed: Mapping[str, str], words: bool) -> str:
    """As `_replaced`, and with what escapes stand for; these are not read again."""
    parts, last = [], 0
    for escape in _ESCAPED.finditer(text):
        parts += [_replaced(text[last : escape.start()], changed), _stood(escape[0], words)]
        last = escape.end()
    return "".join([*parts, _replaced(text[last:], changed)])


@lru_cache(maxsize=4096)
def _stood(escape: str, words: bool) -> str:
    """What an escape is compared as."""
    forms = [_form(_plain(char), words) if char > "\x7f" else char for char in stands_for(escape)]
    return "".join(" " if words and form.isspace() else form for form in forms)


def stands_for(escape: str) -> str:
    """The characters that an escape is written for; a question mark for what is none, such as a half of one."""
    m = _ESCAPED.fullmatch(escape)
    assert m is not None
    if m["bytes"]:
        return urllib.parse.unquote(m["bytes"].replace("%25", "%").replace("%25", "%"), errors="replace").replace("\ufffd", "?")
    if m["named"]:
        return _ENTITIES[m["named"]]
    if m["high"]:
        return bytes.fromhex(m["high"] + m["low"]).decode("utf-16-be")
    code = int(m["decimal"]) if m["decimal"] else int(m["four"] or m["braced"] or m["two"] or m["hex"], 16)
    return "?" if 0xD800 <= code < 0xE000 else chr(code)


@lru_cache(maxsize=4096)
def _plain(char: str) -> str:
    """A digit of any script as ASCII's, a dash as a hyphen, the blank of braille as a space, the full stops that part a domain's
    labels (RFC 3490) as a dot."""
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    return "-" if char in _DASHES else _OTHERWISE.get(char, char)


@lru_cache(maxsize=32768)
def _form(char: str, words: bool) -> str:
    """What a character beyond ASCII is compared as."""
    if (_INVISIBLE_IN_WORDS if words else _INVISIBLE).match(char):
        return ""
    if not words:
        return unicodedata.normalize("NFKC", char)
    folded = unicodedata.normalize("NFKD", char).casefold()
    return "".join(" " if each.isspace() else each for each in folded)


def escapes(text: str) -> bool:
    """Whether there may be escapes in a text. The first looks are many times as quick as the others."""
    return (
        ("\\" in text and ("\\u" in text or "\\x" in text))
        or ("%" in text and _PERCENT.search(text) is not None)
        or ("&" in text and _ENTITY.search(text) is not None)
    )


def escaping(text: str) -> int:
    """Where an escape at the end of a text begins that more text could complete, or change; its length where none does."""
    tail = text[-64:]
    if "\\" in tail or "%" in tail or "&" in tail:
        m = _BEGUN.search(tail)
        if m:
            return len(text) - len(tail) + m.start()
    return len(text)


def passing(folded: str) -> str | None:
    """A text folded for words with Latin letters for all that look like them, of the same length; None where none does."""
    if folded.isascii() or not _LIKE_IN.search(folded):
        return None
    for char, plain in _LOOKS:  # many times as quick as str.translate
        if char in folded:
            folded = folded.replace(char, plain)
    return folded


def passes(written: str, seen: str) -> bool:
    """Whether what `passing` made of a part of a text may be what is meant by it, and no word of another language."""
    letters = sum(map(str.isalpha, seen))
    return letters >= _LEAST_LOOSELY or (letters >= _LEAST and written.translate(_PASSING) == seen)


def end_of(place: int, text: str) -> int:
    """Where what is one character folded, and began at a place of the text, ends."""
    escape = _ESCAPED.match(text, place) if text[place] in "\\%&" else None
    return escape.end() if escape else place + 1


def _latin(text: str, table: dict[int, str]) -> str:
    """With Latin letters for those that look like them, in words that are not wholly of another script."""
    kinds = text.encode("ascii", "replace").translate(_KINDS)  # most texts have no such word, and this look is quick
    seams: list[int] = []
    for pair in (b"ao", b"oa"):
        place = kinds.find(pair)
        while place >= 0:
            seams.append(place)
            place = kinds.find(pair, place + 1)
    parts, last = [], 0
    for start in sorted(seams):
        if start < last or not _MIXED.match(text, start):
            continue
        while start > last and (text[start - 1].isalnum() or text[start - 1] == "_"):
            start -= 1
        end = _RUN_OF_WORD.match(text, start).end()  # type: ignore[union-attr] # it begins with a letter or a digit
        parts += [text[last:start], text[start:end].translate(table)]
        last = end
    return "".join([*parts, text[last:]]) if parts else text


def _oddly_spaced(text: str) -> bool:
    """Whether an ASCII text has other spaces than single ones; written out, because it is asked for every chunk."""
    return (
        "\n" in text
        or "\t" in text
        or "\r" in text
        or "\x0b" in text
        or "\x0c" in text
        or "\x1c" in text
        or "\x1d" in text
        or "\x1e" in text
        or "\x1f" in text
        or "  " in text
    )
