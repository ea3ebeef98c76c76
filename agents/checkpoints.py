"""The checkpoints of threads: opened, pruned, and brought to a state that the next turn can use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents import postgres

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage, ToolMessage
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    from langgraph.graph.state import CompiledStateGraph
    from typing_extensions import TypeIs

    Saver = AsyncSqliteSaver | AsyncPostgresSaver

INNER = ("__", "branch:", "join:")
"""Begin the names of LangGraph's own channels."""

STOPPED = "(stopped)"
"""What stands in a thread for the answer of a run that ended before it said anything."""


async def open_saver(place: Path | str, types: Sequence[type] = ()) -> Saver:
    """The checkpoints of an SQLite file or of a PostgreSQL URL, made if there are none, in the running loop."""
    from agents.serde import CompactSerializer

    ours = [("retrieval.types", "Passage"), ("agents.state", "Citation"), ("agents.state", "Route")]
    allowed = [*ours, *((t.__module__, t.__qualname__) for t in types)]
    serde = CompactSerializer(allowed_msgpack_modules=allowed)
    return await postgres.open_saver(place, serde) if isinstance(place, str) else await _open_file(place, serde)


async def _open_file(file: Path, serde: Any) -> AsyncSqliteSaver:
    import aiosqlite
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    file.parent.mkdir(parents=True, exist_ok=True)
    connection = await aiosqlite.connect(file, timeout=30)
    await connection.execute("PRAGMA journal_mode=WAL")
    await connection.execute("PRAGMA synchronous=NORMAL")
    await connection.execute("PRAGMA journal_size_limit=1048576")
    saver = AsyncSqliteSaver(connection, serde=serde)
    await saver.setup()
    return saver


def _in_file(saver: Saver) -> TypeIs[AsyncSqliteSaver]:
    return type(saver).__name__ == "AsyncSqliteSaver"  # the other's library may not be installed


async def close_saver(saver: Saver) -> None:
    if not _in_file(saver):
        return await postgres.close_saver(saver)
    await saver.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    await saver.conn.close()


def configured(thread_id: str, checkpoint_id: str | None = None) -> RunnableConfig:
    """Names a thread's last checkpoint, or another."""
    at = {"checkpoint_id": checkpoint_id} if checkpoint_id else {}
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", **at}}


async def known(saver: Saver, thread_id: str) -> bool:
    """Whether anything was said on a thread."""
    if not _in_file(saver):
        return await postgres.known(saver, thread_id)
    async with saver.conn.execute("SELECT 1 FROM checkpoints WHERE thread_id = ? LIMIT 1", (thread_id,)) as rows:
        return await rows.fetchone() is not None


async def messages_of(saver: Saver, thread_id: str) -> list[BaseMessage]:
    saved = await saver.aget_tuple({"configurable": {"thread_id": thread_id}})
    return list(saved.checkpoint["channel_values"].get("messages") or []) if saved else []


async def prune(saver: Saver, thread_id: str, *, waiting: bool = False, kept: Sequence[str] = ()) -> None:
    """Keep a thread's last checkpoint, which holds all that was said, and `kept`, those that hold branches which were left.

    What subgraphs keep is needed only while one waits.
    """
    if not _in_file(saver):
        return await postgres.prune(saver, thread_id, waiting=waiting, kept=kept)
    last = "(SELECT MAX(checkpoint_id) FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = '')"
    old = f"checkpoint_ns = '' AND checkpoint_id < {last} AND checkpoint_id NOT IN ({', '.join('?' * len(kept))})"
    within = "" if waiting else " OR checkpoint_ns != ''"
    async with saver.lock:
        for table in ("checkpoints", "writes"):
            await saver.conn.execute(
                f"DELETE FROM {table} WHERE thread_id = ? AND (({old}){within})", (thread_id, thread_id, *kept)
            )
        await saver.conn.commit()


async def last_of(saver: Saver, thread_id: str) -> str | None:
    """The id of a thread's last checkpoint."""
    saved = await saver.aget_tuple({"configurable": {"thread_id": thread_id}})
    return saved.checkpoint["id"] if saved else None


def lacking(messages: Sequence[BaseMessage], asked: Sequence[BaseMessage]) -> list[BaseMessage]:
    """What a run was asked that is not among the messages of its thread, which hold it once its first step is done."""
    there = {message.id for message in messages}
    return [message for message in asked if message.id not in there]


async def unfinished(saver: Saver, thread_id: str) -> list[str]:
    """The nodes that a thread's graph would run next."""
    saved = await saver.aget_tuple({"configurable": {"thread_id": thread_id}})
    return next_of(saved.checkpoint["channel_values"]) if saved else []


def next_of(values: Mapping[str, Any]) -> list[str]:
    """The nodes that a checkpoint leads to, by its channels."""
    return [name.removeprefix(_LEADS_TO) for name in values if name.startswith(_LEADS_TO)]


_LEADS_TO = "branch:to:"
"""Begins the name of the channel by which LangGraph starts a node."""


