"""The chunks of one index, as searches hold them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from retrieval.memory import Record
from retrieval.store import Store


class ChunkSource:
    """The chunks of one index, for `retrieval.memory`."""

    def __init__(self, store: Store, index_id: int) -> None:
        self._store, self._index_id = store, index_id

    def seqs(self) -> np.ndarray:
        return self._store.seqs(self._index_id)

    def records(self, after: int) -> Iterator[Record]:
        return self._store.records(self._index_id, after)
