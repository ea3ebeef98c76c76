"""What is remembered of a user across threads: a LangGraph store in the database, each user's apart from every other's.

Whatever namespace a graph names, it stays within that of the user whom the run answers, so that no graph can read or write
another user's memory. Search ranks by embedding and by shared words.
Source: https://docs.langchain.com/oss/python/langgraph/memory
"""

from __future__ import annotations

import asyncio
import json
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from langgraph.store.base import BaseStore, GetOp, Item, ListNamespacesOp, Op, PutOp, Result, SearchItem, SearchOp
from langgraph.store.base.embed import get_text_at_path
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from agents.run import whose
from agents.state import Embed
from agents.tables import memories
from agents.text import coverage, terms

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

MAX_ITEMS = 5_000
"""Memories of a user."""
MAX_BYTES = 65_536
"""JSON bytes of a memory."""
MAX_NAME = 200
"""Characters of a key, and of a namespace's parts together."""
_APART = "\x1f"


@dataclass(frozen=True, slots=True)
class _Row:
    item: Item
    vector: bytes | None


class Memory(BaseStore):
    """The store. Of one user where `owner` is given, else of the user whom the run that uses it answers.

    Parameters
    ----------
    engine: database of the table `memories`.
    embed: sentence embeddings, by which memories are found; None finds by words alone.
    """

    supports_ttl = False

    def __init__(self, engine: Engine, embed: Embed | None = None, owner: str | None = None) -> None:
        self._engine, self._embed, self._owner = engine, embed, owner
        memories.create(engine, checkfirst=True)

    def of(self, owner: str) -> Memory:
        """The memory of one user."""
        return Memory(self._engine, self._embed, owner)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """As `abatch`, for nodes that are not async; not on an event loop's own thread."""
        return asyncio.run(self.abatch(ops))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Raises `ValueError` for what is too large or too much, and where no user is known."""
        owner = self._owner if self._owner is not None else whose.get()
        if owner is None:
            raise ValueError("there is no user whose memory this is; use it within a run, or `Memory.of(user)`")
        asked = list(ops)
        for op in asked:
            if isinstance(op, PutOp):
                _check(op)
            elif isinstance(op, SearchOp) and op.filter:
                _check_filter(op.filter)
        texts = {i: text for i, op in enumerate(asked) if (text := _indexed(op))}
        vectors: dict[int, np.ndarray] = {}
        if self._embed is not None and texts:
            vectors = dict(zip(texts, await self._embed(list(texts.values())), strict=True))
        return await asyncio.to_thread(self._run, owner, asked, vectors)

    def _run(self, owner: str, ops: Sequence[Op], vectors: Mapping[int, np.ndarray]) -> list[Result]:
        results: list[Result] = []
        with self._engine.begin() as connection:
            for position, op in enumerate(ops):
                if isinstance(op, PutOp):
                    _put(connection, owner, op, vectors.get(position))
                    results.append(None)
                elif isinstance(op, GetOp):
                    found = _rows(connection, owner, op.namespace, op.key)
                    results.append(found[0].item if found else None)
                elif isinstance(op, SearchOp):
                    results.append(_search(_rows(connection, owner), op, vectors.get(position)))
                elif isinstance(op, ListNamespacesOp):
                    results.append(_namespaces(_rows(connection, owner), op))
        return results

    async def count(self) -> int:
        """How many memories there are."""
        return len(await self.asearch((), limit=MAX_ITEMS))

    async def clear(self) -> int:
        """Forget all of them; how many they were."""
        assert self._owner is not None, "only one user's memory is cleared at a time"

        def gone() -> int:
            with self._engine.begin() as connection:
                return connection.execute(delete(memories).where(memories.c.owner == self._owner)).rowcount

        return await asyncio.to_thread(gone)


def _check(op: PutOp) -> None:
    name = _APART.join(op.namespace)
    if _APART in "".join(op.namespace) or max(len(name), len(op.key)) > MAX_NAME or not op.key:
        raise ValueError(f"a memory's key has 1 to {MAX_NAME} characters, and its namespace up to {MAX_NAME}")
    if op.value is not None and (size := len(json.dumps(op.value, default=str))) > MAX_BYTES:
        raise ValueError(f"a memory has up to {MAX_BYTES >> 10} KB; this one has {size} bytes")


def _indexed(op: Op) -> str:
    """What is embedded for an operation: a search's query, or the texts of what is put."""
    if isinstance(op, SearchOp):
        return op.query or ""
    if not isinstance(op, PutOp) or op.value is None or op.index is False:
        return ""
    return _text(op.value, op.index)


