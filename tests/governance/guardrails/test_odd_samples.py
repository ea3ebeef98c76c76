"""What is written otherwise than the book says is found whole, however it comes; what only looks like it is left alone."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.guardrails.rules import Hold, Rules, mask

from .odd_samples import NONE, PEOPLE, SECRETS
from .test_rules import CUTS, in_pieces, through

SAMPLES = [*SECRETS, *PEOPLE]
RULES = Rules("MASK")


@pytest.mark.parametrize(("kind", "around", "value"), SAMPLES)
def test_each_is_found_whole_and_never_leaves_however_it_is_cut(kind: str, around: str, value: str) -> None:
    text = around.format(value)
    assert [(each.kind, text[each.start : each.end]) for each in RULES.find(text)] == [(kind, value)]
    for said in (text, f"Well, {text} and so on.", f"1 to\n{text}\nthe end", f"it is ({text})"):
        masked = mask(said, RULES.find(said))
        if said != text and not text.endswith("\n") and kind != "EMAIL":
            assert value not in masked, said
        assert through(Hold(RULES), list(said)) == masked
        for cut in range(1, len(said)):
            assert through(Hold(RULES), [said[:cut], said[cut:]]) == masked, (said[:cut], said[cut:])


@pytest.mark.parametrize("text", NONE)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert RULES.find(text) == []
    assert through(Hold(RULES), list(text)) == text


WORDS = st.sampled_from(
    [
        *(value for _, _, value in SAMPLES),
        *(around.format(value) for _, around, value in SAMPLES),
        *(around.replace("{}", "").replace("{{", "{").replace("}}", "}") for _, around, _ in SAMPLES),
        "at", "(at)", "dot", "[dot]", "@", ".", "born", "on", "12", "March", "1984", "password:", "is", "a1", "the",
        "-", "/", "_",
    ]
)  # fmt: skip


@given(st.lists(st.tuples(WORDS, st.sampled_from([" ", " ", " ", "\n", "", "  ", ", "])), max_size=9), CUTS)
@settings(max_examples=400, deadline=None)
def test_at_any_chunking_what_leaves_is_the_whole_text_masked(words: list[tuple[str, str]], cuts: list[int]) -> None:
    text = "".join(f"{word}{gap}" for word, gap in words)
    assert through(Hold(RULES), in_pieces(text, cuts)) == mask(text, RULES.find(text)), ascii(text)


HOSTILE = [
    "password:", "secret key ", "pwd=", "=", "token : ", "a1", "a1_", "a1-", " dot ", " at ", "@ ", " @ ", "(at)",
    "a.b dot ", "(dot)", "a at a dot ", "[", "{at", "born ", "born on 12 ", "dob: 1 ", "passport ", "passport A1 ",
    "driver license 1", "dl 1 ", "1_", "1 - ", "AC0", "SK0", "T0B/", "bc1q", "0x0", "eyJaaaaaaaa.", "-00-", "00:",
    "Authorization: ", ".a1.", "!a1", "key-", "sin 1", "1A", "Q~1a",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_text_costs_time_in_proportion(piece: str) -> None:
    spent = []
    for size in (15_000, 60_000):
        text = (piece * (size // len(piece) + 1))[:size]
        tries = []
        for _ in range(3):
            began = time.thread_time()
            RULES.find(text)
            tries.append(time.thread_time() - began)
        spent.append(min(tries))
    assert spent[1] < max(spent[0], 0.004) * 12, spent  # were it quadratic, 16 times
    assert spent[1] < 3, spent
