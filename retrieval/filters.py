"""Filters over the columns of a snapshot, as masks: Databricks' `filters_json` and SQL-like `filter_string`.

Source: https://docs.databricks.com/aws/en/vector-search/vector-search-filtering-guide (standard and storage-optimized endpoints).
"""

from __future__ import annotations

import json
import operator as operators
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrieval.errors import BadRequest
from retrieval.memory import Snapshot

_OPERATORS = re.compile(r"\s+(NOT|<=|>=|<|>|LIKE|NOT\s+LIKE)\s*$", re.I)
_ORDER = {"<": operators.lt, "<=": operators.le, ">": operators.gt, ">=": operators.ge}
_TOKEN = re.compile(r"\w+")
_MOST = 1024
"""Values of one list; conditions of one filter."""


def parse(filters_json: str) -> dict[str, Any]:
    """The filter as a mapping; of a list of filters, all of which are to be met, as one. Raises BadRequest where it is none."""
    wrong = BadRequest("field 'filters_json' must be a JSON object, or a list of such, as a string, as '{\"id <\": 5}'")
    try:
        value = json.loads(filters_json)
    except (ValueError, RecursionError):
        raise wrong from None
    given = value if isinstance(value, list) else [value]
    if not all(isinstance(each, dict) for each in given) or sum(map(len, given)) > _MOST:
        raise wrong
    joined: dict[str, Any] = {}
    for key, wanted in (pair for each in given for pair in each.items()):
        while key in joined:
            key += " "  # which means nothing, and keeps apart what is asked twice of a column
        joined[key] = wanted
    return joined


def of(rows: Snapshot, filters: Mapping[str, Any] | str, columns: Sequence[str]) -> np.ndarray:
    """Which rows meet a filter: a mapping, or SQL-like text."""
    return sql_mask(rows, filters, columns) if isinstance(filters, str) else mask(rows, filters, columns)


def mask(rows: Snapshot, filters: Mapping[str, Any], columns: Sequence[str]) -> np.ndarray:
    """Which rows meet all conditions.

    A key is a column, then an operator: none (equal, or one of a list), `NOT`, `<`, `<=`, `>`, `>=`, `LIKE` (holds the whole
    token; between two `%` as SQL has it). `"a OR b": [x, y]` is met where a is x or b is y. A row without a value meets no
    condition but `NOT`.

    Raises
    ------
    BadRequest: a column is unknown, or a value does not fit its operator.
    """
    if len(filters) > _MOST:
        raise BadRequest(f"a filter takes at most {_MOST} conditions")
    met = np.ones(rows.size, bool)
    for key, value in filters.items():
        alternatives = re.split(r"\s+OR\s+", key)
        if len(alternatives) > 1:
            values = value if isinstance(value, list) else [value] * len(alternatives)
            if len(values) != len(alternatives):
                raise BadRequest(f"filter {key!r} names {len(alternatives)} columns: give a list of as many values")
            any_of = np.zeros(rows.size, bool)
            for one, wanted in zip(alternatives, values, strict=True):
                any_of |= _condition(rows, one, wanted, columns)
            met &= any_of
        else:
            met &= _condition(rows, key, value, columns)
    return met


def _condition(rows: Snapshot, key: str, value: Any, columns: Sequence[str]) -> np.ndarray:
    found = _OPERATORS.search(key)
    column = (key[: found.start()] if found else key).strip()
    operator = re.sub(r"\s+", " ", found[1]).upper() if found else "="
    if column not in columns:
        raise BadRequest(f"filter names column {column!r}, which the index does not have: it has {', '.join(columns)}")
    values = value if isinstance(value, list) else [value]
    if len(values) > _MOST:
        raise BadRequest(f"filter {key!r} has {len(values):,} values: at most {_MOST:,} are taken")
    for each in values:
        if isinstance(each, dict | list):
            raise BadRequest(f"filter {key!r} must compare with a string, a number, true, false, null, or a list of these")
    data = _column(rows, column)
    if operator in ("=", "NOT"):
        equal = data.equal(values)
        return equal if operator == "=" else ~equal
    if operator.endswith("LIKE"):
        like = np.zeros(rows.size, bool)
        for each in values:
            text = str(each)
            like |= data.like(text) if len(text) > 1 and text[0] == text[-1] == "%" else data.holding(text)
        return like if operator == "LIKE" else ~like & data.present()
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadRequest(f"filter {key!r} must compare with one number or string")
    return data.compared(operator, value)


