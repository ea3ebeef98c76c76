from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.guardrails.rules import Blocked, Hold, Rules, fold, mask, moved, summary

from .test_pii import FOUND

SECRETS = [text for _, text in FOUND]
WORDS = st.sampled_from(
    [
        *SECRETS,
        "the",
        "In",
        "2024",
        "UK",
        "IBM AND",
        "call",
        "3",
        "12",
        "-",
        "\n",
        " ",
        "日本",
        "john\u200b@x.org",
        "ａｎｎａ@example.org",
    ]
)
TEXTS = st.lists(WORDS, max_size=14).map(" ".join)
CUTS = st.lists(st.integers(1, 25), min_size=1, max_size=60)


def in_pieces(text: str, cuts: list[int]) -> list[str]:
    pieces, place, number = [], 0, 0
    while place < len(text):
        size = cuts[number % len(cuts)]
        pieces.append(text[place : place + size])
        place, number = place + size, number + 1
    return pieces


def through(hold: Hold, pieces: list[str]) -> str:
    return "".join([*map(hold.push, pieces), hold.end()])


@given(TEXTS, CUTS)
@settings(max_examples=400, deadline=None)
def test_at_any_chunking_what_leaves_is_the_whole_text_masked(text: str, cuts: list[int]) -> None:
    rules = Rules("MASK")
    hold = Hold(rules)
    found = rules.find(text)
    assert through(hold, in_pieces(text, cuts)) == mask(text, found)
    assert hold.found == found


@given(TEXTS, st.sampled_from(SECRETS), TEXTS, CUTS)
@settings(max_examples=200, deadline=None)
def test_a_planted_secret_never_leaves(before: str, secret: str, after: str, cuts: list[int]) -> None:
    text = f"{before} so {secret} and {after}"
    sent = through(Hold(Rules("MASK")), in_pieces(text, cuts))
    assert secret not in sent
    told = ""
    hold = Hold(Rules("BLOCK"))
    with pytest.raises(Blocked, match=r"^[A-Z_, x0-9]+$"):  # noqa: PT012
        for piece in [*in_pieces(text, cuts), ""]:
            told += hold.push(piece) if piece else hold.end()
    assert Rules("MASK").find(told) == []


@given(
    st.lists(
        st.sampled_from(["project", "Nightfall", "night", "fall", "PROJECT", "is", "bombard", "\n", "機", "密"]), max_size=12
    ),
    CUTS,
)
@settings(max_examples=200, deadline=None)
def test_a_keyword_never_leaves_whole(words: list[str], cuts: list[int]) -> None:
    rules = Rules("NONE", ["Project  nightfall", "bomb", "機密"])
    text = " ".join(words).replace("機 密", "機密")
    hold, told = Hold(rules), ""
    try:
        for piece in in_pieces(text, cuts):
            told += hold.push(piece)
        told += hold.end()
        assert rules.find(text) == []
        assert told == text
    except Blocked:
        assert rules.find(text) != []
    assert rules.find(told) == []


def test_keywords_are_whole_words_in_any_case_width_and_spacing() -> None:
    rules = Rules("NONE", ["nightfall", "café"])
    for said in ("NIGHTFALL!", "the ｎｉｇｈｔｆａｌｌ", "night\u200bfall", "CAFÉ", "cafe\u0301", "a (nightfall)"):
        assert rules.find(said), said
    for said in ("nightfalls", "knightfall", "cafe", "night fall"):
        assert rules.find(said) == [], said


def test_prose_leaves_a_word_at_a_time() -> None:
    hold = Hold(Rules("MASK", ["project nightfall"]))
    assert hold.push("The quick ") == "The "  # which might be `quick at example dot org`
    assert hold.push("bro") == "quick "
    assert hold.push("wn fox, a ") == "brown fox, a "
    assert hold.push("project ") == ""
    assert hold.push("plan, so") == "project plan, "
    assert hold.push(" it") == "so "


def test_a_text_without_spaces_is_not_held_for_ever() -> None:
    hold = Hold(Rules("MASK"))
    sent = "".join(hold.push("a" * 1_000) for _ in range(20))
    assert len(sent) > 10_000
    assert sent + hold.end() == "a" * 20_000


def test_a_private_key_is_held_to_its_end() -> None:
    key = "-----BEGIN PRIVATE KEY-----\n" + "MIIE abc\n" * 50 + "-----END PRIVATE KEY-----"
    assert through(Hold(Rules("MASK")), list(f"here: {key} end")) == "here: [PRIVATE_KEY] end"
    assert through(Hold(Rules("MASK")), list(f"here: {key[:200]}")) == "here: [PRIVATE_KEY]"


def test_places_move_with_what_is_masked() -> None:
    rules, text = Rules("MASK"), "To a@example.org: yes [1]"
    found = rules.find(text)
    masked = mask(text, found)
    assert masked == "To [EMAIL]: yes [1]"
    begin = moved(text.index("[1]"), found)
    assert masked[begin : moved(len(text), found)] == "[1]"
    assert summary([*found, *found]) == "EMAIL x2"


def test_folding_keeps_where_each_character_came_from() -> None:
    folded, origin = fold("Ｆ\u200boo\n\nBar", words=True)
    assert folded == "foo bar"
    assert origin is not None
    assert [origin[0], origin[1], origin[4]] == [0, 2, 6]
