"""The quick looks that come first let nothing through: each text gets the verdict of the plain, slow search for everything."""

from __future__ import annotations

import re
import sys
import time
import unicodedata

from hypothesis import example, given, settings
from hypothesis import strategies as st

from governance.guardrails import fold, keys, pii, said
from governance.guardrails.pii import Finding, distinct
from governance.guardrails.rules import KEYWORD, Rules, _whole
from governance.guardrails.spelled import spelled

from .test_pii import FOUND

SECRETS = [text for _, text in FOUND]
KEYWORDS = ["project nightfall", "codeword", "c++", "naïve plan", "機密", "tab stop", "ﬁne", "x-ray", "straße"]
PIECES = st.one_of(
    st.sampled_from(
        [
            *SECRETS,
            *KEYWORDS,
            "2024",
            "12",
            " - ",
            "(",
            ")",
            "/",
            ".",
            "--",
            "a1",
            "é",
            "٣",
            "Ⅷ",
            "\u200b",
            "\xad",
            "\\u0040",
            "\\u0031",
            "%40",
            "&#64;",
            "&#65312",
            "&commat;",
            "&nbsp;",
            "&amp;#8203;",
            "\\\\u200b",
            "\\x2e",
            "\\u{1d7d8}",
            "\\ud835\\udfd8",
            "%2540",
            "%e2%80%8b",
            "%C2%A0",
            "%C3%",
            "\u3002",
            "\u2011",
            "\ufe0f",
            "о",
            "Н",
            "ѕ",
            "١",
            " ",
            "\n",
            "\xa0",
        ]
    ),
    st.text(alphabet="0123456789 .-/()aAzZ_:@+", max_size=14),
    st.text(max_size=6),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


def slow_fold(text: str, *, words: bool = False) -> tuple[str, list[int]]:
    """One character, or one escape, after the other."""
    text = "".join(map(plain, text))
    if words:
        text = re.sub(r"\w+", lambda word: latin(word[0], fold._ALIKE), text)
    invisible = fold._INVISIBLE_IN_WORDS if words else fold._INVISIBLE
    folded: list[str] = []
    origin: list[int] = []
    place = 0
    while place < len(text):
        said, width = text[place], 1
        if escape := fold._ESCAPED.match(text, place):
            said, width = "".join(map(plain, fold.stands_for(escape[0]))), len(escape[0])
        form = "NFKD" if words else "NFKC"
        char = "".join("" if invisible.match(each) else unicodedata.normalize(form, each) for each in said)
        for each in char.casefold() if words else char:
            if words and each.isspace():
                if folded and folded[-1] == " ":
                    continue
                each = " "
            folded.append(each)
            origin.append(place)
        place += width
    table = fold._ALIKE if not words else {chr(code): char for code, char in fold._FOLDED_LATIN.items()}
    return re.sub(r"\w+", lambda word: latin(word[0], table), "".join(folded)), origin


def plain(char: str) -> str:
    if char in fold._OTHERWISE:
        return fold._OTHERWISE[char]
    if char in fold._DASHES:
        return "-"
    return str(unicodedata.decimal(char)) if unicodedata.category(char) == "Nd" else char


def latin(word: str, table: dict[str, str]) -> str:
    return "".join(table.get(char, char) for char in word) if re.search("[A-Za-z0-9]", word) else word


def slow_pii(text: str) -> list[Finding]:
    found = list(pii._emails(text)) if "@" in text else []
    found += [Finding(*each, "EMAIL") for each in spelled(text)]
    for pattern in keys.TOKENS.values():
        found += [Finding(m.start(), m.end(), "API_KEY") for m in pattern.finditer(text)]
    for begin in pii._BEGIN.finditer(text):
        end = pii._END.search(text, begin.end())
        found.append(Finding(begin.start(), end.end() if end else len(text), "PRIVATE_KEY"))
    found += [Finding(*each) for each in said.assigned(text)]
    found += [Finding(*each) for each in [*said.born(text), *said.birthday(text)]]
    found += [Finding(m.start(), m.end(), "MAC_ADDRESS") for m in pii._MAC.finditer(text) if len(set(m[0])) > 2]
    for m in pii._IPV6.finditer(text) if pii._COLONS.search(text) else ():
        found += pii._ip(m.start(), m.end(), m[0])
    done = 0
    for run in pii._RUN.finditer(text):
        if run.end() - run.start() > 6 or (run.start() and text[run.start() - 1].isalpha()):
            if run.start() >= done:
                done, more = pii._word(text, run.start(), done)
                found += more
            found += pii._numbers(text, *run.span())
    uuids = [m.span() for m in pii._UUID.finditer(text)]
    return distinct([each for each in found if not any(begin <= each.start and each.end <= end for begin, end in uuids)])


def slow_find(text: str, keywords: list[str]) -> list[Finding]:
    folded, origin = slow_fold(text)
    found = [Finding(origin[each.start], fold.end_of(origin[each.end - 1], text), each.kind) for each in slow_pii(folded)]
    folded, origin = slow_fold(text, words=True)
    for keyword in {" ".join(slow_fold(word, words=True)[0].split()) for word in keywords}:
        found += [
            Finding(origin[m.start()], fold.end_of(origin[m.end() - 1], text), KEYWORD)
            for m in re.finditer(_whole(keyword), folded)
        ]
    return distinct(found)


@given(TEXTS)
@settings(max_examples=600, deadline=None)
@example("12 - 3456789, then 415 555 2671")
@example("1234 (5) 6 a7 9999999")
@example("x0--0 0  0")
def test_every_text_is_judged_as_by_the_slow_search(text: str) -> None:
    assert Rules("MASK", KEYWORDS).find(text) == slow_find(text, KEYWORDS)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_many_keywords_are_found_as_few_are(text: str) -> None:
    many = [*KEYWORDS, *(f"filler{number}" for number in range(40))]
    assert Rules("NONE", many)._by_word
    assert Rules("MASK", many).find(text) == slow_find(text, many)


@given(st.one_of(TEXTS, st.text(max_size=30)), st.booleans())
@settings(max_examples=500, deadline=None)
@example("ann\u3002b", False)
@example("%40 &#64; &#x040; \\u0040\u3002", True)
@example("a%09&#9; \\u0435bc &#1077;b &shy;%ff%fe%c3%28", True)
def test_texts_are_compared_in_the_same_form(text: str, words: bool) -> None:
    folded, origin = fold.fold(text, words=words)
    assert (folded, list(range(len(text))) if origin is None else list(origin)) == slow_fold(text, words=words)


def test_every_invisible_character_and_every_digit_is_known() -> None:
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    assert all(fold._INVISIBLE.match(char) for char in every if unicodedata.category(char) == "Cf")
    digits = [char for char in every if unicodedata.category(char) == "Nd"]
    assert [fold.fold(char)[0] for char in digits] == [str(unicodedata.digit(char)) for char in digits]


def test_what_looks_like_a_finding_over_and_over_costs_time_in_proportion() -> None:
    """Texts made to defeat a quick look: twice the length takes about twice the time."""
    rules = Rules("MASK", KEYWORDS)
    for piece in ("0-0 ", "a0 ", "1 2 3 4 5 6 7 ", "@a.", "sk-", "::1:", "ü 12-34-", "eyJ.", "-----BEGIN ", "project "):
        spent = []
        for size in (20_000, 80_000):
            text = (piece * (size // len(piece) + 1))[:size]
            spent.append(min(_timed(rules, text) for _ in range(3)))
        assert spent[1] < max(spent[0], 0.002) * 16, piece  # quadratic would be 16 times


def _timed(rules: Rules, text: str) -> float:
    start = time.process_time()
    rules.find(text)
    return time.process_time() - start
