"""What is forbidden stays forbidden when it is written to look otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.guardrails.rules import Blocked, Hold, Rules, mask

from .test_rules import CUTS, in_pieces, through

SECRETS = {
    "CREDIT_CARD": "4111 1111 1111 1111",
    "IBAN": "DE89 3704 0044 0532 0130 00",
    "EMAIL": "anna.smith@example.org",
    "US_SSN": "536-22-1234",
    "API_KEY": "sk_live_abcdefghijklmnop1234",
}
UNSEEN = [
    "\u200b",
    "\u200d",
    "\u2060",
    "\ufeff",
    "\xad",
    "\u034f",
    "\ufe0f",
    "\u180e",
    "\u3164",
    "\U000e0041",
    "\u0332",
    "\u20e3",
]
ALIKE = {"a": "а", "e": "е", "o": "о", "p": "р", "c": "с", "x": "х", "i": "і", "s": "ѕ", "E": "Е", "D": "D", "h": "һ", "n": "ո"}
SCRIPTS = [0xFF10, 0x0660, 0x06F0, 0x0966, 0x1D7CE, 0x1D7F6, 0x0E50]


def disguised(text: str, draw: st.DataObject) -> str:
    """The text with every character as it is or in one of its disguises, the first and the last one visible."""
    told = []
    for place, char in enumerate(text):
        ways = [char]
        if char.isdecimal():
            ways += [chr(zero + int(char)) for zero in SCRIPTS]
        elif char in ALIKE:
            ways.append(ALIKE[char])
        elif char.isalpha():
            ways.append(chr(ord(char) + 0xFEE0))
        elif char == "-":
            ways += ["\u2011", "\u2013", "\u2212", "－"]
        elif char == " ":
            ways += ["\u00a0", "\u2009", "\u202f", "\u3000"]
        elif char == "@":
            ways += ["＠", "\\u0040", "﹫"]
        told.append(draw.draw(st.sampled_from(ways)))
        if place < len(text) - 1:
            told.append(draw.draw(st.sampled_from(["", "", "", *UNSEEN])))
    return "".join(told)


@pytest.mark.parametrize("kind", SECRETS)
@given(data=st.data(), cuts=CUTS)
@settings(max_examples=120, deadline=None)
def test_personal_data_in_disguise_is_found_whole_and_never_leaves(kind: str, data: st.DataObject, cuts: list[int]) -> None:
    secret = disguised(SECRETS[kind], data)
    # a word that is wholly of another script is that script's
    if kind == "IBAN":
        secret = "DE" + secret[secret.index(secret.lstrip("DＤEＥЕ" + "".join(UNSEEN))[0]) :]
    text = f"so {secret} and more"
    rules = Rules("MASK")
    assert mask(text, rules.find(text)) == f"so [{kind}] and more", ascii(text)
    assert through(Hold(rules), in_pieces(text, cuts)) == f"so [{kind}] and more", ascii(text)


@given(data=st.data(), cuts=CUTS)
@settings(max_examples=120, deadline=None)
def test_a_keyword_in_disguise_is_refused(data: st.DataObject, cuts: list[int]) -> None:
    rules, text = Rules("NONE", ["Project nightfall"]), ""
    for char in "project nightfall":
        ways = [char, char.upper(), *ALIKE.get(char, "")]
        unseen = ["", "", *(each for each in UNSEEN)]
        text += data.draw(st.sampled_from(ways)) + data.draw(st.sampled_from(unseen))
    assert rules.find(f"the {text} is"), ascii(text)
    hold = Hold(rules)
    with pytest.raises(Blocked):  # noqa: PT012
        for piece in [*in_pieces(f"the {text} is", cuts), ""]:
            _ = hold.push(piece) if piece else hold.end()


def test_what_another_script_says_is_not_latin() -> None:
    """Short words wholly in Cyrillic or Greek keep their letters: a Russian text holds no English keyword by accident."""
    rules = Rules("MASK", ["cop", "hero", "too", "he", "война"])
    for said in ("Все сор из избы", "У него НЕТ", "τους", "В 1914 году", "стр. 12–34", "Ώρα 12:30"):
        assert rules.find(said) == [], said
    for said in ("Это ВОЙНА.", "война-2", "сop"):
        assert rules.find(said), said


@pytest.mark.parametrize("said", ["роре", "the РОРЕ", "ѕоар", "ЅОАР", "соԁеԝоrԁ", "СОDЕWОRD", "ԁοсκеτ", "аtоm томе", "атом томе"])
def test_a_keyword_in_letters_that_only_look_like_its_own(said: str) -> None:
    """UTS #39's whole-script confusables: not one letter of the word need be Latin."""
    rules = Rules("NONE", ["pope", "soap", "codeword", "docket", "atom tome"])
    assert [each.kind for each in rules.find(f"about {said}, please")] == ["KEYWORD"]
    hold = Hold(rules)
    with pytest.raises(Blocked):  # noqa: PT012
        for char in f"about {said}, please":
            hold.push(char)
        hold.end()