async def take_back(saver: Saver, thread_id: str, last: str | None) -> None:
    """Drop the checkpoints of a thread that came after `last`; None drops all."""
    if last is None:
        return await saver.adelete_thread(thread_id)
    if not _in_file(saver):
        return await postgres.take_back(saver, thread_id, last)
    async with saver.lock:
        for table in ("checkpoints", "writes"):
            await saver.conn.execute(
                f"DELETE FROM {table} WHERE thread_id = ? AND (checkpoint_id > ? OR checkpoint_ns != '')", (thread_id, last)
            )
        await saver.conn.execute("DELETE FROM writes WHERE thread_id = ? AND checkpoint_id = ?", (thread_id, last))
        await saver.conn.commit()


async def rewritten(saver: Saver, config: RunnableConfig, names: Sequence[str], values: Mapping[str, Any]) -> RunnableConfig:
    """A new last checkpoint that is as another, but for what the channels of these names hold: `values`, or nothing."""
    from langgraph.checkpoint.base.id import uuid6

    saved = await saver.aget_tuple(config)
    assert saved is not None, "branches that can be gone back to are kept"
    others = {name: value for name, value in saved.checkpoint["channel_values"].items() if name not in names}
    before: dict[str, Any] = dict(saved.checkpoint["channel_versions"])
    new: Any = {name: saver.get_next_version(before.get(name), None) for name in names if name in values}
    versions = {name: version for name, version in before.items() if name not in names}  # without one, nothing was ever written
    checkpoint: Any = {**saved.checkpoint, "id": str(uuid6(clock_seq=-2))}
    checkpoint |= {"channel_values": {**others, **values}, "channel_versions": {**versions, **new}}
    return await saver.aput(saved.config, checkpoint, saved.metadata, new)


async def copy(saver: Saver, thread_id: str, to: str) -> None:
    """Have another thread hold the same checkpoints."""
    found = [saved async for saved in saver.alist({"configurable": {"thread_id": thread_id}})]
    for saved in sorted(found, key=lambda each: each.checkpoint["id"]):
        namespace = saved.config.get("configurable", {}).get("checkpoint_ns", "")
        config: RunnableConfig = {"configurable": {"thread_id": to, "checkpoint_ns": namespace}}
        here = await saver.aput(config, saved.checkpoint, saved.metadata, saved.checkpoint["channel_versions"])
        by_task: dict[str, list[tuple[str, Any]]] = {}
        for task, channel, value in saved.pending_writes or ():
            by_task.setdefault(task, []).append((channel, value))
        for task, writes in by_task.items():
            await saver.aput_writes(here, writes, task)


async def settle(
    graph: CompiledStateGraph,
    saver: Saver,
    config: RunnableConfig,
    new: Sequence[BaseMessage],
    *,
    status: str,
    said: str = "",
    citations: Sequence[Mapping[str, Any]] = (),
    results: Sequence[ToolMessage] = (),
    unanswered: str | None = None,
) -> None:
    """Bring the thread of a run that did not finish to a state that the next turn can use.

    Every tool call is answered, by its result where it finished, and the turn ends with what was said.

    Parameters
    ----------
    new: what the run was asked.
    status: how it ended: `cancelled`, `failed` or `waiting` (a person was asked and said something else).
    said, citations: what was said by then.
    results: of the tool calls that finished, in any order; those that the thread has already count once.
    unanswered: what stands for the result of a tool call that has none.
    """
    from langchain_core.messages import AIMessage

    from agents.history import UNANSWERED
    from agents.history import settle as settled_history

    if "messages" not in graph.channels:
        return
    saved = await saver.aget_tuple(config)
    values = saved.checkpoint["channel_values"] if saved else {}
    messages = list(values.get("messages") or [])
    messages += (missing := lacking(messages, new))
    if not messages:
        return
    held, offset = await _within(saver, config, messages)
    messages += held
    missing += held
    last = messages[-1]
    if isinstance(last, AIMessage) and not last.tool_calls:  # stopped after its answer was complete
        if held:
            await graph.aupdate_state(config, {"messages": missing}, as_node="__start__")
        return
    settled = settled_history([*messages, *results], unanswered or UNANSWERED)
    extra = [*missing, *(m for m in settled if m not in messages)]
    text = said[max(int(values.get("offset") or 0), offset) :]
    kept = {"mode": "", "abstained": False, "status": status, "citations": list(citations)}
    extra.append(AIMessage((text.strip() and text) or STOPPED, response_metadata=kept))
    await graph.aupdate_state(config, {"messages": extra}, as_node="__start__")


async def _within(saver: Saver, config: RunnableConfig, messages: Sequence[BaseMessage]) -> tuple[list[BaseMessage], int]:
    """What a subgraph added to a conversation that its graph was not given yet, and how much of the answer was told by then."""
    there, asked = {m.id for m in messages}, [m.id for m in messages if m.type == "human"][-1:]
    whole: Mapping[str, Any] = {}
    async for saved in saver.alist({"configurable": {"thread_id": config.get("configurable", {})["thread_id"]}}):
        values = saved.checkpoint["channel_values"]
        here = values.get("messages") or []
        inner = bool(saved.config.get("configurable", {}).get("checkpoint_ns"))
        if inner and asked and asked[0] in {m.id for m in here} and len(here) > len(whole.get("messages") or ()):
            whole = values
    return [m for m in whole.get("messages") or () if m.id not in there], int(whole.get("offset") or 0)