def values(rows: Snapshot, column: str, chosen: np.ndarray) -> list[tuple[Any, int]]:
    """The values that a column has in the chosen rows, each with how many have it; of lists, each of their elements."""
    return _column(rows, column).counted(chosen)


def one_of(rows: Snapshot, column: str, wanted: Sequence[str]) -> np.ndarray:
    """Which rows have one of some values in a column, or hold one in a column of lists; none where there is no such column."""
    return _column(rows, column).equal(wanted)


def _column(rows: Snapshot, name: str) -> _Column:
    found = rows.cache.get(("column", name))
    if found is None:
        found = rows.cache[("column", name)] = _Column(rows.fields.column(name))
    return found


class _Column:
    """A column's values as codes of its distinct ones: every comparison runs over few values, then over small numbers."""

    def __init__(self, values: Sequence[Any]) -> None:
        numbers: dict[Any, int] = {}
        codes = np.empty(len(values), np.int32)
        self._distinct: list[Any] = []
        for i, value in enumerate(values):
            key = (type(value) is bool, tuple(map(_plain, value))) if isinstance(value, list) else _plain(value)
            code = numbers.get(key)
            if code is None:
                code = numbers[key] = len(self._distinct)
                self._distinct.append(value)
            codes[i] = code
        self._numbers, self._codes = numbers, codes
        self._tokens: dict[str, list[int]] | None = None
        self._numeric: np.ndarray | None = None
        self._lists = any(isinstance(value, list) for value in self._distinct)

    def _of(self, chosen: Sequence[int]) -> np.ndarray:
        table = np.zeros(len(self._distinct), bool)
        table[list(chosen)] = True
        return table[self._codes]

    def counted(self, chosen: np.ndarray) -> list[tuple[Any, int]]:
        counts = np.bincount(self._codes[chosen], minlength=len(self._distinct))
        totals: dict[Any, tuple[Any, int]] = {}
        for code in map(int, np.flatnonzero(counts)):
            value = self._distinct[code]
            for each in dict.fromkeys(map(_plain, value)) if isinstance(value, list) else (_plain(value),):
                if each is not None:
                    shown = each[1] if isinstance(each, tuple) else each
                    totals[each] = shown, totals.get(each, (shown, 0))[1] + int(counts[code])
        return list(totals.values())

    def present(self) -> np.ndarray:
        return self._of([code for code, value in enumerate(self._distinct) if value is not None])

    def equal(self, values: Sequence[Any]) -> np.ndarray:
        """Rows whose value is one of `values`; of a column of lists, whose list holds one."""
        wanted = {_plain(value) for value in values}
        if self._lists:
            held = [
                code
                for code, value in enumerate(self._distinct)
                if (wanted & set(map(_plain, value)) if isinstance(value, list) else _plain(value) in wanted)
            ]
            return self._of(held)
        return self._of([self._numbers[value] for value in wanted if value in self._numbers])

    def compared(self, operator: str, value: Any) -> np.ndarray:
        test = _ORDER[operator]
        if isinstance(value, int) and abs(value) >= _EXACT:
            known = [isinstance(mine, int | float) and not isinstance(mine, bool) for mine in self._distinct]
            return self._of([code for code, mine in enumerate(self._distinct) if known[code] and test(mine, value)])
        if isinstance(value, int | float):
            if self._numeric is None:
                numbers = [isinstance(mine, int | float) and not isinstance(mine, bool) for mine in self._distinct]
                self._numeric = np.array(
                    [_float(mine) if ok else np.nan for mine, ok in zip(self._distinct, numbers, strict=True)]
                )
            return test(self._numeric, _float(value))[self._codes]
        return self._of([code for code, mine in enumerate(self._distinct) if isinstance(mine, str) and test(mine, value)])

    def holding(self, token: str) -> np.ndarray:
        """Rows whose text holds all of `token`'s words as whole ones, in any case."""
        if self._tokens is None:
            tokens: dict[str, list[int]] = {}
            for code, value in enumerate(self._distinct):
                for word in set(_TOKEN.findall(str(value).lower())) if value is not None else ():
                    tokens.setdefault(word, []).append(code)
            self._tokens = tokens
        found: set[int] | None = None
        for word in _TOKEN.findall(token.lower()):
            having = set(self._tokens.get(word, ()))
            found = having if found is None else found & having
        return self._of(sorted(found or ()))

    def like(self, pattern: str, escape: str = "\\") -> np.ndarray:
        """Rows whose text is as SQL's LIKE says: `%` any characters, `_` one; what follows `escape` is meant as it is written."""
        runs = [""]  # between one `%` and the next
        at = 0
        while at < len(pattern):
            here, at = pattern[at], at + 1
            if here == escape and at < len(pattern):
                here, at = pattern[at], at + 1
                runs[-1] += re.escape(here)
            elif here == "%":
                runs.append("")
            else:
                runs[-1] += "." if here == "_" else re.escape(here)
        first, *between = runs
        # Each run is taken where it first occurs, and never looked for again: many `%` else take powers of the text's length.
        rest = "".join(f"(?>.*?{run})" for run in between[:-1] if run) + ".*" + between[-1] if between else ""
        wanted = re.compile(first + rest, re.S)
        return self._of([code for code, value in enumerate(self._distinct) if isinstance(value, str) and wanted.fullmatch(value)])


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return np.inf if value > 0 else -np.inf


