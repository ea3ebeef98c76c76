"""The documents that settings name: brought into indexes at the start, and told of by their titles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.chunk import Chunking
from retrieval.index import Indexes, full_name
from serving.settings import Settings

if TYPE_CHECKING:
    from retrieval.types import SyncReport


class Collection:
    """Parameters: what was configured, and the indexes that hold it."""

    def __init__(self, settings: Settings, indexes: Indexes) -> None:
        self._settings, self._indexes = settings, indexes

    def sync(self, progress: Callable[[Any], None] | None = None) -> list[SyncReport]:
        """Bring the configured indexes up to date with their folders. Blocking.

        Raises
        ------
        RetrievalError: a folder is missing or holds nothing that can be read; a declared table cannot be read.
        """
        settings, indexes = self._settings, self._indexes
        for table in settings.tables:
            place = table.source if "://" in table.source else str(Path(table.source).expanduser().absolute())
            indexes.over_rows.tables.add(full_name(table.name), place)
        for index in settings.indexes:
            if index.row_access is not None:  # before there are rows to see
                indexes.guards.set(full_name(index.name), index.row_access)
        # What is not declared here is as it was set by the command.
        plans = {index.name: Chunking(**index.chunking.model_dump()) for index in settings.indexes if index.chunking is not None}
        sources = [(index.name, index.source, plans.get(index.name)) for index in settings.indexes]
        if settings.docs is not None:
            sources.insert(0, ("docs", settings.docs, None))
        return [indexes.sync(indexes.add(*source).name, progress) for source in sources]

    def titles(self, visible: Callable[[str], bool], limit: int = 3) -> list[str]:
        """Titles of some documents in the indexes that `visible` lets through. Blocking."""
        found: dict[str, None] = {}
        for info in self._indexes.list():
            if visible(info.name) and self._indexes.guards.column(info.name) is None:
                for row in self._indexes.rows(info.name):
                    found[row["title"]] = None
                    if len(found) >= limit:
                        return list(found)
        return list(found)
