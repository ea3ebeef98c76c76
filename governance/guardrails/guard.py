"""Guardrails around one endpoint: its policy, compiled, applied to requests and to answers while they leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from governance.call import STEP, TERMINAL, Call, CallError, Engine, Event
from governance.choices import asked
from governance.guardrails import pieces
from governance.guardrails.choices import guarded
from governance.guardrails.judges import ENDPOINT, GuardrailError, Judge, Toolkit, Where, asking, custom, safety, topics
from governance.guardrails.output import Shield, said_in
from governance.guardrails.rules import Blocked, Rules, mask, summary
from governance.guardrails.texts import OBJECT, ROWS, STRUCTURE, strings_of, texts_of, walk
from governance.policies import GuardrailParameters, Guardrails

if TYPE_CHECKING:
    from governance.guardrails.presidio import Presidio

logger = logging.getLogger("smalti.guardrails")

FAILED = "it could not decide, so nothing passes"
PATIENCE = 120.0
"""Seconds that one judge, or Presidio, may take; an endpoint that is one has time-outs of its own, and shorter ones."""
_LONG = 32_768  # bytes from which a request is looked at off the event loop

Verdicts = list[dict[str, str]]
"""`guardrail`, `where` (input, output), `action` (BLOCK, MASK) and `reason`, as they are kept in the call's row."""


class Side:
    """The guardrails of one direction. Raises `GuardrailError` where the policy asks for one that is not there."""

    def __init__(self, parameters: GuardrailParameters | None, kit: Toolkit) -> None:
        wanted = parameters or GuardrailParameters()
        behavior = (wanted.pii.behavior if wanted.pii else None) or "NONE"
        self.rules = Rules(behavior, wanted.invalid_keywords or ())
        self._names: Presidio | None = None
        if wanted.pii and wanted.pii.presidio and behavior != "NONE":
            from governance.guardrails.presidio import Presidio

            self._names = Presidio(wanted.pii.presidio)
        self.topics = [topics(wanted.valid_topics, kit)] if wanted.valid_topics else []
        self.judges: list[Judge] = [*self.topics, *([safety(kit)] if wanted.safety else [])]
        for path in wanted.custom or ():
            self.judges.append(asking(path, kit) if path.startswith(ENDPOINT) else custom(path, kit))
        self.any = self.rules.any or bool(self.judges)
        self.learns = self._names is not None
        """Whether all texts of a call are read before anything of them may pass."""

    async def learned(self, texts: Sequence[str]) -> Rules:
        """The rules for a call with these texts. Raises `TimeoutError` where they are not known in time."""
        if self._names is None:
            return self.rules
        from governance.guardrails.presidio import Learned

        async with asyncio.timeout(PATIENCE):
            words = await self._names.learn(texts)
        return Learned(self.rules, self.rules.pii, words)

    async def judge(self, texts: Sequence[str], where: Where, call: Call, arguments: Sequence[str] = ()) -> None:
        """Raises `Blocked`; a judge that fails, or says nothing for too long, blocks too. `arguments` of tools are judged, but
        are about no topic."""
        for judge in self.judges:
            looked = texts if judge in self.topics else [*texts, *arguments]
            try:
                async with asyncio.timeout(PATIENCE):
                    await judge([text for text in looked if text], where, call)
            except Blocked:
                raise
            except (Exception, SystemExit):  # as code of an operator's may raise
                logger.exception("a guardrail failed")
                raise Blocked("guardrail", FAILED) from None

    async def told(self, error: CallError, call: Call, verdicts: Verdicts) -> CallError:
        """A failure as it may be told: its message may be what a model said, or what it was sent."""
        said, message = error.message, f"{call.endpoint} failed, and its guardrails keep back what it said"
        try:
            rules = await self.learned([said])
            found = rules.find(said)
            await self.judge((), "output", call, [said])
            message = mask(said, found)
            if found:
                stop = rules.blocking(found)
                name, reason = (stop.guardrail, stop.reason) if stop else ("pii", summary(found))
                verdicts.append(verdict(name, "output", "MASK", reason))
        except Blocked as blocked:
            verdicts.append(verdict(blocked.guardrail, "output", "BLOCK", blocked.reason))
        except Exception:
            logger.exception("a guardrail failed")
            verdicts.append(verdict("guardrail", "output", "BLOCK", FAILED))
        error.message, error.args = message, (message,)
        return error


