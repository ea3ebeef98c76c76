"""What a run that stopped for a person asks, and what the person decided.

A graph stops with LangGraph's `interrupt` (https://docs.langchain.com/oss/python/langgraph/interrupts). Our tool node asks
for approval of tool calls; a developer's own graph may ask anything. Each question has an id that its answer names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any

APPROVAL = "approval"
"""`type` of the interrupt value by which tool calls ask for approval: `{"type", "calls": [{"id", "name", "arguments"}]}`."""
decided: ContextVar[dict[str, dict[str, Any]] | None] = ContextVar("smalti_decided", default=None)
"""What a person decided of tool calls, by call id, until they are run: it holds though the tool, changed since, would not ask."""

_ID = re.compile(r"(?:mcpr|ask)_([0-9a-zA-Z-]{1,64})_(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to a person.

    Parameters
    ----------
    id: names the run and the question: `mcpr_RUN_N` for an approval, `ask_RUN_N` for anything else.
    interrupt: LangGraph's id of the interrupt.
    call_id: the tool call that would be made; empty for a question of another kind.
    name, arguments: the tool and what it would be called with, or the question.
    """

    id: str
    interrupt: str
    call_id: str
    name: str
    arguments: Mapping[str, Any]

    @property
    def approval(self) -> bool:
        return bool(self.call_id)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person said: approve (with `arguments`, if edited) or reject (with a `reason`), or the `answer` to a question."""

    approve: bool = True
    arguments: Mapping[str, Any] | None = None
    reason: str = ""
    answer: Any = None


class NotAsked(Exception):
    """A decision names a question that is not open, or leaves one open."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run that waits on a thread."""

    run_id: str
    asks: tuple[Ask, ...] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "asks": [ask.to_dict() for ask in self.asks]}

    @classmethod
    def from_json(cls, text: str) -> Waiting:
        body = json.loads(text)
        return cls(body["run_id"], tuple(Ask(**ask) for ask in body["asks"]))

    def of_calls(self, decisions: Mapping[str, Decision]) -> dict[str, dict[str, Any]]:
        """What was decided of tool calls, by call id."""
        said = {ask.call_id: decisions[ask.id] for ask in self.asks if ask.approval}
        return {call: {"approve": d.approve, "arguments": d.arguments, "reason": d.reason} for call, d in said.items()}

    def resume(self, decisions: Mapping[str, Decision]) -> dict[str, Any]:
        """The values by which LangGraph goes on, by interrupt id. Raises NotAsked."""
        open_ids = [ask.id for ask in self.asks]
        if strange := [name for name in decisions if name not in open_ids]:
            raise NotAsked(f"'{strange[0]}' is not asked; open are {', '.join(open_ids)}")
        if missing := [name for name in open_ids if name not in decisions]:
            raise NotAsked(f"'{missing[0]}' is not decided; decide all of {', '.join(open_ids)} in one request")
        values: dict[str, Any] = {}
        of_calls = self.of_calls(decisions)
        for ask in self.asks:
            if ask.approval:
                values.setdefault(ask.interrupt, {})[ask.call_id] = of_calls[ask.call_id]
            else:
                values[ask.interrupt] = decisions[ask.id].answer
        return values


def waiting_of(run_id: str, interrupts: Sequence[Any]) -> Waiting:
    """The questions of a run's interrupts."""
    asks: list[Ask] = []
    for interrupt in interrupts:
        value = interrupt.value
        if isinstance(value, Mapping) and value.get("type") == APPROVAL:
            for call in value["calls"]:
                asks.append(Ask(f"mcpr_{run_id}_{len(asks)}", interrupt.id, call["id"], call["name"], call["arguments"]))
        else:
            arguments = dict(value) if isinstance(value, Mapping) else {"question": value}
            asks.append(Ask(f"ask_{run_id}_{len(asks)}", interrupt.id, "", "ask_person", arguments))
    return Waiting(run_id, tuple(asks))


def run_of(ask_id: str) -> str | None:
    """The run that a question's id names; None where it is no such id."""
    match = _ID.fullmatch(ask_id)
    return match[1] if match else None
