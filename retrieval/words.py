"""Text to the terms that lexical search counts: stemmed by language, identifiers and code kept whole beside their parts."""

from __future__ import annotations

import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any
from zlib import crc32

import numpy as np

VERSION = "2"
"""Raised when the same text may now give other terms."""

WORD = re.compile(r"\w+(?:[._\-/:@+]+\w+)*|\w+[+#]+")
_PART = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{2,}")
_LONGEST = 64
"""Characters of a word that count; more is data, not a word."""

STOPWORDS = frozenset(
    """a about above after again all am an and any are as at be because been before being below between both but by can could
    did do does doing down during each few for from further had has have having he her here hers him his how i if in into
    is it its itself just me more most my no nor not now of off on once only or other our ours out over own same she
    should so some such than that the their them then there these they this those through to too under until up very was
    we were what when where which while who whom why will with would you your yours""".split()  # noqa: SIM905
)

LANGUAGES = (
    "english",
    "german",
    "french",
    "spanish",
    "italian",
    "portuguese",
    "dutch",
    "swedish",
    "danish",
    "finnish",
    "russian",
)
_COMMON = {
    "english": "the of and to in is that for it was with as on be at by this are or from have not which you what how who why",
    "german": "der die und das ist nicht mit den von zu ein eine dem des auf für wie wird sich auch welche wann wurde",
    "french": "le les et des est une dans pour que qui au sur par pas du ce avec sont cette quel quelle ont",
    "spanish": "el los las y una que es por con para del se su al lo como más fue qué quién cuál cuándo entre",
    "italian": "il di che è gli per una della con non sono nel alla dei anche le più chi quale come dal",
    "portuguese": "o os que não uma para com é em dos das por ao mais se foi como são pelo qual quem",
    "dutch": "de het een en van is dat op te zijn niet met voor aan er wordt bij ook naar wie welke",
    "swedish": "och att det som en är på för av med den till inte har ett var om från vilken",
    "danish": "og at det er en til af på som med for ikke der den har et fra var hvad hvem",
    "finnish": "ja on ei se että oli hän mutta kun joka ovat tai kuin myös sen mikä kuka",
    "russian": "и в не на что с по как это от из для он к был его кто когда где",
}
_VOTES: dict[str, tuple[int, ...]] = {}
for _number, _language in enumerate(LANGUAGES):
    for _word in _COMMON[_language].split():
        _VOTES[_word] = (*_VOTES.get(_word, ()), _number)


LATIN = "\u024f"
"""The last letter of Latin Extended-B."""


def _votes(text: str) -> list[int]:
    votes = [0] * len(LANGUAGES)
    for word in _PART.findall(text[:4000].lower()):
        for number in _VOTES.get(word, ()):
            votes[number] += 1
    return votes


def language(text: str) -> int:
    """Number in `LANGUAGES` of the language whose commonest words occur most; English where none does."""
    votes = _votes(text)
    return max(range(len(votes)), key=lambda number: (votes[number], -number))


def naming(word: str) -> bool:
    """Whether a written word names one thing, as a code, a path or an identifier does: by a digit, or by its several parts."""
    return len(_PART.findall(word)) > 1 or _CAMEL.search(word) is not None or any(letter.isdigit() for letter in word)


def foreign(question: str, commonest: int) -> bool:
    """Whether a question is in another language than English: by its script, by two of its commonest words, or by less where it
    is asked of rows whose `commonest` language is that one.
    """
    letters = [letter for letter in question[:4000] if letter.isalpha()]
    if 2 * sum(letter > LATIN for letter in letters) > len(letters):
        return True
    votes = _votes(question)
    if votes[0] >= max(votes[1:]):
        return commonest != 0 and not any(votes)
    return max(votes) > 1 or votes[commonest] == max(votes)


_stemmers: dict[int, Any] = {}
_lock = threading.Lock()  # a Snowball stemmer serves one thread at a time; the cache above it keeps this rare


