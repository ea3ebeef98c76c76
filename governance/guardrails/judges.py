"""What needs a look at the meaning: topics, safety, and callables of the operator's own.

Topics and safety are classical: sentence embeddings, cosine similarity and a linear classifier. They see paraphrases that
keywords miss and miss what a determined person hides (another language than English, encodings, a story spun over many turns):
a net with holes beneath grants and limits, not in place of them.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from governance.call import Call
from governance.guardrails.rules import Blocked

Where = Literal["input", "output"]
Judge = Callable[[Sequence[str], Where, Call], Awaitable[None]]
"""Looks at texts of a call, oldest first; raises `Blocked` to refuse them."""
Ask = Callable[[str, str, str, Call], Awaitable[Any]]
"""`ask(endpoint, text, rule, call)`: what an endpoint says of a text of that call: a chat's text, or a row of predictions."""
ENDPOINT = "endpoint:"

SAFETY = Path(__file__).with_name("safety.jsonl")
"""Labelled examples (`safe`, `injection`, `unsafe`) that the safety classifier is trained from."""
TOPIC_SIMILARITY = 0.2
"""Cosine similarity to the nearest valid topic, under which a text is off topic."""
UNSAFE = 0.9
"""Probability of a label other than `safe`, from which a stretch of text is refused."""

judging: ContextVar[frozenset[str]] = ContextVar("smalti_judging", default=frozenset())
"""Endpoints that are being asked to judge; their calls wait in no line, since one that waits for them has a turn already."""
_CODE, _LABEL = re.compile(r"S\d{1,2}"), re.compile(r"[\w .-]{1,40}")
_STRETCH = 500  # characters that are looked at together
_MOST = 64  # stretches of one call, the newest ones
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


class Classifier(Protocol):
    """What is needed of a linear classifier: labels, one of which is `safe`, and probabilities from embeddings."""

    @property
    def labels(self) -> Sequence[str]: ...

    def predict_proba(self, X: Any, /) -> Any: ...


@dataclass(frozen=True)
class Toolkit:
    """What guardrails are handed.

    Parameters
    ----------
    embed: texts to unit-length embeddings; None where topics and safety cannot be judged.
    safety: makes the safety classifier; blocking, called once, when a policy first needs it.
    folder: where `./file.py:function` starts from.
    ask: asks an endpoint; None where guardrails reach none.
    """

    embed: Callable[[Sequence[str]], Awaitable[Any]] | None = None
    safety: Callable[[], Classifier] | None = None
    folder: Path = Path()
    ask: Ask | None = None


class GuardrailError(Exception):
    """A policy asks for a guardrail that is not there; the message says which and what to do."""


def topics(valid: Sequence[str], kit: Toolkit) -> Judge:
    """Refuses a text whose meaning is near none of the valid topics."""
    embed = kit.embed
    if embed is None:
        raise GuardrailError("valid_topics needs an embedding model, and none is loaded here")
    known: list[Any] = []

    async def judge(texts: Sequence[str], where: Where, call: Call) -> None:
        newest = next((text for text in reversed(texts) if text.strip()), "")
        if not newest:
            return
        if not known:
            known.append(await embed(list(valid)))
        pieces = stretches([newest])
        similar = (await embed(pieces)) @ known[0].T
        if float(similar.max()) < TOPIC_SIMILARITY:
            raise Blocked("valid_topics", f"the {where} is about none of: {', '.join(valid)}"[:300])

    return judge


def safety(kit: Toolkit) -> Judge:
    """Refuses harmful requests and attempts to take over the model (prompt injection), in tool results too."""
    embed, make = kit.embed, kit.safety
    if embed is None or make is None:
        raise GuardrailError("safety needs a classifier, and none is loaded here")
    made: list[Classifier] = []
    making = asyncio.Lock()

    async def judge(texts: Sequence[str], where: Where, call: Call) -> None:
        pieces = stretches(texts)
        if not pieces:
            return
        async with making:
            if not made:
                made.append(await asyncio.to_thread(make))
        classifier = made[0]
        chances = classifier.predict_proba(await embed(pieces))
        safe = list(classifier.labels).index("safe")
        for row in chances:
            if 1 - float(row[safe]) >= UNSAFE:
                label = max((place for place in range(len(row)) if place != safe), key=lambda place: float(row[place]))
                raise Blocked("safety", str(list(classifier.labels)[label]))

    return judge


