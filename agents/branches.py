"""The states that a thread went through, and the branches that go on from an earlier one.

A thread's last checkpoint holds all that was said, so every state before it is a beginning of its messages: none is stored. To go
on from an earlier state leaves the branch on which the thread stood; the last checkpoint of a branch that was left is kept.

A state's id says how many branches had been left when it came to be, how many messages it has, and which: ids sort by age, and
stay as long as their thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, delete, insert, select, update

from agents.checkpoints import configured, lacking, rewritten
from agents.tables import MAX_BRANCHES, metadata, thread_branches
from agents.values import Values, lasting

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langgraph.graph.state import CompiledStateGraph

    from agents.checkpoints import Saver


class StateNotFound(Exception):
    """The thread never was in this state, or what was said by then is no longer kept."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch that was left.

    Parameters
    ----------
    epoch: how many were left before it.
    checkpoint_id: holds it; empty where another branch goes on from its end.
    leaf: key of its last state.
    """

    epoch: int
    checkpoint_id: str
    leaf: str


@dataclass(frozen=True)
class Held:
    """A kept checkpoint: the last of its branch, and the keys of all states that its messages begin with."""

    checkpoint_id: str
    messages: Sequence[BaseMessage]
    values: Mapping[str, Any] = field(default_factory=dict)
    created: str | None = None

    @cached_property
    def keys(self) -> list[str]:
        """One for nothing said, and one after each message."""
        found = [hashlib.blake2b(digest_size=9).hexdigest()]
        for message in self.messages:
            said = (message.type, message.id, message.content, getattr(message, "tool_calls", None))
            text = json.dumps([found[-1], *said, getattr(message, "tool_call_id", None)], default=str)
            found.append(hashlib.blake2b(text.encode(), digest_size=9).hexdigest())
        return found


@dataclass(frozen=True)
class State:
    """A state of a thread.

    Parameters
    ----------
    id, parent: of this state and of that before it; None before anything was said.
    key: names what was said by then.
    held: the branch that it is read from.
    depth: how many messages it has.
    """

    id: str
    parent: str | None
    key: str
    held: Held
    depth: int

    @property
    def messages(self) -> Sequence[BaseMessage]:
        return self.held.messages[: self.depth]

    @property
    def keys(self) -> Sequence[str]:
        """Of the states from the first to this one."""
        return self.held.keys[: self.depth + 1]

    @property
    def whole(self) -> bool:
        """Whether the kept checkpoint is this state itself, with all its values."""
        return self.depth == len(self.held.messages)

    @property
    def open(self) -> bool:
        """Whether something stands there that nobody has answered."""
        last = self.held.messages[self.depth - 1] if self.depth else None
        return last is not None and (last.type != "ai" or bool(getattr(last, "tool_calls", None)))


@dataclass(frozen=True)
class History:
    """All states of a thread, the newest first; `head` is the one it stands in."""

    states: Sequence[State]
    head: State | None

    @cached_property
    def _by_key(self) -> Mapping[str, State]:
        return {_key(state.id): state for state in self.states}

    def find(self, state_id: str) -> State:
        """Raises StateNotFound."""
        found = self._by_key.get(_key(state_id))
        if found is None:
            raise StateNotFound(f"this thread has no state '{state_id[:80]}'; its history lists those that there are")
        return found

    def has(self, state: State) -> bool:
        return state.key in self._by_key

    def asked(self, state: State) -> State:
        """The state itself where it ends with what a person or a tool said, else the nearest before it that does."""
        while state.parent is not None and state.held.messages[state.depth - 1].type == "ai":
            state = self.find(state.parent)
        return state


def _id(epoch: int, depth: int, key: str) -> str:
    return f"{epoch:08x}-{depth:04x}-8{key[:3]}-8{key[3:6]}-{key[6:18]}"


def _key(state_id: str) -> str:
    parts = state_id.split("-")
    return parts[2][1:] + parts[3][1:] + parts[4] if len(parts) == 5 else ""


def derive(head: Held | None, left: Sequence[tuple[Branch, Held | None]]) -> History:
    """The states of a thread from the checkpoint it stands on and the branches that were left, the first left first."""
    if head is None:
        return History((), None)
    chains = [(held, held.keys) for held in (head, *(held for _, held in reversed(left) if held is not None))]
    found: dict[str, tuple[int, int, str | None]] = {}
    for branch, _ in left:
        keys = next((keys for _, keys in chains if branch.leaf in keys), ())
        for depth, key in enumerate(keys[: keys.index(branch.leaf) + 1] if keys else ()):
            found.setdefault(key, (branch.epoch, depth, keys[depth - 1] if depth else None))
    epoch = max((branch.epoch for branch, _ in left), default=-1) + 1
    for _, keys in chains:
        for depth, key in enumerate(keys):
            found.setdefault(key, (epoch, depth, keys[depth - 1] if depth else None))
    ids = {key: _id(at, depth, key) for key, (at, depth, _) in found.items()}
    where = {key: (held, depth) for held, keys in reversed(chains) for depth, key in enumerate(keys)}
    states = [State(ids[key], ids[up] if up else None, key, *where[key]) for key, (_, _, up) in found.items()]
    states.sort(key=lambda state: found[state.key][:2], reverse=True)
    last = chains[0][1][-1]
    return History(states, next(state for state in states if state.key == last))


class Branches:
    """The branches of threads in the database, and what is done with them in the checkpoints."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        metadata.create_all(engine)

    def left(self, thread_id: str) -> list[Branch]:
        """The branches that were left, the first left first. Blocking."""
        of_thread = select(thread_branches).where(thread_branches.c.thread_id == thread_id).order_by(thread_branches.c.epoch)
        with self._engine.connect() as connection:
            return [Branch(row.epoch, row.checkpoint_id, row.leaf) for row in connection.execute(of_thread)]

    def kept(self, thread_id: str) -> list[str]:
        """The checkpoints that hold branches which were left. Blocking."""
        return [branch.checkpoint_id for branch in self.left(thread_id) if branch.checkpoint_id]

    def put(self, thread_id: str, branches: Sequence[Branch]) -> None:
        """Have a thread have left these branches and no others. Blocking."""
        with self._engine.begin() as connection:
            connection.execute(delete(thread_branches).where(thread_branches.c.thread_id == thread_id))
            for branch in branches:
                connection.execute(insert(thread_branches).values(thread_id=thread_id, **asdict(branch)))

    def leave(self, thread_id: str, head: State, released: str) -> None:
        """Note the branch that the thread stands on as left, and that of the checkpoint `released` as gone on with. Blocking."""
        before = self.left(thread_id)
        row = {"epoch": (before[-1].epoch + 1) if before else 0, "checkpoint_id": head.held.checkpoint_id, "leaf": head.key}
        too_many = [b.checkpoint_id for b in before if b.checkpoint_id][: -(MAX_BRANCHES - 1)]
        gone = (thread_branches.c.thread_id == thread_id, thread_branches.c.checkpoint_id.in_([*too_many, released]))
        with self._engine.begin() as connection:
            connection.execute(update(thread_branches).where(*gone).values(checkpoint_id=""))
            connection.execute(insert(thread_branches).values(thread_id=thread_id, **row))

    async def history(self, saver: Saver, thread_id: str, asked: Sequence[BaseMessage] = ()) -> History:
        """The thread's states; `asked` is what a run that goes on was asked, which its checkpoint may not hold yet."""
        held = await _held(saver, thread_id, None, asked)
        noted = await asyncio.to_thread(self.left, thread_id)
        left = [(b, await _held(saver, thread_id, b.checkpoint_id) if b.checkpoint_id else None) for b in noted]
        return await asyncio.to_thread(derive, held, left)  # thousands of messages take their time

    def values(self, saver: Saver, thread_id: str) -> Values:
        """What is noted of the thread's states beside their messages."""
        return Values(self._engine, thread_id, saver.serde)

    async def note(self, graph: CompiledStateGraph, saver: Saver, thread_id: str) -> None:
        """Note what the graph keeps beside its messages in the state in which the thread stands."""
        held = await _held(saver, thread_id, None)
        found = {name: held.values[name] for name in lasting(graph) if name in held.values} if held else {}
        if held is not None and found:
            await asyncio.to_thread(lambda: self.values(saver, thread_id).save(held.keys[-1], found))

    async def go_back(self, graph: CompiledStateGraph, saver: Saver, thread_id: str, state: State) -> None:
        """Have the thread stand in an earlier state; where it stood stays a branch. No run may be going on it."""
        from agents.history import settle

        head = (await self.history(saver, thread_id)).head
        if head is not None and head.key != state.key:
            await asyncio.to_thread(self.leave, thread_id, head, state.held.checkpoint_id if state.whole else "-")
        config = configured(thread_id, state.held.checkpoint_id)
        if not state.whole and (names := lasting(graph)):
            values = await asyncio.to_thread(self.values(saver, thread_id).at, state.keys)
            config = config if values is None else await rewritten(saver, config, names, values)
        said: list[Any] = list(state.messages)
        await graph.aupdate_state(config, {"messages": overwritten(graph, settle(said))}, as_node="__start__")


def overwritten(graph: CompiledStateGraph, messages: list[Any]) -> Any:
    """What replaces a graph's messages, whatever its reducer does with new ones."""
    from langgraph.channels import BinaryOperatorAggregate
    from langgraph.types import Overwrite

    return Overwrite(messages) if isinstance(graph.channels.get("messages"), BinaryOperatorAggregate) else messages


async def _held(saver: Saver, thread_id: str, checkpoint_id: str | None, asked: Sequence[BaseMessage] = ()) -> Held | None:
    saved = await saver.aget_tuple(configured(thread_id, checkpoint_id))
    if saved is None:
        return Held("", list(asked)) if asked else None
    values = saved.checkpoint["channel_values"]
    messages = list(values.get("messages") or ())
    messages += lacking(messages, asked)
    return Held(saved.checkpoint["id"], messages, values, saved.checkpoint["ts"])


__all__ = ["Branches", "History", "State", "StateNotFound"]
