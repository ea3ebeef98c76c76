"""LangGraph's server protocol: what a person decided, by which a run that asked goes on.

Approvals are answered as LangChain's human-in-the-loop middleware has it (`{"decisions": [{"type": "approve"}, …]}`), by true or
false, or by an object with `approve`; other questions by any value.
Source: https://docs.langchain.com/oss/python/langchain/human-in-the-loop
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from agents.approvals import Ask, Waiting
from governance.call import CallError, bad_request
from serving.protocols.request import describe


def decided(waiting: Waiting, resume: Any) -> Iterator[dict[str, Any]]:
    """A decision for each question as Responses items: one for all, by the question's id, or by the interrupt's.

    Raises `CallError` (400).
    """
    if isinstance(resume, Mapping) and all(ask.id in resume for ask in waiting.asks):
        for ask in waiting.asks:
            yield _item(ask, resume[ask.id])
    elif isinstance(resume, Mapping) and all(ask.interrupt in resume for ask in waiting.asks):
        for interrupt in dict.fromkeys(ask.interrupt for ask in waiting.asks):
            yield from _answers([ask for ask in waiting.asks if ask.interrupt == interrupt], resume[interrupt])
    else:
        yield from _answers(waiting.asks, resume)


def _answers(asks: Sequence[Ask], value: Any) -> Iterator[dict[str, Any]]:
    """One value for questions that were asked together."""
    listed = value.get("decisions") if isinstance(value, Mapping) else None
    approvals = [ask for ask in asks if ask.approval]
    if approvals and listed is not None:
        if not isinstance(listed, list) or len(listed) != len(approvals):
            many = len(listed) if isinstance(listed, list) else describe(listed)
            raise _wrong(f"Field 'command.resume.decisions' must decide all {len(approvals)} calls, in their order, not {many}.")
        for ask, decision in zip(approvals, listed, strict=True):
            yield _item(ask, _decision(ask, decision))
    else:
        yield from (_item(ask, value) for ask in approvals)
    yield from (_item(ask, value) for ask in asks if not ask.approval)


def _decision(ask: Ask, decision: Any) -> dict[str, Any]:
    kind = decision.get("type") if isinstance(decision, Mapping) else None
    if kind == "approve":
        return {"approve": True}
    if kind == "reject":
        return {"approve": False, "reason": decision.get("message")}
    if kind != "edit":
        raise _wrong("A decision's 'type' must be approve, edit or reject.")
    action = decision.get("edited_action") or decision.get("action")
    if not isinstance(action, Mapping) or not isinstance(action.get("args"), Mapping):
        raise _wrong("A decision to edit needs 'edited_action' with 'name' and 'args'.")
    if action.get("name") not in (None, ask.name):
        raise _wrong(f"A decision may edit the arguments of '{ask.name}'; it cannot call another tool.")
    return {"approve": True, "arguments": action["args"]}


def _item(ask: Ask, value: Any) -> dict[str, Any]:
    if not ask.approval:
        return {"type": "function_call_output", "call_id": ask.id, "output": orjson.dumps(value).decode()}
    told: Any = {"approve": value} if isinstance(value, bool) else value
    if not isinstance(told, Mapping) or not isinstance(told.get("approve"), bool):
        raise _wrong(
            "Field 'command.resume' must be true, false, an object with 'approve', or one with 'decisions' for each call, "
            f"not {describe(value)}."
        )
    item = {"type": "mcp_approval_response", "approval_request_id": ask.id, "approve": told["approve"]}
    if (arguments := told.get("arguments")) is not None:
        if not isinstance(arguments, Mapping):
            raise _wrong(f"An approval's 'arguments' must be an object, not {describe(arguments)}.")
        item["arguments"] = orjson.dumps(arguments).decode()
    return {**item, **({"reason": str(told["reason"])} if told.get("reason") else {})}


def _wrong(message: str) -> CallError:
    return bad_request(message, "command")
