"""The engine of an agent: the only place where LangGraph's stream becomes events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from agents.approvals import Ask, waiting_of
from governance.call import STEP, Call, CallError, Engine, Event, bad_request, not_found
from serving.dispatch import inner_loop, inner_usage
from serving.engines.answer import Answer
from serving.engines.messages import decisions, items_to_langchain

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from agents.runtime import Agent, Runtime

_MANY = 200
_EXACT = 20_000  # characters up to which tokens are counted rather than estimated

CITED = ("id", "document_id", "index", "source", "title", "start", "end", "score")
"""Fields of a retrieved passage that an answer's `custom_outputs` tell."""


def agent_engine(
    runtime: Runtime,
    agent: Agent,
    *,
    base_url: str | Callable[[Call], str] = "",
    count_tokens: Callable[[str], int] | None = None,
) -> Engine:
    """An engine that runs `agent`.

    A payload's `thread`, which no client sends, says where on its thread a call goes on: from which `state`, to answer `again`
    what stands there, or to `update` it with the values that the input holds, as if `as_node` had written them.

    Parameters
    ----------
    runtime, agent: what runs it, and what runs.
    base_url: where citations lead, `{base_url}/documents/{index}/{document_id}?start=S&end=E`.
    count_tokens: counts an answer's tokens where no model was called; by default four characters are a token.
    """

    runtime.agents[agent.name] = agent

    async def run(call: Call) -> AsyncIterator[Event]:
        from agents.runtime import (
            AgentChanged,
            NotAnUpdate,
            NotAsked,
            NothingAsked,
            RunLimit,
            StateNotFound,
            ThreadBusy,
            ThreadNotFound,
        )

        on: Mapping[str, Any] = call.payload.get("thread") or {}
        if len(call.payload.get("input") or ()) > _MANY:  # 5,000 messages take half a second: not on the loop
            messages = await asyncio.to_thread(items_to_langchain, call.payload)
        else:
            messages = items_to_langchain(call.payload)
        decided = decisions(call.payload)
        if not decided and not on.get("update") and messages[-1].type not in ("human", "tool"):
            raise bad_request(
                "The last message must be the user's: there is nothing to answer after an assistant message.", "input"
            )
        answer = Answer(call)
        usage: dict[str, int] = {}
        outer_usage, outer_loop = inner_usage.get(), inner_loop.get()
        inner_usage.set(usage)
        inner_loop.set(asyncio.get_running_loop())
        site = base_url(call) if callable(base_url) else base_url
        state: Mapping[str, Any] = {}
        owner = call.caller.principal if call.caller else ""
        given: dict[str, Any] = {"owner": owner, "run_id": call.request_id, "state": on.get("state")}
        if on.get("update"):
            messages = []  # no model reads them now
            thread_id = call.thread_id or ""
            parts = _updated(partial(runtime.update, agent, _values(call.payload), thread_id, **given, as_node=on.get("as_node")))
        else:
            again = bool(on.get("again"))
            said = [] if again else messages
            parts = runtime.stream(agent, said, thread_id=call.thread_id, **given, decisions=decided, again=again)
        started = False
        try:
            async with aclosing(parts):  # type: ignore[type-var]
                async for _, mode, chunk in parts:
                    if mode == "started" and not call.payload.get("background"):
                        continue  # a refusal of the first step still has its own HTTP status
                    if not started:  # only now is it known that the thread is the caller's and free
                        started = True
                        for event in answer.start():
                            yield event
                    if mode == "values":
                        state = chunk
                        continue
                    for event in _events(answer, mode, chunk, site):
                        yield event
        except (ThreadNotFound, StateNotFound, NotAsked) as error:
            raise not_found(str(error)) from None
        except (NotAnUpdate, NothingAsked) as error:
            raise bad_request(str(error), "values" if on.get("update") else "input") from None
        except RunLimit as error:
            raise CallError(str(error), status=504, code="DEADLINE_EXCEEDED") from None
        except AgentChanged as error:
            raise CallError(f"{error}.", status=409, code="RESOURCE_CONFLICT") from None
        except ThreadBusy as error:
            raise CallError(str(error), status=409, code="RESOURCE_CONFLICT", retry_after=1) from None
        finally:
            inner_usage.set(outer_usage)
            inner_loop.set(outer_loop)
        if not started:
            for event in answer.start():
                yield event
        for event in _end(call, answer, state, usage, messages, count_tokens or _estimate):
            yield event

    return run


