"""A thread as it stands: the state of its graph in plain values, and what it waits for.

The shape of messages is that of LangChain's `model_dump`, which LangGraph's clients read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any

from agents.approvals import APPROVAL, Ask, Waiting
from agents.checkpoints import INNER, lacking, next_of
from agents.tables import Thread

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langgraph.checkpoint.base import BaseCheckpointSaver

_OURS = frozenset({"offset", "plan", "notes"})
"""Channels that mean nothing outside their graph."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A thread's state. `checkpoint_id` is empty where nothing was said yet; `created` is ISO 8601."""

    thread: Thread
    values: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_id: str = ""
    created: str | None = None
    next: Sequence[str] = ()
    """The nodes that its graph would run next."""

    @property
    def waiting(self) -> Waiting | None:
        return Waiting.from_json(self.thread.waiting) if self.thread.waiting else None

    def interrupts(self) -> list[dict[str, Any]]:
        """What is asked, in LangGraph's shape: `{"id", "value"}` for each interrupt.

        An approval's value is LangChain's `HITLRequest` too (https://docs.langchain.com/oss/python/langchain/human-in-the-loop).
        """
        found: dict[str, Any] = {}
        for ask in self.waiting.asks if self.waiting else ():
            if ask.approval:
                _request(found.setdefault(ask.interrupt, {"type": APPROVAL, "calls": []}), ask)
            else:
                found[ask.interrupt] = dict(ask.arguments)
        return [{"id": name, "value": value} for name, value in found.items()]


def _request(value: dict[str, Any], ask: Ask) -> None:
    """Add a call that asks for approval to its interrupt's value."""
    arguments = dict(ask.arguments)
    value["calls"].append({"id": ask.id, "name": ask.name, "arguments": arguments})
    value.setdefault("action_requests", []).append({"name": ask.name, "args": arguments})
    configs = value.setdefault("review_configs", [])
    if all(config["action_name"] != ask.name for config in configs):
        configs.append({"action_name": ask.name, "allowed_decisions": ["approve", "edit", "reject"]})


async def snapshot_of(saver: BaseCheckpointSaver, thread: Thread, asked: Sequence[BaseMessage] = ()) -> Snapshot:
    """The thread's last checkpoint, with what its run was asked."""
    saved = await saver.aget_tuple({"configurable": {"thread_id": thread.id}})
    if saved is None:
        return Snapshot(thread, {"messages": plain(asked)} if asked else {})
    channels = saved.checkpoint["channel_values"]
    values = told(channels)
    if asked:
        values["messages"] = [*values.get("messages", ()), *map(plain, lacking(channels.get("messages") or (), asked))]
    return Snapshot(thread, values, saved.checkpoint["id"], saved.checkpoint["ts"], tuple(next_of(channels)))


def told(channels: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's channels tell people and programs."""
    return {key: plain(value) for key, value in channels.items() if key not in _OURS and not key.startswith(INNER)}


def plain(value: Any) -> Any:
    """A value of a graph's state as JSON has it; what JSON has no shape for, as text."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude={"artifact"})
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value
