"""The columns of rows, as filters read them and as files hold them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol, Self

import numpy as np

Packed = Mapping[str, np.ndarray | Sequence[Any]]
"""Columns as a file holds them: numbers, or what JSON can say."""


class Fields(Protocol):
    """The columns of rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, slot: int) -> Mapping[str, Any]:
        """A row's columns by name."""
        ...

    def column(self, name: str) -> Sequence[Any]:
        """A column of all rows; None where a row has none."""
        ...

    def joined(self, parts: Sequence[Any]) -> Self:
        """These and others of their kind, as new ones."""
        ...

    def packed(self, slots: Sequence[int]) -> Packed:
        """The columns of some rows, without anything of the others."""
        ...

    def unpacked(self, packed: Packed, keys: Sequence[str]) -> Self:
        """What `packed` gave, of the rows of these keys."""
        ...


class Bodies(list[Mapping[str, Any]], Fields):
    """Columns, row by row."""

    def column(self, name: str) -> list[Any]:
        return [body.get(name) for body in self]

    def joined(self, parts: Sequence[Sequence[Mapping[str, Any]]]) -> Bodies:
        return Bodies(chain(self, *parts))

    def packed(self, slots: Sequence[int]) -> Packed:
        return {"bodies": [self[slot] for slot in slots]}

    def unpacked(self, packed: Packed, keys: Sequence[str]) -> Bodies:
        return Bodies(packed["bodies"])


def coded(values: Iterable[Hashable]) -> tuple[list[Any], np.ndarray]:
    """The distinct values, and the number of each value among them."""
    numbers: dict[Hashable, int] = {}
    codes = np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int32)
    return list(numbers), codes