class Refused(CallError):
    """The input may not pass. `call` is what of it may be recorded."""

    def __init__(self, blocked: Blocked, call: Call) -> None:
        failed = blocked.reason == FAILED
        message = f"the {blocked.guardrail} guardrail of {call.endpoint} refuses this request: {blocked.reason}"
        super().__init__(message, status=503 if failed else 400, code="CONTENT_FILTER")
        self.call = call


class Guard:
    """One endpoint's guardrails, compiled once for each policy."""

    def __init__(self, rails: Guardrails, kit: Toolkit) -> None:
        self.input, self.output = Side(rails.input, kit), Side(rails.output, kit)

    async def admit(self, call: Call, verdicts: Verdicts, size: int) -> Call:
        """The call as it may go on, masked where the policy masks; `size` is the bytes of its request. Raises `Refused`."""
        if not self.input.any:
            return call
        try:
            rules = self.input.rules
            if self.input.learns:
                rules = await self.input.learned([*strings_of(call.payload), *call.usage_context.values()])
            long = size > _LONG
            masked, found, blocked = await asyncio.to_thread(_screen, call, rules) if long else _screen(call, rules)
            if found and not blocked:
                verdicts.append(verdict("pii", "input", "MASK", summary(found)))
            if not blocked and self.input.judges:
                said = strings_of(masked.payload) if call.task in ROWS else texts_of(masked.payload)
                try:
                    await self.input.judge(said, "input", masked)
                except Blocked as refused:
                    blocked = refused
        except Exception:
            logger.exception("a guardrail failed")
            masked, blocked = replace(call, payload={}, usage_context={}), Blocked("guardrail", FAILED)
        if blocked:
            verdicts.append(verdict(blocked.guardrail, "input", "BLOCK", blocked.reason))
            raise Refused(blocked, masked)
        return masked

    def around(self, engine: Engine, verdicts: Verdicts) -> Engine:
        """The engine, its answer guarded."""
        if not self.output.any:
            return engine
        side = self.output

        def run(call: Call) -> Any:
            if asked(call) == 1:
                return Guarded(side, call, engine(call), verdicts)
            return guarded(engine(call), call, lambda one: Guarded(side, call, one, verdicts), whole=side.learns)

        return run


class Guarded:
    """An answer with one side's guardrails around it: an iterator of its own, since a generator costs more than most guarding."""

    __slots__ = ("_answer", "_call", "_late", "_over", "_ready", "_shield", "_side", "_verdicts")

    def __init__(self, side: Side, call: Call, answer: Any, verdicts: Verdicts) -> None:
        self._side, self._call, self._verdicts = side, call, verdicts
        self._answer: Any = answer
        self._shield = Shield(side.rules, call)
        self._ready: Iterator[Event] = iter(())
        self._late: list[Event] = []  # where the whole answer is judged, nothing leaves before
        self._over = False

    def __aiter__(self) -> Guarded:
        return self

    async def __anext__(self) -> Event:
        for event in self._ready:
            return event
        while not self._over:
            try:
                if self._side.learns and not isinstance(self._answer, _Again):
                    await self._learn()
                event = await self._answer.__anext__()
                try:
                    told = await self._judged(event) if self._side.judges else self._shield.feed(event)
                except (Blocked, CallError):
                    raise
                except Exception:
                    logger.exception("a guardrail failed")
                    raise Blocked("guardrail", FAILED) from None
                if event.type in TERMINAL and self._shield.found:
                    self._verdicts.append(verdict("pii", "output", "MASK", summary(self._shield.found)))
            except Blocked as blocked:
                return self._stopped(blocked)
            except CallError as error:
                raise await self._side.told(error, self._call, self._verdicts) from None
            if told:
                if len(told) > 1:  # few events let go of others
                    self._ready = iter(told[1:])
                return told[0]
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the answer that is guarded."""
        self._over = True
        await self._answer.aclose()

    async def _judged(self, event: Event) -> list[Event]:
        """What may leave by its meaning: a whole answer, or what an agent's node did. Raises `Blocked`."""
        shield, call = self._shield, self._call
        ready = shield.feed(event)
        if event.type in TERMINAL:
            talk = call.task in ("agent", "chat")
            said = [shield.sent] if talk else shield.said(ready)
            await self._side.judge(said, "output", call, shield.arguments)
            return [*self._late, *ready]
        if event.type == STEP:
            return ready
        self._late += ready
        return []

    async def _learn(self) -> None:
        """Read the whole answer before anything of it is looked at. Raises `Blocked`."""
        whole = [event async for event in self._answer]
        self._answer = _Again(whole, self._answer)
        try:
            self._shield = Shield(await self._side.learned(said_in(whole)), self._call)
        except Exception:
            logger.exception("a guardrail failed")
            raise Blocked("guardrail", FAILED) from None

    def _stopped(self, blocked: Blocked) -> Event:
        """The end of an answer that may not go on. Raises `CallError` where it has no shape for that."""
        self._over = True
        self._verdicts.append(verdict(blocked.guardrail, "output", "BLOCK", blocked.reason))
        call = self._call
        if call.task not in ("agent", "chat"):
            message = f"the {blocked.guardrail} guardrail of {call.endpoint} keeps this answer back: {blocked.reason}"
            raise CallError(message, status=400, code="CONTENT_FILTER") from None
        return self._shield.stopped("" if self._side.judges else self._shield.sent)


