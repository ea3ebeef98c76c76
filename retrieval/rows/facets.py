"""Facets: how many of the matched rows have which value of a column.

Source: https://docs.databricks.com/api/workspace/vectorsearchindexes/queryindex (`facets`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval import filters
from retrieval.errors import BadRequest
from retrieval.memory import Snapshot

COLUMNS = ("facet_column_name", "value_or_range", "count")
TOP = 10
MOST = 1000
"""Values or ranges of one facet; facets of one query are at most 50."""

_FORM = re.compile(r"\s*(?P<column>\S.*?)(?:\s+TOP\s+(?P<top>\d+)|\s+BUCKETS\s+(?P<buckets>\[.*\]))?\s*", re.I | re.S)


@dataclass(frozen=True, slots=True)
class Facet:
    """`column` alone or with `TOP n`: its commonest values; with `BUCKETS [[from, to], …]`: counts in ranges, both ends in."""

    column: str
    top: int = TOP
    buckets: tuple[tuple[float, float], ...] = ()


def parse(given: Sequence[str]) -> list[Facet]:
    """Raises BadRequest saying how a facet is written."""
    if len(given) > 50:
        raise BadRequest("field 'facets' takes at most 50 facets")
    facets = [_parse(text) for text in given]
    if len({facet.column for facet in facets}) < len(facets):
        raise BadRequest("field 'facets' names a column twice: a column may appear once")
    return facets


def _parse(text: str) -> Facet:
    wrong = BadRequest(f"facet {text[:80]!r} is not read: write 'column', 'column TOP 5' or 'column BUCKETS [[0, 10], [11, 20]]'")
    found = _FORM.fullmatch(text)
    if found is None:
        raise wrong
    if found["buckets"] is None:
        top = int(found["top"] or TOP)
        if not 1 <= top <= MOST:
            raise BadRequest(f"facet {text[:100]!r} asks for {top} values: 1 to {MOST} are given")
        return Facet(found["column"], top)
    try:
        ranges = json.loads(found["buckets"])
        buckets = tuple((float(low), float(high)) for low, high in ranges)
    except (ValueError, TypeError, RecursionError):
        raise wrong from None
    if not 0 < len(buckets) <= MOST or any(math.isnan(low) or math.isnan(high) for low, high in buckets):
        raise wrong
    return Facet(found["column"], buckets=buckets)


def count(rows: Snapshot, matched: np.ndarray, facets: Sequence[Facet], columns: Sequence[str]) -> list[list[Any]]:
    """`[column, value or range, count]` of each facet in turn, the commonest value first. Rows without a value are not counted.

    Raises
    ------
    BadRequest: a column is unknown.
    """
    found: list[list[Any]] = []
    for facet in facets:
        if facet.column not in columns:
            raise BadRequest(f"facet names column {facet.column!r}, which the index does not have: it has {', '.join(columns)}")
        values = filters.values(rows, facet.column, matched)
        if facet.buckets:
            numbers = [(value, n) for value, n in values if isinstance(value, int | float) and not isinstance(value, bool)]
            for low, high in facet.buckets:
                found.append([facet.column, f"[{low:g},{high:g}]", sum(n for value, n in numbers if low <= value <= high)])
            continue
        common = sorted(values, key=lambda pair: (-pair[1], str(pair[0])))[: facet.top]
        found += [[facet.column, value, n] for value, n in common]
    return found
