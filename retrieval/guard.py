"""Row-level access: which rows of an index a caller's groups may see, by a column that names groups.

An index without a rule is read as a whole by whoever may query it. With a rule a row is seen by the groups that its column
names, and by administrators; a row that names none is seen by administrators alone. A rule outlives its index, so that
dropping an index and making it anew opens nothing.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from retrieval import filters
from retrieval.chunk_reads import plainly
from retrieval.memory import Snapshot
from retrieval.tables import row_guards

Groups = frozenset[str] | None
"""The groups of who asks; None for an administrator, who sees every row."""

NOBODY: frozenset[str] = frozenset()

FAILED = "the last sync failed: an administrator is told why"
"""The error of an index for who may not see all its rows: what failed may be one of the others."""

_COLUMN = f'SELECT "column" FROM {row_guards.name} WHERE "index" = {{}}'


class Guards:
    """The rules of a state folder. Thread-safe; blocking."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def column(self, index: str, db: Connection | None = None) -> str | None:
        """The column that names who may see a row; None where the index has no rule. Read over `db` where it is given."""
        with self._engine.connect() if db is None else nullcontext(db) as db:
            found = plainly(db, _COLUMN, [index])
        return found[0][0] if found else None

    def open(self, index: str, groups: Groups) -> bool:
        """Whether the groups may see every row, whichever those are."""
        return groups is None or self.column(index) is None

    def set(self, index: str, column: str | None) -> None:
        """Sets an index's rule; None takes it away."""
        with self._engine.begin() as db:
            db.execute(sa.delete(row_guards).where(row_guards.c.index == index))
            if column is not None:
                db.execute(sa.insert(row_guards).values(index=index, column=column))

    def mask(self, index: str, rows: Snapshot, groups: Groups, db: Connection | None = None) -> np.ndarray | None:
        """Which rows may be seen; None for all of them."""
        column = None if groups is None else self.column(index, db)
        return None if column is None else filters.one_of(rows, column, sorted(groups or ()))

    def admits(self, index: str, row: dict[str, Any], groups: Groups) -> bool:
        """Whether one row may be seen."""
        column = None if groups is None else self.column(index)
        if column is None:
            return True
        value = row.get(column)
        return any(isinstance(name, str) and name in (groups or ()) for name in (value if isinstance(value, list) else [value]))


def both(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    """Rows that are in both masks, None being all."""
    return other if one is None else one if other is None else one & other
