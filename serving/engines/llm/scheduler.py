"""The step loop: who is read in, who is decoded, who has ended. One thread, which alone touches the model.

Sequences of the same adapter share a batch; each turn reads in a bounded piece of waiting prompts and then decodes one token
of every sequence, so that a long prompt delays running answers by little.
"""

from __future__ import annotations

import collections
import os
import queue
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from serving.engines.llm.batch import Batch
from serving.engines.llm.sampling import Logprobs, Sampling, choose
from serving.engines.llm.text import Detokenizer, Stops, ToolCalls, token_text

PREFILL = 2048
"""Prompt tokens that are read between two steps of decoding."""
_BEAT = 10.0
"""Seconds after which a waiting request is told that it still waits."""


@dataclass(slots=True)
class Generation:
    """One answer being written.

    Parameters
    ----------
    identifier: of the request.
    prompt: its tokens.
    limit: tokens of the answer at most.
    adapter: name of the LoRA adapter; None for the model as it is.
    tools: reads tool calls out of the text; None where there are no tools.
    """

    identifier: int
    prompt: list[int]
    sampling: Sampling
    limit: int
    adapter: str | None
    text: Detokenizer
    stops: Stops
    tools: ToolCalls | None = None
    matcher: Any = None
    generated: list[int] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    beat: float = field(default_factory=time.monotonic)


