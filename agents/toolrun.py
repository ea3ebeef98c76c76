"""Running the tool calls of a model's message: approved where they must be, bounded, and never run a second time.

What a tool raises goes back to the model as its result. Each finished call is committed before the next one begins
(`agents.kept`), so that a process that is killed forgets none. A tool says what it is in its `metadata`:
`{"approval": True}` asks a person first; `{"timeout": 30}` bounds it in seconds. A tool with side effects finds a key
that is the same for the same call in `config["metadata"]["idempotency_key"]`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableConfig

from agents.approvals import APPROVAL, decided
from agents.history import MALFORMED, text_of
from agents.kept import Kept, kept
from agents.state import AgentState, emit_step
from agents.tools.retrieve import render
from retrieval.types import Passage

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

MAX_TOOL_CHARS = 40_000
TOOL_TIMEOUT = 120.0
"""Seconds a tool may take."""
GRACE = 0.02
"""Seconds that a tool has to end by itself once its run is cancelled: what has been done is then told, not done again."""


def wants_tools(state: AgentState) -> bool:
    """Whether the last message calls tools."""
    last = state["messages"][-1]
    return isinstance(last, AIMessage) and bool(last.tool_calls)


def needs_approval(tool: BaseTool) -> bool:
    return bool((tool.metadata or {}).get("approval"))


async def run_tools(state: AgentState, tools: Sequence[BaseTool]) -> dict[str, Any]:
    """Run the last message's tool calls, one after another; the new state holds their results, and the passages they found."""
    last = state["messages"][-1]
    assert isinstance(last, AIMessage)
    by_name = {tool.name: tool for tool in tools}
    said = _approve(by_name, last)
    calls = [{**call, "args": said.get(call["id"] or "", {}).get("arguments") or call["args"]} for call in last.tool_calls]
    documents = list(state.get("documents") or [])
    results: list[Any] = []
    if calls != last.tool_calls:  # edited: the history says what was run
        results.append(last.model_copy(update={"tool_calls": calls}))
    for call in calls:
        decision = said.get(call["id"] or "")
        with emit_step(call["name"], "tool", inputs=dict(call["args"])) as step:
            if decision is not None and not decision.get("approve"):
                why = f": {decision['reason']}" if decision.get("reason") else "."
                result = _failed(call, f"A person did not approve this call{why}")
            else:
                key = hashlib.sha256(f"{last.id}:{call['id']}".encode()).hexdigest()[:32]
                found = await _once(by_name, call, key)
                result, documents = _numbered(found, documents)
            step.status = "ERROR" if result.status == "error" else "OK"
            step.outputs = {"text": text_of(result)[:2_000]}
        results.append(result)
    decided_now = {"offset": 0} if said else {}  # what was said before a person was asked is another answer's text
    return {"messages": results, "documents": documents, **decided_now}


def _approve(by_name: Mapping[str, BaseTool], message: AIMessage) -> Mapping[str, Mapping[str, Any]]:
    """Decisions by call id. Stops the run until a person has decided; asked first, so that nothing has run by then."""
    pending = decided.get() or {}
    known = {call["id"]: pending.pop(call["id"]) for call in message.tool_calls if call["id"] in pending}
    made = [call for call in message.tool_calls if MALFORMED not in call["args"]]
    calls = [c for c in made if (tool := by_name.get(c["name"])) is not None and needs_approval(tool)]
    if not calls:
        return known
    from langgraph.types import interrupt

    asked = [{"id": call["id"] or "", "name": call["name"], "arguments": call["args"]} for call in calls]
    said = interrupt({"type": APPROVAL, "calls": asked})
    return {**known, **said} if isinstance(said, Mapping) else known


async def _once(by_name: Mapping[str, BaseTool], call: Mapping[str, Any], key: str) -> ToolMessage:
    """The call's result, from before where it has one; on a thread it is durable when this returns."""
    keep = kept.get()
    if keep is None:
        return await _run(by_name, call, key)
    found = await keep.find(key)
    return found or await _finished(_run_and_keep(by_name, call, key, keep))


async def _run_and_keep(by_name: Mapping[str, BaseTool], call: Mapping[str, Any], key: str, keep: Kept) -> ToolMessage:
    found = await _run(by_name, call, key)
    await keep.save(key, found)
    return found


async def _finished(running: Coroutine[Any, Any, ToolMessage]) -> ToolMessage:
    """A call's result; a run that is cancelled just as the tool has ended keeps it first."""
    task = asyncio.ensure_future(running)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=GRACE)
        task.cancel()
        await asyncio.wait([task])
        raise


async def _run(by_name: Mapping[str, BaseTool], call: Mapping[str, Any], key: str) -> ToolMessage:
    name = call["name"]
    tool = by_name.get(name)
    if tool is None:
        return _failed(call, f"There is no tool {name!r}; there are: {', '.join(by_name) or 'none'}.")
    if MALFORMED in call["args"]:
        return _failed(call, f"The arguments of {name} were not a JSON object; it was not called. Call it again with one.")
    seconds = float((tool.metadata or {}).get("timeout") or TOOL_TIMEOUT)
    config: RunnableConfig = {"tags": ["nostream"], "metadata": {"idempotency_key": key}}
    asked = {"type": "tool_call", "name": name, "args": call["args"], "id": call.get("id") or ""}
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            result = await tool.ainvoke(asked, config=config)
    except Exception as error:
        if clock.expired():
            return _failed(call, f"{name} did not finish within {seconds:g} s and was stopped.")
        return _failed(call, f"{type(error).__name__}: {error}"[:2_000])
    if isinstance(result, ToolMessage):
        artifact = result.artifact
        text, status = text_of(result), result.status
    else:
        artifact, text, status = None, str(result), "success"
    passages = isinstance(artifact, list) and all(isinstance(each, Passage) for each in artifact)
    if len(text) > MAX_TOOL_CHARS:
        text = f"{text[:MAX_TOOL_CHARS]}\n[cut: the result had {len(text)} characters]"
    return ToolMessage(text, tool_call_id=call.get("id") or "", name=name, status=status, artifact=artifact if passages else None)


def _failed(call: Mapping[str, Any], text: str) -> ToolMessage:
    return ToolMessage(text, tool_call_id=call.get("id") or "", name=call["name"], status="error")


def _numbered(result: ToolMessage, documents: list[Passage]) -> tuple[ToolMessage, list[Passage]]:
    """The result with its passages numbered after those already shown, and all of them."""
    found = result.artifact
    if not found:
        return result, documents
    known = {passage.id for passage in documents}
    new = [passage for passage in found if passage.id not in known]
    again = [f"[{n}]" for n, p in enumerate(documents, 1) if any(p.id == f.id for f in found)]
    text = render(new, len(documents) + 1) if new or not again else ""
    if again:
        text = f"{text}\n\nAlso found, shown before: {' '.join(again)}".strip()
    return ToolMessage(text, tool_call_id=result.tool_call_id, name=result.name), [*documents, *new]
