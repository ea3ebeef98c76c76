"""What an agent's nodes share: the state, what they emit, and what they are handed.

Nodes speak to whoever follows the run through LangGraph's custom stream
(https://docs.langchain.com/oss/python/langgraph/streaming): `emit_delta` for answer text, `emit_citation` for a citation in
that text, `emit_step` for what a node did. Importing this module does not import langgraph.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol
from uuid import uuid4

from typing_extensions import TypedDict  # on Python 3.11, pydantic makes a schema of no other

from retrieval.types import Passage

if TYPE_CHECKING:
    import numpy as np

Embed = Callable[[Sequence[str]], "Awaitable[np.ndarray]"]
"""Embeddings of texts: (n, dimension) float32 of unit length."""

Mode = Literal["extractive", "generative", "canned"]

NOT_FOUND = "I could not find this in these documents."
"""What an agent answers when the documents do not support an answer."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A place in a document that supports a place in the answer.

    Parameters
    ----------
    number: what stands between the brackets in the answer, from 1.
    index, document_id, passage_id, source, title, heading: of the passage the quote is from.
    start, end: the quote's characters in the document's text: `document.text[start:end] == quote`.
    text_start, text_end: characters of the `[n]` marker in the answer's text.
    """

    number: int
    index: str
    document_id: str
    passage_id: str
    source: str
    title: str
    heading: tuple[str, ...]
    start: int
    end: int
    quote: str
    text_start: int
    text_end: int

    @classmethod
    def of(cls, passage: Passage, number: int, start: int, end: int, text_start: int, text_end: int) -> Citation:
        """The citation of characters `start` to `end` of `passage.text`."""
        return cls(
            number=number,
            index=passage.index,
            document_id=passage.document_id,
            passage_id=passage.id,
            source=passage.source,
            title=passage.title,
            heading=tuple(passage.heading),
            start=passage.start + start,
            end=passage.start + end,
            quote=passage.text[start:end],
            text_start=text_start,
            text_end=text_end,
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "heading": list(self.heading)}


@dataclass(frozen=True, slots=True)
class Route:
    """Where a router sends a question. `confident` is False where `confidence` is under the router's threshold."""

    label: str
    confidence: float
    scores: Mapping[str, float] = field(default_factory=dict)
    confident: bool = True


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader made of the passages: the answer with its citations, or an abstention (no citations)."""

    text: str
    citations: tuple[Citation, ...] = ()
    abstained: bool = False
    support: float = 0.0
    """Calibrated probability that the passages answer the question."""


Router = Callable[[str], Awaitable[Route]]
"""Decides what kind of message this is: `documents`, `small_talk` or `decline`."""


class Reader(Protocol):
    """Answers a question by quoting passages, without a language model."""

    async def __call__(self, question: str, passages: Sequence[Passage], *, context: str = "") -> Reading:
        """`context`: the question before this one in the conversation, where this one leans on it."""
        ...


def merge_messages(left: list[Any], right: Any) -> list[Any]:
    """LangGraph's `add_messages`, with a way past its conversions for the common case: new messages at the end."""
    from langchain_core.messages import BaseMessage, BaseMessageChunk, RemoveMessage

    new = right if isinstance(right, list) else [right]
    plain = all(isinstance(m, BaseMessage) and not isinstance(m, (BaseMessageChunk, RemoveMessage)) for m in new)
    if plain:
        for message in new:
            if message.id is None:
                message.id = uuid4().hex
        ids = {message.id for message in new}
        if len(ids) == len(new) and not any(message.id in ids for message in left):
            return [*left, *new]
    from langgraph.graph.message import add_messages

    return add_messages(left, right)  # type: ignore[return-value]


class _Conversation(TypedDict):
    messages: Annotated[list[Any], merge_messages]


class AgentState(_Conversation, total=False):
    """State of our graphs. All but `messages` belongs to the current turn."""

    documents: list[Passage]
    citations: list[Citation]
    route: Route | None
    plan: list[str]
    """Steps worked out before answering: here the retrieval query, the question before it last."""
    abstained: bool
    mode: str
    offset: int
    """Characters of answer text streamed by earlier model calls of this turn."""
    active: str
    """The member of a swarm that speaks, from turn to turn."""
    notes: list[str]
    """What the steps of a plan have come to."""
    supported: bool | None
    """What a verifier found; None where there was none."""


def new_turn() -> dict[str, Any]:
    """State that no turn inherits from the one before."""
    cleared: dict[str, Any] = {"documents": [], "citations": [], "plan": [], "notes": [], "route": None, "supported": None}
    return {**cleared, "abstained": False, "mode": "", "offset": 0}


def emit(part: Mapping[str, Any]) -> None:
    """Write to the run's custom stream; does nothing outside a run, so that nodes can be called by themselves."""
    from langgraph.config import get_stream_writer

    try:
        writer = get_stream_writer()
    except (RuntimeError, KeyError):
        return
    writer(part)


def emit_delta(text: str) -> None:
    """Append to the answer as its reader sees it. What is emitted cannot be taken back."""
    if text:
        emit({"delta": text})


def emit_citation(citation: Citation) -> None:
    """Tell of a citation whose marker has been emitted."""
    emit({"citation": citation.to_dict()})


@dataclass(slots=True)
class Step:
    """What a node did. Times are Unix nanoseconds; `inputs`, `outputs` and `attributes` hold JSON values."""

    name: str
    kind: str
    start_ns: int
    end_ns: int = 0
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    status: str = "OK"


@contextmanager
def emit_step(
    name: str,
    kind: Literal["route", "retrieval", "model", "answer", "tool"],
    *,
    inputs: Mapping[str, Any] | None = None,
    **attributes: Any,
) -> Iterator[Step]:
    """Time a piece of work and emit it as a step when it ends, also when it fails (`status` ERROR) or is cancelled."""
    step = Step(name, kind, time.time_ns(), inputs=dict(inputs or {}), attributes=attributes)
    try:
        yield step
    except Exception as error:
        step.status = "ERROR"
        step.attributes["error"] = f"{type(error).__name__}: {error}"[:500]
        raise
    except BaseException:
        step.status = "CANCELLED"
        raise
    finally:
        step.end_ns = time.time_ns()
        emit({"step": asdict(step)})