class Scheduler:
    """Decodes sequences in batches.

    Parameters
    ----------
    model: a causal language model.
    decode: text of token ids.
    ends: ids of the tokens that end an answer.
    max_batch: sequences that are decoded at a time.
    send: takes `[identifier, kind, body]` frames, several at once.
    use: makes an adapter the one that counts (None: none).
    """

    def __init__(
        self,
        model: Any,
        decode: Callable[[list[int]], str],
        ends: Sequence[int],
        *,
        max_batch: int,
        send: Callable[[list[list[Any]]], None],
        use: Callable[[str | None], None] = lambda name: None,
    ) -> None:
        self._model, self._decode, self._ends = model, decode, frozenset(ends)
        self._max_batch, self._send, self._use = max_batch, send, use
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: collections.deque[Generation] = collections.deque()
        self._reading: Batch | None = None
        self._lanes: dict[str | None, Batch] = {}
        self._next: dict[int, int] = {}
        self._cancelled: set[int] = set()
        self._frames: list[list[Any]] = []

    # --- from other threads ---

    def submit(self, sequence: Generation) -> None:
        self._inbox.put(lambda: self._waiting.append(sequence))

    def cancel(self, identifier: int) -> None:
        self._inbox.put(lambda: self._cancelled.add(identifier))

    def between_steps(self, work: Callable[[], None]) -> None:
        """Run something that touches the model."""
        self._inbox.put(work)

    # --- the loop ---

    def run(self) -> None:
        while True:
            self.turn()

    def turn(self) -> None:
        """Wait for work where there is none; then read in a piece of a prompt, and decode one token of every sequence."""
        if not (self._waiting or self._reading or self._lanes):
            self._inbox.get()()
        for _ in range(self._inbox.qsize()):
            self._inbox.get()()
        self._leave()
        if self._reading is None and self._waiting:
            self._admit()
        if self._reading is not None:
            self._guarded(self._reading, self._read_in)
        for adapter, batch in list(self._lanes.items()):
            self._guarded(batch, lambda adapter=adapter, batch=batch: self._decode_lane(adapter, batch))
        self._tell_waiting()
        if self._frames:
            frames, self._frames = self._frames, []
            self._send(frames)

    def uses(self, adapter: str) -> bool:
        """Whether a sequence still needs the adapter."""
        rows = [
            *self._waiting,
            *(self._reading.rows if self._reading else ()),
            *(r for b in self._lanes.values() for r in b.rows),
        ]
        return any(row.adapter == adapter for row in rows)

    @property
    def _running(self) -> int:
        return sum(len(batch.rows) for batch in self._lanes.values())

    def _leave(self) -> None:
        """Take out those whose client is gone."""
        if not self._cancelled:
            return
        gone, self._cancelled = self._cancelled, set()
        self._waiting = collections.deque(each for each in self._waiting if each.identifier not in gone)
        for batch in (self._reading, *self._lanes.values()):
            for row in batch.rows if batch else ():
                if row.identifier in gone:
                    row.finish = "gone"
        for adapter, batch in list(self._lanes.items()):
            self._settle(adapter, batch)

    def _admit(self) -> None:
        """Begin to read in those who wait longest: one long prompt, or several short ones of the same adapter."""
        free = self._max_batch - self._running
        chosen: list[Generation] = []
        longest = 0
        while self._waiting and len(chosen) < free:
            following = self._waiting[0]
            longest = max(longest, len(following.prompt))
            if chosen and (following.adapter != chosen[0].adapter or longest * (len(chosen) + 1) > PREFILL):
                break
            chosen.append(self._waiting.popleft())
        if chosen:
            self._reading = Batch(self._model)
            self._reading.start(chosen, [each.prompt for each in chosen])

    def _read_in(self) -> None:
        batch = self._reading
        assert batch is not None
        self._use(batch.rows[0].adapter)
        logits = batch.feed(max(1, PREFILL // len(batch.rows)))
        if logits is None:
            return
        self._reading = None
        adapter = batch.rows[0].adapter
        self._choose(batch, logits)
        if not self._settled(batch):
            return
        lane = self._lanes.get(adapter)
        if lane is None:
            self._lanes[adapter] = batch
        else:
            lane.join(batch)

    def _decode_lane(self, adapter: str | None, batch: Batch) -> None:
        self._use(adapter)
        self._choose(batch, batch.step([self._next[row.identifier] for row in batch.rows]))
        self._settle(adapter, batch)

    def _settle(self, adapter: str | None, batch: Batch) -> None:
        if not self._settled(batch):
            self._lanes.pop(adapter, None)

    def _settled(self, batch: Batch) -> bool:
        """Let those go that have ended; whether any are left."""
        ended = [row for row in batch.rows if row.finish]
        if ended:
            for row in ended:
                self._next.pop(row.identifier, None)
            batch.keep([position for position, row in enumerate(batch.rows) if not row.finish])
        return bool(batch.rows)

    def _guarded(self, batch: Batch, work: Callable[[], None]) -> None:
        """Do a step; where it fails, its sequences fail and the others go on."""
        try:
            work()
        except Exception as error:
            traceback.print_exc()
            memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
            if self._model.device.type != "cpu" and not memory:
                os._exit(70)  # an accelerator that failed once cannot be trusted with the next answer
            reason = (
                "there is no memory left; serve fewer at a time (max_batch)" if memory else f"{type(error).__name__}: {error}"
            )
            for row in batch.rows:
                self._frames.append(_failed(row.identifier, f"The model failed: {' '.join(reason.split())[:400]}"))
                self._next.pop(row.identifier, None)
            if batch is self._reading:
                self._reading = None
            self._lanes = {adapter: lane for adapter, lane in self._lanes.items() if lane is not batch}
            if memory and self._model.device.type == "cuda":
                torch.cuda.empty_cache()

    # --- tokens ---

    def _choose(self, batch: Batch, logits: torch.Tensor) -> None:
        tokens, logprobs = choose(logits, batch.rows)
        for row, token, told in zip(batch.rows, tokens, logprobs, strict=True):
            if row.finish:
                continue
            try:
                self._take(row, token, told)
            except Exception as error:  # a grammar that cannot go on ends one answer, not all
                row.finish = "failed"
                self._frames.append(_failed(row.identifier, f"The model failed: {error}"))

    def _take(self, row: Generation, token: int, told: Logprobs | None) -> None:
        row.generated.append(token)
        self._next[row.identifier] = token
        ended = token in self._ends
        if not ended and told is not None:
            row.told.append(self._logprob(row, token, told))
        if row.matcher is not None and row.matcher.take(token):
            row.finish = "stop"
        text = "" if ended else row.stops.add(row.text.add(token))
        if ended or row.stops.hit:
            row.finish = "stop"
        elif row.finish is None and len(row.generated) >= row.limit:
            row.finish = "length"
        if row.finish and not row.stops.hit:
            text += row.stops.add(row.text.end())
            text += row.stops.end()
        calls: list[dict[str, str]] = []
        if row.tools is not None:
            text = row.tools.add(text)
            if row.finish:
                rest, calls = row.tools.end()
                text += rest
        if text:
            self._say(row, {"content": text})
        if row.finish:
            self._end(row, calls)

    def _say(self, row: Generation, delta: Mapping[str, Any]) -> None:
        choice: dict[str, Any] = {"delta": delta}
        if row.told:
            choice["logprobs"] = {"content": row.told}
            row.told = []
        self._frames.append([row.identifier, "event", {"choices": [choice]}])

    def _end(self, row: Generation, calls: Sequence[Mapping[str, str]]) -> None:
        if calls:
            made = [
                {"index": at, "id": f"call_{os.urandom(12).hex()}", "type": "function", "function": dict(call)}
                for at, call in enumerate(calls)
            ]
            self._frames.append([row.identifier, "event", {"choices": [{"delta": {"tool_calls": made}}]}])
        read, written = len(row.prompt), len(row.generated)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        choice: dict[str, Any] = {"delta": {}, "finish_reason": "tool_calls" if calls else row.finish}
        if row.told:
            choice["logprobs"] = {"content": row.told}
        self._frames.append([row.identifier, "event", {"choices": [choice], "usage": usage}])
        self._frames.append([row.identifier, "end", None])

    def _logprob(self, row: Generation, token: int, told: Logprobs) -> dict[str, Any]:
        own, others = told
        before = (row.generated[-2:-1] or row.prompt[-1:])[0]
        top = [token_text(self._decode, before, other) | {"logprob": value} for other, value in others]
        return token_text(self._decode, before, token) | {"logprob": own, "top_logprobs": top}

    def _tell_waiting(self) -> None:
        now = time.monotonic()
        for row in (*self._waiting, *(self._reading.rows if self._reading else ())):
            if now - row.beat > _BEAT:
                row.beat = now
                self._frames.append([row.identifier, "event", {}])


def _failed(identifier: int, message: str) -> list[Any]:
    return [identifier, "error", {"message": message, "status": 500, "param": None}]