def test_keywords_of_another_script_are_found_in_any_case() -> None:
    rules = Rules("NONE", ["атом", "нато"])
    assert [len(rules.find(said)) for said in ("атом", "АТОМ и НАТО", "Атомы", "atom", "HATO")] == [1, 2, 0, 0, 0]


def test_a_short_word_of_another_script_is_a_keyword_where_it_is_listed() -> None:
    alone, both = Rules(keywords=["cop"]), Rules(keywords=["cop", "сор"])
    assert [bool(alone.find(said)) for said in ("a COP", "a сop", "не выноси сор")] == [True, True, False]
    assert [bool(both.find(said)) for said in ("a COP", "a СОР", "сорок")] == [True, True, False]


@pytest.mark.parametrize(
    "said",
    ["4111.1111.1111.1111", "4111 - 1111", "4111\u20111111\u20111111\u20111111", "4111  1111  1111  1111", "3782.822463.10005"],
)
def test_cards_as_people_write_them(said: str) -> None:
    found = Rules("MASK").find(said)
    assert [each.kind for each in found] == ([] if said == "4111 - 1111" else ["CREDIT_CARD"])


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("https://x.test/?mail=anna%40example.org&n=1", "EMAIL"),
        ("anna&#64;example.org", "EMAIL"),
        ("anna&#x40;example.org", "EMAIL"),
        ("anna@example\u3002org", "EMAIL"),
        ("card=4111%201111%201111%201111", "CREDIT_CARD"),
        ("536%2D22%2D1234", "US_SSN"),
        ("tel=%2B49301234567", "PHONE"),
        ("anna&commat;example&period;org", "EMAIL"),
        ("anna&#65312;example.org", "EMAIL"),
        ("anna&#64example.org", "EMAIL"),
        ("anna&amp;#8203;&amp;#x40;example.org", "EMAIL"),
        ("anna%2540example%25252Eorg", "EMAIL"),
        ("anna%EF%BC%A0example.org", "EMAIL"),
        ("an\\u200bna\\\\u0040example\\x2eorg", "EMAIL"),
        ("4111&nbsp;1111&nbsp;1111&nbsp;1111", "CREDIT_CARD"),
        ("4111%C2%A01111%c2%a01111 1111", "CREDIT_CARD"),
        ("\\u{1d7d2}111-1111-1111-\\ud835\\udfcf111", "CREDIT_CARD"),
    ],
)
def test_what_urls_and_pages_escape_is_found_and_never_leaves_however_it_is_cut(said: str, kind: str) -> None:
    text, rules = f"so {said} and 100% more", Rules("MASK")
    masked = mask(text, rules.find(text))
    assert f"[{kind}]" in masked
    for cut in range(1, len(text)):
        assert through(Hold(rules), [text[:cut], text[cut:]]) == masked
    assert through(Hold(rules), list(text)) == masked
    for escaped in ("about?q=project%20nightfall", "project&nbsp;ni&shy;ghtfall", "pr\\u043eject\\x09\\x0anightfall"):
        assert Rules(keywords=["project nightfall"]).find(escaped)