def _stem(word: str, number: int) -> str:
    with _lock:
        stemmer = _stemmers.get(number)
        if stemmer is None:
            import Stemmer

            stemmer = _stemmers[number] = Stemmer.Stemmer(LANGUAGES[number])
        return stemmer.stemWord(word)


def fold(word: str) -> str:
    """Lower case, without accents."""
    word = word.lower()
    if word.isascii():
        return word
    return "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))


@lru_cache(262_144)
def terms(word: str, number: int) -> tuple[int, ...]:
    """The terms one written word stands for, as 32-bit hashes: each part stemmed, and the whole where it has several parts."""
    word = word[:_LONGEST]
    found: list[str] = []
    parts = _PART.findall(word)
    for part in parts:
        lower = part.lower()
        if _CJK.search(part):
            found.extend(part[i : i + 2] for i in range(max(1, len(part) - 1)))
        elif lower.isalpha():
            found.append(fold(_stem(lower, number)))
            pieces = _CAMEL.split(part) if not part.isupper() and part != lower and part[1:] != lower[1:] else ()
            if len(pieces) > 1 and min(map(len, pieces)) > 2:  # "getUser" is two words, "mRNA" and "iPhone" are one
                found.append("=" + lower)
                found.extend(fold(_stem(piece.lower(), number)) for piece in pieces)
        else:
            found.append(fold(lower))
    if len(parts) > 1 or word[-1:] in "+#":
        found.append("=" + fold(word))
    return tuple(dict.fromkeys(crc32(term.encode("utf-8", "replace")) for term in found))


def counted(text: str, number: int) -> Counter[int]:
    """How often each term occurs in a text of a language."""
    found: Counter[int] = Counter()
    for word, count in Counter(WORD.findall(text)).items():
        for term in terms(word, number):
            found[term] = found.get(term, 0) + count
    return found


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one chunk: `ids` with how often each occurs in its `text`, and in the title and headings above it."""

    language: int
    ids: np.ndarray
    text: np.ndarray
    context: np.ndarray


def encode(text: str, context: str = "", number: int | None = None) -> bytes:
    """A chunk's terms as they are stored: language and count (4 bytes each), hashes, then both counts of each, a byte each."""
    number = language(text) if number is None else number
    inside, above = counted(text, number), counted(context, number)
    ids = list(dict.fromkeys(chain(inside, above)))
    rows = (bytes([min(part.get(i, 0), 255) for i in ids]) for part in (inside, above))
    return b"".join((np.array([number, len(ids), *ids], "<u4").tobytes(), *rows))


@dataclass(frozen=True, slots=True)
class ManyTerms:
    """The terms of many chunks, one after the other: each chunk's language (-1: none) and how many, each term's counts."""

    languages: np.ndarray
    sizes: np.ndarray
    ids: np.ndarray
    text: np.ndarray
    context: np.ndarray


def decode_many(stored: Sequence[bytes]) -> ManyTerms:
    """What `encode` made of many chunks; b"" stands for one without terms."""
    sizes = np.fromiter(((len(each) - 8) // 6 if each else 0 for each in stored), np.int64, len(stored))
    heads = np.fromiter((8 if each else 0 for each in stored), np.int64, len(stored))
    # Which part of its chunk's record each byte is of: the head, the hashes, the counts in the text, those above it.
    spans = np.stack((heads, 4 * sizes, sizes, sizes), 1).ravel()
    parts = np.repeat(np.tile(np.arange(4, dtype=np.uint8), len(stored)), spans)
    joined = np.frombuffer(b"".join(stored), np.uint8)
    languages = np.full(len(stored), -1, np.int64)
    languages[heads > 0] = joined[parts == 0].view("<u4")[::2]
    return ManyTerms(languages, sizes, joined[parts == 1].view("<u4"), joined[parts == 2], joined[parts == 3])


def decode(stored: bytes) -> Terms:
    number, count = np.frombuffer(stored, "<u4", 2)
    at = 8 + 4 * int(count)
    ids = np.frombuffer(stored, "<u4", count, 8)
    bytes_ = np.frombuffer(stored, np.uint8, 2 * int(count), at)
    return Terms(int(number), ids, bytes_[:count], bytes_[count:])
