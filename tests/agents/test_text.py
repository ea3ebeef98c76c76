from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agents.text import coverage, names, numbers, stem, terms, units, weight, words


def test_one_stem_for_one_word() -> None:
    for family in (
        "create created creates creating",
        "install installation installs",
        "delete deleted deletes deleting",
        "study studies",
    ):
        assert len({stem(w) for w in family.split()}) == 1, family


def test_rare_words_weigh_more() -> None:
    assert weight("the") == 0 < weight("people") < weight("legislation") < weight("deltalake") == 1


def test_names_come_apart_and_numbers_are_normal() -> None:
    assert words("DeltaTable.optimize_all") == ("delta", "table", "optimize", "all")
    assert numbers("Three of 1,200 in 2.5 years") == {"3", "1200", "2.5"}
    assert "paris" in names("the city of Paris")
    assert coverage(terms("red cars"), terms("A red car")) == 1


def test_units_of_markdown() -> None:
    text = "# A\n\nOne. Two e.g. this.\n\n- item\n\n```py\ncode. here\n```\n\n| a | b |\n|---|---|\n| c | d |\n"
    assert [(u.kind, text[u.start : u.end]) for u in units(text)] == [
        ("heading", "A"),
        ("prose", "One."),
        ("prose", "Two e.g. this."),
        ("item", "item"),
        ("code", "```py\ncode. here\n```"),
        ("table", "| a | b |"),
        ("table", "| c | d |"),
    ]


def test_a_passage_that_begins_in_a_code_block() -> None:
    text = "x = 1\n```\n\nAfter it.\n"
    assert [u.kind for u in units(text)] == ["code", "prose"]


@given(st.text(alphabet="ab.# \n`-|=1[]\t", max_size=120))
def test_units_are_ordered_and_within_the_text(text: str) -> None:
    at = 0
    for unit in units(text):
        assert at <= unit.start < unit.end <= len(text)
        at = unit.end
