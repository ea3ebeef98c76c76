"""Filters of both grammars, drawn at random, against SQLite's and Python's reading of them; and what they may cost."""

from __future__ import annotations

import random
import re
import sqlite3
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from retrieval import filters
from retrieval.errors import BadRequest

WORDS = ("red tile", "Red", "grün", "50%", "a_b", "back\\slash", "it's", "", "日本", "line\nbreak", "a.b*c")
COLUMNS = ("s", "n", "mixed")


def table(rows: list[dict[str, Any]]) -> Any:
    fields = SimpleNamespace(column=lambda name: [row.get(name) for row in rows])
    return SimpleNamespace(size=len(rows), fields=fields, cache={})


def drawn(draw: random.Random, count: int = 60) -> list[dict[str, Any]]:
    number = lambda: draw.choice((None, draw.randint(-3, 3), draw.randint(-3, 3) + 0.5))  # noqa: E731
    word = lambda: draw.choice((None, *WORDS))  # noqa: E731
    return [{"s": word(), "n": number(), "mixed": draw.choice((number(), word()))} for _ in range(count)]


def quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def pattern(draw: random.Random) -> str:
    word = draw.choice(WORDS)
    cut = draw.randint(0, len(word))
    return draw.choice(
        (f"%{word[cut:]}", f"{word[:cut]}%", f"{word[:cut]}_%", "%%" + word, word.replace("%", "\\%"), "_" * cut + "%")
    )


def condition(draw: random.Random, depth: int = 0) -> str:
    """A condition that SQLite reads too, after `as_sqlite`."""
    if depth < 3 and draw.random() < 0.55:
        one, other = condition(draw, depth + 1), condition(draw, depth + 1)
        return draw.choice((f"({one}) AND {other}", f"{one} OR ({other})", f"NOT ({one})", f"NOT {one}", f"({one} or {other})"))
    number, word = draw.choice(("0", "1", "-2", "1.5", "2e0")), quoted(draw.choice(WORDS))
    negation = draw.choice(("", "NOT "))
    return draw.choice(
        (
            f"n {draw.choice(('=', '!=', '<>', '<', '<=', '>', '>='))} {number}",
            f"s {draw.choice(('=', '!=', '<', '>='))} {word}",
            f"s {negation}IN ({word}, {quoted(draw.choice(WORDS))})",
            f"n {negation}IN ({number}, 3)",
            f"n {negation}BETWEEN -1 AND {number}",
            f"s {negation}LIKE {quoted(pattern(draw))}",
            f"`mixed` IS {negation}NULL",
            f"mixed = {draw.choice((number, word))}",
        )
    )


def as_sqlite(text: str) -> str:
    return re.sub(r"(LIKE '(?:[^']|'')*')", r"\1 ESCAPE '\\'", text)


@pytest.mark.parametrize("seed", range(4))
def test_sql_is_read_as_sqlite_reads_it(seed: int) -> None:
    draw = random.Random(seed)
    rows = drawn(draw)
    db = sqlite3.connect(":memory:")
    db.execute("PRAGMA case_sensitive_like = ON")
    db.execute("CREATE TABLE t (i INTEGER, s, n, mixed)")
    db.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", [(i, row["s"], row["n"], row["mixed"]) for i, row in enumerate(rows)])
    memory = table(rows)
    for _ in range(400):
        text = condition(draw)
        wanted = [i for (i,) in db.execute(f"SELECT i FROM t WHERE {as_sqlite(text)} ORDER BY i")]
        assert np.flatnonzero(filters.sql_mask(memory, text, COLUMNS)).tolist() == wanted, text
    db.close()


def holds(row: dict[str, Any], key: str, wanted: Any) -> bool:
    """The standard grammar, condition by condition."""
    if " OR " in key:
        return any(holds(row, one, value) for one, value in zip(key.split(" OR "), wanted, strict=True))
    name, _, operator = key.partition(" ")
    value, values = row.get(name), wanted if isinstance(wanted, list) else [wanted]
    number = lambda each: isinstance(each, int | float) and not isinstance(each, bool)  # noqa: E731
    equal = any(value == each and (value is None or number(value) == number(each)) for each in values)
    if operator in ("", "NOT"):
        return equal if not operator else not equal
    if operator == "LIKE":
        have = set(re.findall(r"\w+", str(value).lower())) if value is not None else set[str]()
        return any(set(words) <= have for each in values if (words := re.findall(r"\w+", str(each).lower())))
    if value is None or number(value) != number(wanted):
        return False
    return {"<": value < wanted, "<=": value <= wanted, ">": value > wanted, ">=": value >= wanted}[operator]