async def _updated(change: Callable[[], Awaitable[None]]) -> AsyncGenerator[Any, None]:
    """A change of a thread as a run that says nothing."""
    await change()
    yield (), "started", ""


def _values(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an update, which come as a tool's result does, so that guardrails read them. Raises `CallError` (400)."""
    try:
        values = orjson.loads(payload["input"][0]["output"])
    except orjson.JSONDecodeError:
        raise bad_request("A guardrail masked what these values cannot be read without; leave it out.", "values") from None
    assert isinstance(values, dict), "made by the protocol"
    return values


def _events(answer: Answer, mode: str, chunk: Any, site: str) -> Sequence[Event]:
    """What a part of LangGraph's stream says to the client."""
    if mode == "messages":
        return list(answer.write(chunk[0].text))
    if not isinstance(chunk, Mapping):
        return ()
    if delta := chunk.get("delta"):
        return list(answer.write(delta))
    if citation := chunk.get("citation"):
        return list(answer.annotate(annotation(citation, site)))
    if step := chunk.get("step"):
        return (Event(STEP, step),)
    return ()


def annotation(citation: Mapping[str, Any], site: str = "") -> dict[str, Any]:
    """A citation as a `url_citation` whose address opens the stored passage, highlighted."""
    where = f"{quote(citation['index'], safe='')}/{quote(citation['document_id'], safe='')}"
    return {
        "type": "url_citation",
        "start_index": citation["text_start"],
        "end_index": citation["text_end"],
        "url": f"{site}/documents/{where}?start={citation['start']}&end={citation['end']}",
        "title": citation["title"],
    }


def _end(
    call: Call,
    answer: Answer,
    state: Mapping[str, Any],
    usage: Mapping[str, int],
    messages: Sequence[BaseMessage],
    count_tokens: Callable[[str], int],
) -> list[Event]:
    events: list[Event] = []
    said = state.get("messages") or ()
    if not answer.written and said and said[-1].type == "ai":  # a graph that does not stream what it says
        events += answer.write(said[-1].text)
    if not usage.get("total_tokens"):
        read = "\n".join(message.text for message in messages)
        usage = {"input_tokens": _count(read, count_tokens), "output_tokens": _count(answer.written, count_tokens)}
    route, abstained, mode = state.get("route"), bool(state.get("abstained")), state.get("mode") or "generative"
    asks = waiting_of(call.request_id, state.get("__interrupt__") or ()).asks
    for ask in asks:
        events += _asked(answer, ask)
    citations = [each if isinstance(each, Mapping) else each.to_dict() for each in state.get("citations") or ()]
    metadata = {
        "mode": mode,
        "abstained": str(abstained).lower(),
        "route": getattr(route, "label", None),
        "thread_id": call.thread_id,
    }
    custom = {
        "mode": mode,
        "abstained": abstained,
        "route": {"label": route.label, "confidence": route.confidence} if route else None,
        "passages": [{key: getattr(passage, key) for key in CITED} for passage in state.get("documents") or ()],
        "citations": citations,
        "trace_id": f"tr-{call.request_id}",
        "thread_id": call.thread_id,
        **({"supported": state["supported"]} if state.get("supported") is not None else {}),
        **({"waiting": [ask.to_dict() for ask in asks]} if asks else {}),
    }
    told = {key: str(value) for key, value in metadata.items() if value is not None}
    return [*events, *answer.finish(usage=usage, metadata=told, custom_outputs=custom)]


def _asked(answer: Answer, ask: Ask) -> list[Event]:
    """A question to a person, as an item that official clients know how to answer."""
    arguments = orjson.dumps(ask.arguments, default=str).decode()
    if ask.approval:
        item = {"type": "mcp_approval_request", "id": ask.id, "server_label": "smalti", "name": ask.name}
        return list(answer.item({**item, "arguments": arguments}))
    return [*answer.call_tool(ask.id, ask.name), *answer.arguments(arguments)]


def _count(text: str, count_tokens: Callable[[str], int]) -> int:
    return count_tokens(text) if len(text) <= _EXACT else _estimate(text)


def _estimate(text: str) -> int:
    return -(-len(text) // 4)