def custom(path: str, kit: Toolkit) -> Judge:
    """A callable of the operator's: `check(text, where)` gives None to let the text pass, or the reason to refuse it.

    It may be a coroutine function; a plain one runs in a thread. Raises `GuardrailError` where it cannot be loaded.
    """
    check = _load(path, kit.folder)
    name = path.rpartition(":")[2]

    async def judge(texts: Sequence[str], where: Where, call: Call) -> None:
        for text in texts:
            said = await check(text, where) if inspect.iscoroutinefunction(check) else await asyncio.to_thread(check, text, where)
            if said is not None:
                raise Blocked(name, str(said)[:300])

    return judge


def asking(path: str, kit: Toolkit) -> Judge:
    """An endpoint as judge: `endpoint:NAME`, or `endpoint:NAME RULE` with what a general chat model is to refuse.

    A text passes when the endpoint says `safe` (as Llama Guard does, or as a classifier's label); any other label refuses it, and
    an answer that is neither `safe` nor `unsafe` is a failure.
    """
    ask = kit.ask
    name, _, rule = path.removeprefix(ENDPOINT).strip().partition(" ")
    if ask is None or not name:
        raise GuardrailError(f"guardrail {path!r} needs an endpoint to ask, and there is none here")

    async def judge(texts: Sequence[str], where: Where, call: Call) -> None:
        within = judging.get()
        if name in within or name == call.endpoint:
            raise GuardrailError(f"the endpoint {name} would judge its own judgement")
        token = judging.set(within | {name})
        try:
            for text in texts:
                if refused := _verdict(await ask(name, text, rule.strip(), call)):
                    raise Blocked(name, refused)
        finally:
            judging.reset(token)

    return judge


def _verdict(said: Any) -> str | None:
    """Why an endpoint refuses; None where it does not. Raises `GuardrailError` where it decided nothing."""
    label = said.get("label", next(iter(said.values()), None)) if isinstance(said, Mapping) else None
    words = (label if isinstance(label, str) else said if isinstance(said, str) else "").split()
    first = words[0].strip(".,:;!*`\"'").casefold() if words else ""
    if first == "safe":
        return None
    if first == "unsafe":  # with Llama Guard's codes of what it is
        return ", ".join(["unsafe", *(code for word in words[1:3] for code in word.split(",") if _CODE.fullmatch(code))])
    if isinstance(label, str) and _LABEL.fullmatch(label):
        return label
    raise GuardrailError("the endpoint that judges said neither safe nor unsafe")


def stretches(texts: Sequence[str]) -> list[str]:
    """The texts in stretches of whole sentences, as far as they are not longer than a stretch; the newest `_MOST`."""
    found: list[str] = []
    for text in reversed(texts):
        current, own = "", []
        for sentence in _SENTENCE.split(text[-_STRETCH * _MOST :]):
            for start in range(0, len(sentence), _STRETCH):
                piece = sentence[start : start + _STRETCH]
                if current and len(current) + len(piece) >= _STRETCH:
                    own.append(current)
                    current = ""
                current = f"{current} {piece}".strip()
        found = [*own, *([current] if current else []), *found]
        if len(found) >= _MOST:
            break
    return found[-_MOST:]


def _load(path: str, folder: Path) -> Callable[[str, str], Any]:
    module_name, _, name = path.rpartition(":")
    try:
        if module_name.endswith(".py"):
            file = (folder / module_name).resolve()
            spec = importlib.util.spec_from_file_location(f"smalti_guardrail_{file.stem}", file)
            if spec is None or spec.loader is None:
                raise ImportError(f"{file} cannot be loaded")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        found = getattr(module, name)
    except Exception as error:  # the operator's code may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise GuardrailError(f"guardrail {path!r} cannot be loaded ({reason}); write package.module:function or ./file.py:function") from None  # fmt: skip  # noqa: E501
    if not callable(found):
        raise GuardrailError(f"guardrail {path!r} is no function")
    return found