@pytest.mark.parametrize("seed", range(3))
def test_the_standard_grammar_is_read_as_it_is_described(seed: int) -> None:
    draw = random.Random(seed)
    rows = drawn(draw)
    memory = table(rows)

    def value() -> Any:
        return draw.choice((draw.randint(-3, 3), draw.choice(WORDS), 1.5))

    def one() -> tuple[str, Any]:
        name, operator = draw.choice(COLUMNS), draw.choice(("", " NOT", " <", " <=", " >", " >=", " LIKE"))
        many = operator in ("", " NOT", " LIKE") and draw.random() < 0.4
        return name + operator, [value(), value(), *([None] if operator != " LIKE" else [])] if many else value()

    for _ in range(400):
        asked = dict(one() for _ in range(draw.randint(1, 3)))
        if draw.random() < 0.4:
            asked[f"{draw.choice(COLUMNS)} OR {draw.choice(COLUMNS)} >"] = [value(), value()]
        wanted = [i for i, row in enumerate(rows) if all(holds(row, *each) for each in asked.items())]
        assert np.flatnonzero(filters.mask(memory, asked, COLUMNS)).tolist() == wanted, asked


def test_a_pattern_of_many_parts_costs_no_more_than_its_text() -> None:
    # Tried anew for each part it would take longer than anyone waits.
    memory = table([{"s": "a" * 20_000}, {"s": "a" * 20_000 + "b"}])
    assert filters.sql_mask(memory, "s LIKE '" + "%a" * 30 + "%b'", ["s"]).tolist() == [False, True]
    assert filters.sql_mask(memory, "s LIKE '" + "%a_" * 30 + "%c'", ["s"]).tolist() == [False, False]


def test_another_escape_may_be_named() -> None:
    memory = table([{"s": "50%"}, {"s": "500"}, {"s": "50\\0"}])
    assert filters.sql_mask(memory, "s LIKE '50!%' ESCAPE '!'", ["s"]).tolist() == [True, False, False]
    assert filters.sql_mask(memory, "s LIKE '50\\%'", ["s"]).tolist() == [True, False, False]
    with pytest.raises(BadRequest, match="one character"):
        filters.sql_mask(memory, "s LIKE 'x' ESCAPE '!!'", ["s"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("N < .5", [0]),
        ("n == +2.", [2]),
        ("ok", [0]),
        ("NOT ok AND (ok OR n > 0)", [1]),
        ('s = "it\'s" or s = "say ""hi"""', [0, 1]),
        ("ARRAY_CONTAINS(l, 'b')", [1]),
        ("not array_contains(l, 'b')", [0]),
        ("d >= DATE '2024-02-01' AND d < TIMESTAMP '2024-03-01'", [1]),
    ],
)
def test_sql_as_spark_writes_it(text: str, wanted: list[int]) -> None:
    memory = table(
        [
            {"s": "it's", "n": 0.25, "ok": True, "l": ["a"], "d": "2024-01-31"},
            {"s": 'say "hi"', "n": 1, "ok": False, "l": ["a", "b"], "d": "2024-02-01T10:00:00"},
            {"s": None, "n": 2, "ok": None, "l": None, "d": None},
        ]
    )
    assert np.flatnonzero(filters.sql_mask(memory, text, ["s", "n", "ok", "l", "d"])).tolist() == wanted


@pytest.mark.parametrize(
    "text", ["array_contains(l 'b')", "array_contains(l, 'b'", "array_contains(zz, 1)", "d = DATE 5", "ok ok"]
)
def test_sql_that_is_wrong_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        filters.sql_mask(table([{"l": ["b"], "ok": True, "d": ""}]), text, ["l", "ok", "d"])


def test_a_list_of_filters_is_met_where_all_are() -> None:
    memory = table(
        [
            {"specs": '{"drive":"AWD"}', "l": ["a", "b"]},
            {"specs": '{"drive":"AWD"}', "l": ["a"]},
            {"specs": "AWD drive", "l": "b"},
        ]
    )
    asked = filters.parse('[{"specs LIKE": "%\\"drive\\":\\"AWD\\"%", "l": "a"}, {"l": "b"}]')
    assert filters.mask(memory, asked, ["specs", "l"]).tolist() == [True, False, False]
    with pytest.raises(BadRequest, match="a JSON object, or a list of such"):
        filters.parse('[{"l": 1}, 5]')


def test_numbers_of_64_bits_are_told_apart() -> None:
    first = 9_007_199_254_740_993
    memory = table([{"n": first + i} for i in range(4)])
    assert filters.mask(memory, {"n <": first + 1}, ["n"]).tolist() == [True, False, False, False]
    assert filters.sql_mask(memory, f"n >= {first + 2}", ["n"]).tolist() == [False, False, True, True]
