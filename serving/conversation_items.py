"""What a conversation began with, kept until an agent answers in it: its first response is given these items before its input.

They reach the agent as a part of that request, so that its guardrails, its limits and the journal see them as any others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import Engine, delete, insert, select

from agents import Runtime, ThreadNotFound
from governance.call import Caller, new_id
from serving.tables import conversation_items as table


class BeginningItems:
    """The items of conversations, oldest first; each has an `id` beside what was sent. All methods block.

    `engine` is the state database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        table.create(engine, checkfirst=True)

    def of(self, conversation_id: str) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            statement = select(table.c.id, table.c.item).where(table.c.conversation == conversation_id).order_by(table.c.place)
            return [{"id": each.id, **orjson.loads(each.item)} for each in connection.execute(statement)]

    def add(self, conversation_id: str, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The items with their ids."""
        first = time.time_ns()
        made = [{"id": f"item_{new_id()}", **item} for item in items]
        rows = [
            {"id": item["id"], "conversation": conversation_id, "place": first + position, "item": orjson.dumps(given).decode()}
            for position, (item, given) in enumerate(zip(made, items, strict=True))
        ]
        with self._engine.begin() as connection:
            connection.execute(insert(table), rows)
        return made

    def remove(self, item_id: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(table).where(table.c.id == item_id))

    def forget(self, conversation_id: str, owner: str = "") -> None:
        """Of a conversation that was deleted."""
        with self._engine.begin() as connection:
            connection.execute(delete(table).where(table.c.conversation == conversation_id))


class Beginnings:
    """What goes before the input of a conversation's first response.

    Parameters
    ----------
    items: what conversations began with.
    runtime: knows what was said since.
    """

    def __init__(self, items: BeginningItems, runtime: Runtime) -> None:
        self._items, self._runtime = items, runtime

    async def before(self, conversation_id: str, caller: Caller) -> list[dict[str, Any]]:
        """The items that the agent has not seen yet; none of a conversation that is another's."""
        if not (held := await asyncio.to_thread(self._items.of, conversation_id)):
            return []
        try:
            if await self._runtime.messages(conversation_id, caller.principal):
                return []  # it has had them
        except ThreadNotFound:
            return []  # as the call will be told
        return [{key: value for key, value in item.items() if key != "id"} for item in held]