def _text(value: Mapping[str, Any], paths: Sequence[str] | None) -> str:
    if paths is None:
        return _said(value)
    return "\n".join(text for path in paths for text in get_text_at_path(value, path) if text)


def _said(value: Any) -> str:
    """All texts within a value."""
    if isinstance(value, str):
        return value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return "\n".join(text for each in inner if (text := _said(each)))


def _put(connection: Connection, owner: str, op: PutOp, vector: np.ndarray | None) -> None:
    of_owner = memories.c.owner == owner
    this = (of_owner, memories.c.namespace == _APART.join(op.namespace), memories.c.key == op.key)
    if op.value is None:
        connection.execute(delete(memories).where(*this))
        return
    now, said = time.time(), json.dumps(dict(op.value), ensure_ascii=False, default=str)
    values = {"value": said, "vector": None if vector is None else vector.astype(np.float32).tobytes(), "updated": now}
    change = update(memories).where(*this).values(**values)
    if connection.execute(change).rowcount:
        return
    if (connection.execute(select(func.count()).select_from(memories).where(of_owner)).scalar() or 0) >= MAX_ITEMS:
        raise ValueError(f"{MAX_ITEMS:,} memories are kept of a user; forget some first")
    new = {"owner": owner, "namespace": _APART.join(op.namespace), "key": op.key, "created": now, **values}
    try:
        with connection.begin_nested():
            connection.execute(insert(memories).values(**new))
    except IntegrityError:  # put by another run meanwhile
        connection.execute(change)


def _rows(connection: Connection, owner: str, namespace: tuple[str, ...] | None = None, key: str = "") -> list[_Row]:
    query = select(memories).where(memories.c.owner == owner).order_by(memories.c.updated.desc(), memories.c.key)
    if namespace is not None:
        query = query.where(memories.c.namespace == _APART.join(namespace), memories.c.key == key)
    return [_Row(_item(row), row.vector) for row in connection.execute(query)]


def _item(row: Any) -> Item:
    times = {name: datetime.fromtimestamp(getattr(row, name), UTC) for name in ("created", "updated")}
    namespace = tuple(row.namespace.split(_APART)) if row.namespace else ()
    value = json.loads(row.value)
    return Item(value=value, key=row.key, namespace=namespace, created_at=times["created"], updated_at=times["updated"])


def _namespaces(rows: Sequence[_Row], op: ListNamespacesOp) -> Result:
    """By LangGraph's own store, which knows how namespaces match."""
    from langgraph.store.memory import InMemoryStore

    shelf = InMemoryStore()
    shelf.batch([PutOp(row.item.namespace, row.item.key, {}) for row in rows])
    return shelf.batch([op])[0]


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq, "$ne": operator.ne, "$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le,
}  # fmt: skip


def _tests(wanted: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(field, comparison, with what)"""
    for name, asked in wanted.items():
        compared = isinstance(asked, Mapping) and any(str(key).startswith("$") for key in asked)
        for test, than in (asked if compared else {"$eq": asked}).items():
            yield name, test, than


def _check_filter(wanted: Mapping[str, Any]) -> None:
    for _, test, _ in _tests(wanted):
        if test not in _COMPARE:
            raise ValueError(f"{test!r} is no comparison; there are {', '.join(_COMPARE)}")


def _fits(value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    try:
        return all(_COMPARE[test](value.get(name), than) for name, test, than in _tests(wanted))
    except TypeError:  # no number where one is compared with
        return False


def _search(rows: Sequence[_Row], op: SearchOp, vector: np.ndarray | None) -> list[SearchItem]:
    within = [row for row in rows if row.item.namespace[: len(op.namespace_prefix)] == op.namespace_prefix]
    if op.filter:
        within = [row for row in within if _fits(row.item.value, op.filter)]
    wanted = terms(op.query or "")
    scored = [(_score(row, wanted, vector) if op.query else 0.0, row.item) for row in within]
    scored.sort(key=lambda pair: -pair[0])
    return [
        SearchItem(item.namespace, item.key, item.value, item.created_at, item.updated_at, score if op.query else None)
        for score, item in scored[op.offset : op.offset + op.limit]
    ]


def _score(row: _Row, wanted: dict[str, float], vector: np.ndarray | None) -> float:
    shared = coverage(wanted, terms(_said(row.item.value)))
    if vector is None or row.vector is None:
        return shared
    held = np.frombuffer(row.vector, np.float32)
    close = float(held @ vector) if len(held) == len(vector) else 0.0  # of another encoder
    return (close + shared) / 2
