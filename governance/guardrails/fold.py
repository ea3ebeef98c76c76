"""The form in which texts are compared: what looks like a letter or a digit is one, and what cannot be seen is not there.

Compatibility forms (full width, mathematical, circled) become plain ones by Unicode's NFKC or NFKD, digits of every script those
of ASCII, dashes a hyphen; default-ignorable characters, and in personal data combining marks, vanish; JSON's escapes of ASCII are
what they stand for. Letters of other scripts that look like Latin ones (https://www.unicode.org/reports/tr39/) count as those
where they stand in a word with Latin letters or digits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_DASHES = frozenset(
    "\u058a\u05be\u1400\u1806\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u207b\u208b\u2212\u2e3a\u2e3b\u2e40\u301c\u30a0\ufe58"
    "\ufe63\uff0d"
)


class _Plain(dict[int, int]):
    """For `str.translate`: digits of any script as ASCII's, dashes as a hyphen, the blank of braille as a space."""

    def __missing__(self, code: int) -> int:
        char = chr(code)
        digit = unicodedata.decimal(char, None)
        plain = 48 + digit if digit is not None else 45 if char in _DASHES else 32 if code == 0x2800 else code
        if code < 0x3000:
            self[code] = plain
        return plain


_PLAIN = _Plain()
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
_LIKE = re.compile("[\u0131\u0251\u0261\u0370-\u052f\u0561-\u0587]")
_RUN_OF_WORD = re.compile(r"\w+")
_LATIN_IN = re.compile(r"[A-Za-z0-9]")

_UNSEEN = (  # default-ignorable and format characters
    "\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890-\u089f\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001345f\U0001bca0-\U0001bcaf"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_OVERLAYS = "\u0305\u0320-\u0322\u0332-\u0338\u033f\u0346-\u034a\u035c-\u0362\u0489\u20d0-\u20ff"
_INVISIBLE = re.compile(f"[{_UNSEEN}\u0300-\u036f{_OVERLAYS}]")
_INVISIBLE_IN_WORDS = re.compile(f"[{_UNSEEN}{_OVERLAYS}]")

_ESCAPE = r"\\u00[2-7][0-9A-Fa-f]"
_ESCAPED = re.compile(_ESCAPE)
_ODD = re.compile(rf"[^\x00-\x7f]|{_ESCAPE}")
_ODD_WORDS = re.compile(rf"[^\x00-\x7f]|\s|{_ESCAPE}")  # and all that may be, or stand beside, a run of spaces


def fold(text: str, *, words: bool = False) -> tuple[str, Sequence[int] | None]:
    """The text as it is compared, and for each of its characters where it came from (None: the same place).

    For `words` case and runs of spaces count no more, and combining marks do.
    """
    escaped = "\\" in text and "\\u00" in text  # the first look is many times as quick
    if not escaped and text.isascii() and not (words and _oddly_spaced(text)):
        return (text.casefold() if words else text), None
    if not text.isascii():
        text = text.translate(_PLAIN)
        text = _latin(text, _LATIN) if words else text  # as long as capitals can be told from small letters
    if not words and not escaped and unicodedata.is_normalized("NFKC", text) and not _INVISIBLE.search(text):
        return _latin(text, _LATIN), None
    folded: list[str] = []
    origin: list[int] = []
    invisible = _INVISIBLE_IN_WORDS if words else _INVISIBLE
    last, spaced = 0, False
    for odd in (_ODD_WORDS if words else _ODD).finditer(text):
        place, char = odd.start(), odd[0]
        if place > last:
            folded.append(text[last:place].casefold() if words else text[last:place])
            origin.extend(range(last, place))
            spaced = False
        last = odd.end()
        if len(char) > 1:
            char = chr(int(char[2:], 16))
        elif ord(char) > 127:
            if invisible.match(char):
                continue
            char = unicodedata.normalize("NFKD" if words else "NFKC", char)
        if words:
            char = char.casefold()
            if char.isspace():
                if spaced:
                    continue
                char, spaced = " ", True
            else:
                spaced = char[-1:] == " " if char else spaced
        folded.append(char)
        origin.extend([place] * len(char))
    if last < len(text):
        folded.append(text[last:].casefold() if words else text[last:])
        origin.extend(range(last, len(text)))
    return _latin("".join(folded), _FOLDED_LATIN if words else _LATIN), origin


def end_of(place: int, text: str) -> int:
    """Where what is one character folded, and began at a place of the text, ends."""
    escape = _ESCAPED.match(text, place) if text[place] == "\\" else None
    return escape.end() if escape else place + 1


def _latin(text: str, table: dict[int, str]) -> str:
    """With Latin letters for those that look like them, in words that are not wholly of another script."""
    if not _LIKE.search(text):
        return text
    return _RUN_OF_WORD.sub(lambda word: word[0].translate(table) if _LATIN_IN.search(word[0]) else word[0], text)


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