def _plain(value: Any) -> Any:
    """What equality compares: 1 and 1.0 are one, 1 and true are not."""
    if isinstance(value, dict | list):
        return ("json", json.dumps(value, sort_keys=True, default=str))
    return ("bool", value) if isinstance(value, bool) else value


_SQL = re.compile(
    r"\s*(?:(?P<string>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")|(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<op><=|>=|<>|!=|==?|<|>)"
    r"|(?P<mark>[(),])|(?P<quoted>`[^`]+`)|(?P<word>[A-Za-z_]\w*))"
)
_EXACT = 1 << 53
"""Whole numbers below are told apart by floats, those of 64 bits are not."""
_DEEPEST = 50
_DIGITS = 300
"""Of a whole number that is taken as it is written."""


def sql_mask(rows: Snapshot, text: str, columns: Sequence[str]) -> np.ndarray:
    """Which rows meet a `filter_string`: comparisons, IN, BETWEEN, LIKE (`%`, `_`), IS NULL, ARRAY_CONTAINS, with AND, OR, NOT
    and parentheses; strings in single or double quotes, as Spark has them.

    As in SQL, a row without a value meets neither a condition nor its negation.

    Raises
    ------
    BadRequest: it cannot be read, or names an unknown column.
    """
    return _Sql(rows, text, columns).read()


_Told = tuple[np.ndarray, np.ndarray]
"""Rows of which a condition is true, and those of which it is false; of the rest, which lack a value, neither is known."""


