"""Columns as the DataFrame that `pandas.DataFrame(columns)` would be, with less of pandas' guessing.

To make a batch of texts into one takes a tenth of a small encoder's time.

Runs in the model's own process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_HEADERS = 64
"""Sets of columns that are remembered; optional ones make several."""


class Frames:
    """Makes DataFrames for one model."""

    def __init__(self) -> None:
        import pandas as pd

        self._pandas = pd
        kept = pd.Series(["text"]).dtype  # how this version of pandas keeps text
        self._text = kept if isinstance(kept, pd.StringDtype) else None
        self._headers: dict[tuple[str, ...], Any] = {}

    def of_rows(self, matrix: np.ndarray, names: Sequence[str]) -> Any:
        """The DataFrame of an array of numbers, one row a row."""
        return self._pandas.DataFrame(matrix, columns=self._header(tuple(names)), copy=False)

    def of_columns(self, columns: Mapping[str, np.ndarray]) -> Any:
        """The DataFrame of columns that are equally long."""
        pd = self._pandas
        names = tuple(columns)
        if not names:
            return pd.DataFrame()
        rows = pd.RangeIndex(len(columns[names[0]]))
        made = pd.DataFrame({place: self._array(columns[name]) for place, name in enumerate(names)}, index=rows, copy=False)
        made.columns = self._header(names)
        return made

    def _array(self, values: np.ndarray) -> Any:
        if values.dtype.kind == "O" and self._text is not None and set(map(type, values)) == {str}:
            return self._pandas.array(values, dtype=self._text)
        return values

    def _header(self, names: tuple[str, ...]) -> Any:
        if (known := self._headers.get(names)) is None:
            if len(self._headers) >= _HEADERS:
                self._headers.clear()
            known = self._headers[names] = self._pandas.Index(names)
        return known[:]  # a model may give its own a name
