"""Stored responses as their callers have them: the journal's rows, without those that were deleted.

Deleting hides a response from its caller, who can neither fetch nor continue it. The journal is the operator's: it loses no row.

Source: https://platform.openai.com/docs/api-reference/responses/delete
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Engine, insert, select

from governance.call import Caller, not_found
from serving.protocols import previous
from serving.tables import deleted_responses


class StoredResponses:
    """The journal's rows of one request each. All methods block.

    Parameters
    ----------
    journal: what is read.
    engine: the state database, which knows what was deleted.
    """

    def __init__(self, journal: previous.Journal, engine: Engine) -> None:
        self._journal, self._engine = journal, engine
        deleted_responses.create(engine, checkfirst=True)

    def rows(self, *, limit: int | None = None, request_id: str | None = None) -> Iterator[Mapping[str, Any]]:
        """As `governance.journal.Journal.rows`, without what was deleted."""
        if request_id is not None and self._deleted(request_id):
            return iter(())
        return self._journal.rows(limit=limit, request_id=request_id)

    def check(self, request_id: str) -> None:
        """Raises `CallError` (404) for a response that was deleted."""
        if self._deleted(request_id):
            raise not_found(f"The response 'resp_{request_id[:80]}' was deleted.")

    def delete(self, caller: Caller, response_id: str) -> None:
        """Raises `CallError` (404) where the caller has no such response."""
        previous.find(self, caller, response_id, param="response_id")
        row = {"id": response_id.removeprefix("resp_"), "deleted": int(time.time() * 1000)}
        with self._engine.begin() as connection:
            connection.execute(insert(deleted_responses).values(**row))

    def _deleted(self, request_id: str) -> bool:
        with self._engine.connect() as connection:
            statement = select(deleted_responses.c.id).where(deleted_responses.c.id == request_id)
            return connection.execute(statement).first() is not None