class _Sql:
    def __init__(self, rows: Snapshot, text: str, columns: Sequence[str]) -> None:
        self._rows, self._columns, self._text = rows, columns, text
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            found = _SQL.match(text, at)
            if found is None or len(self._tokens) > 4 * _MOST:
                raise self._wrong(f"at {text[at : at + 20]!r}")
            self._tokens.append((found.lastgroup or "", found[0].strip()))
            at = found.end()
        self._at = 0

    def _wrong(self, where: str) -> BadRequest:
        return BadRequest(f"field 'filter_string' cannot be read {where}: write conditions as  id < 5 AND lang IN ('en', 'de')")

    def _word(self) -> str:
        kind, token = self._tokens[self._at] if self._at < len(self._tokens) else ("", "")
        return token.upper() if kind == "word" or kind in ("mark", "op") else ""

    def _take(self, *words: str) -> bool:
        if self._word() in words:
            self._at += 1
            return True
        return False

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise self._wrong("at its end")
        self._at += 1
        return self._tokens[self._at - 1]

    def read(self) -> np.ndarray:
        met, _ = self._or(0)
        if self._at < len(self._tokens):
            raise self._wrong(f"at {self._tokens[self._at][1]!r}")
        return met

    def _or(self, depth: int) -> _Told:
        if depth > _DEEPEST:
            raise self._wrong("that deep")
        met, failed = self._and(depth)
        while self._take("OR"):
            one, other = self._and(depth)
            met, failed = met | one, failed & other
        return met, failed

    def _and(self, depth: int) -> _Told:
        met, failed = self._not(depth)
        while self._take("AND"):
            one, other = self._not(depth)
            met, failed = met & one, failed | other
        return met, failed

    def _not(self, depth: int) -> _Told:
        negated = False
        while self._take("NOT"):
            negated = not negated
        if self._take("("):
            told = self._or(depth + 1)
            if not self._take(")"):
                raise self._wrong("where ')' is missing")
        else:
            told = self._comparison()
        return (told[1], told[0]) if negated else told

    def _comparison(self) -> _Told:
        kind, name = self._next()
        if kind not in ("word", "quoted"):
            raise self._wrong(f"at {name!r}")
        if name.upper() == "ARRAY_CONTAINS" and self._take("("):
            _, name = self._next()
            if not self._take(","):
                raise self._wrong("where ARRAY_CONTAINS takes a column and a value")
            data, wanted = self._data(name), self._value()
            if not self._take(")"):
                raise self._wrong("where ')' is missing")
            met = data.equal([wanted])
            return met, data.present() & ~met
        data = self._data(name)
        present = data.present()
        if self._word() in ("", ")", "AND", "OR"):  # a column of truths stands for itself
            return data.equal([True]), data.equal([False])
        if self._take("IS"):
            negated = self._take("NOT")
            if not self._take("NULL"):
                raise self._wrong("after IS")
            return (present, ~present) if negated else (~present, present)
        negated = self._take("NOT")
        if self._take("IN"):
            if not self._take("("):
                raise self._wrong("after IN")
            values = [self._value()]
            while self._take(","):
                values.append(self._value())
            if not self._take(")"):
                raise self._wrong("where ')' is missing")
            met = data.equal(values)
        elif self._take("LIKE"):
            pattern, escape = str(self._value()), "\\"
            if self._take("ESCAPE"):
                escape = str(self._value())
                if len(escape) != 1:
                    raise self._wrong("after ESCAPE: it takes one character")
            met = data.like(pattern, escape)
        elif self._take("BETWEEN"):
            met = data.compared(">=", self._value())
            if not self._take("AND"):
                raise self._wrong("where BETWEEN lacks its AND")
            met = met & data.compared("<=", self._value())
        elif negated:
            raise self._wrong("after NOT")
        else:
            kind, operator = self._next()
            if kind != "op":
                raise self._wrong(f"at {operator!r}")
            value = self._value()
            negated = operator in ("!=", "<>")
            met = data.equal([value]) if negated or operator in ("=", "==") else data.compared(operator, value)
        failed = present & ~met
        return (failed, met) if negated else (met, failed)

    def _data(self, name: str) -> _Column:
        """A column; as in SQL its name may be written in another case."""
        column = name.strip("`")
        if column not in self._columns:
            alike = [each for each in self._columns if each.lower() == column.lower()]
            if len(alike) != 1:
                had = ", ".join(self._columns)
                raise BadRequest(f"filter names column {column!r}, which the index does not have: it has {had}")
            column = alike[0]
        return _column(self._rows, column)

    def _value(self) -> Any:
        kind, token = self._next()
        if kind == "word" and token.upper() in ("DATE", "TIMESTAMP") and self._tokens[self._at : self._at + 1]:
            kind, token = self._next()
            if kind != "string":
                raise self._wrong(f"at {token!r}")
        if kind == "string":
            return token[1:-1].replace(token[0] * 2, token[0])
        if kind == "number":
            return float(token) if re.search(r"[.eE]", token) or len(token) > _DIGITS else int(token)
        if kind == "word" and token.upper() in ("TRUE", "FALSE"):
            return token.upper() == "TRUE"
        raise self._wrong(f"at {token!r}")