class _Again:
    """Events that were read, once more."""

    def __init__(self, events: Sequence[Event], answer: Any) -> None:
        self._events, self._answer = iter(events), answer

    def __aiter__(self) -> _Again:
        return self

    async def __anext__(self) -> Event:
        for event in self._events:
            return event
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await self._answer.aclose()


def verdict(guardrail: str, where: str, action: str, reason: str) -> dict[str, str]:
    return {"guardrail": guardrail, "where": where, "action": action, "reason": reason}


def compiled(rails: Guardrails, kit: Toolkit, endpoint: str) -> Guard:
    """A guard; raises `CallError` 503 where it cannot be made, because then nothing may pass."""
    try:
        return Guard(rails, kit)
    except GuardrailError as error:
        message = f"the guardrails of {endpoint} cannot be applied, so nothing passes: {error}"
        raise CallError(message, status=503, code="TEMPORARILY_UNAVAILABLE") from None


def _in_parts(item: Any) -> bool:
    return type(item) is dict and (type(item.get("content")) is list or type(item.get("output")) is list)


def _whole(item: Any, find: Callable[[str], list[Any]], found: list[Any]) -> Any:
    """A message whose texts were looked at as one, as a model reads them."""
    for key in ("content", "output"):
        parts = item.get(key)
        if not isinstance(parts, list) or len(parts) < 2:
            continue
        texts = [part["text"] if isinstance(part, OBJECT) and isinstance(part.get("text"), str) else "" for part in parts]
        if across := find("".join(texts)):
            found.extend(across)
            masked = pieces.masked(texts, lambda _, across=across: across)
            made = [part if text == was else {**part, "text": text} for part, was, text in zip(parts, texts, masked, strict=True)]
            item = {**item, key: made}
    return item


def _screen(call: Call, rules: Rules) -> tuple[Call, list[Any], Blocked | None]:
    """The call with everything forbidden replaced, what that was, and the refusal it means."""
    if not rules.any:
        return call, [], None
    all_found: list[Any] = []
    find = rules.find

    def each(text: str) -> str:
        if not (found := find(text)):
            return text
        all_found.extend(found)
        return mask(text, found)

    rows = call.task in ROWS
    looked = call.payload
    if (kept := looked.get("conversation")) is not None:  # by which it is found again
        looked = {key: value for key, value in looked.items() if key != "conversation"}
    items = looked.get("input")
    if not rows and type(items) is list and any(map(_in_parts, items)):
        looked = {**looked, "input": [_whole(item, find, all_found) if _in_parts(item) else item for item in items]}
    names: list[str] | None = [] if rules.keywords and not rows else None
    payload = walk(looked, each, frozenset() if rows else STRUCTURE, numbers=rows, names=names)
    if kept is not None:
        payload["conversation"] = kept
    tags = {each(key): each(value) for key, value in call.usage_context.items()} if call.usage_context else call.usage_context
    own_id = each(call.client_request_id) if call.client_request_id else call.client_request_id
    if names:
        all_found += rules.words(" | ".join(names))
    if not all_found:
        return call, all_found, None
    masked = replace(call, payload=payload, usage_context=tags, client_request_id=own_id)
    return masked, all_found, rules.blocking(all_found)
