"""Keeping Delta Sync indexes with a CONTINUOUS pipeline up to date, and finishing first syncs that were cut short."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from retrieval.rows.indexes import RowIndexes
from retrieval.rows.store import RowIndex
from retrieval.rows.write import Embed

log = logging.getLogger("smalti.retrieval")

EVERY = 0.5
"""Seconds between two looks at the sources' times and sizes."""
AGAIN = 15.0
"""Seconds until a sync that failed is tried again, though its source did not change."""


class Follower:
    """Looks at the sources, and starts what is to be synced.

    Parameters
    ----------
    over: the indexes.
    embed: how text is embedded.
    on_behalf: who an index's creator is by now; None where they may no longer act.
    """

    def __init__(self, over: RowIndexes, embed: Embed, on_behalf: Callable[[str], Any]) -> None:
        self._over, self._embed, self._on_behalf = over, embed, on_behalf
        self._seen: dict[int, tuple[Any, float]] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("the sources of indexes could not be looked at")
            await asyncio.sleep(EVERY)

    async def look(self) -> list[str]:
        """Starts what is due; gives the names of these indexes."""
        due = await asyncio.to_thread(self._due)
        for index, caller in due:
            await self._over.start_sync(index, self._embed, caller)
        return [index.name for index, _ in due]

    def _due(self) -> list[tuple[RowIndex, Any]]:
        found = []
        for index in self._over.list():
            unfinished = index.synced_ms is None and not index.error
            if index.spec.kind != "DELTA_SYNC" or index.syncing or not (unfinished or index.spec.pipeline == "CONTINUOUS"):
                continue
            now, stamp = time.monotonic(), self._over.tables.stamp(index.spec.source)
            seen = self._seen.get(index.id)
            if seen is not None and seen[0] == stamp and not ((index.error or unfinished) and now - seen[1] >= AGAIN):
                continue
            if not (index.error or unfinished) and self._over.synced(index, stamp):  # by another server, or before this one began
                self._seen[index.id] = stamp, now
                continue
            caller = self._on_behalf(index.creator)
            self._seen[index.id] = stamp, now
            if caller is None:
                log.warning("index %s is not kept up to date: its creator %s has no key any more", index.name, index.creator)
            else:
                found.append((index, caller))
        return found
