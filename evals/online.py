"""Online scorers: a sample of live answers is scored off the hot path, written as assessments, and watched for drift.

An observer of the gateway puts sampled calls in a bounded queue and returns; a thread of its own scores them. When it cannot keep
up, calls are left out and counted, never waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Engine

from evals.collect import answer_of, asked_of
from evals.data import Prediction, Row, RowResult
from evals.judged import RowScorer, judge, numeric
from evals.online_store import Scores
from governance.call import CallRecord

log = logging.getLogger("smalti.online")

RETRIES = 10
"""How often an assessment, or an alert, is sent before it is given up."""

Assess = Callable[[str, str, Mapping[str, Any]], bool]
"""`assess(request_id, name, said)` writes an assessment of an answer's trace; False where that should be tried again later."""
Alert = Callable[[str, Mapping[str, Any]], str | None]
"""`alert(webhook, body)` sends an alert; gives what went wrong, None where nothing did."""


class Monitor(Protocol):
    """What is asked for of one endpoint; see `serving.monitors.Monitor`."""

    @property
    def endpoint(self) -> str: ...
    @property
    def sample(self) -> float: ...
    @property
    def reference(self) -> int: ...
    @property
    def window(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def webhook(self) -> str | None: ...
    @property
    def timeout(self) -> float: ...


@dataclass(slots=True)
class _Unsent:
    request_id: str
    name: str
    said: Mapping[str, Any]
    tries: int = 0
    at: float = 0.0


class Online:
    """An `Observer` that scores sampled calls of the monitored endpoints.

    Parameters
    ----------
    database: the state database.
    monitors: what is asked for, one an endpoint.
    scorers: `scorers(monitor)` makes an endpoint's scorers; called in the thread, when the first call is to be scored.
    embed: sentence embeddings, for drift of what is asked; None leaves that out.
    assess, alert: write an assessment, send an alert; both block, in the thread.
    capacity: calls that may wait; more are left out and counted.
    """

    def __init__(
        self,
        database: Engine,
        monitors: Sequence[Monitor],
        *,
        scorers: Callable[[Any], Sequence[RowScorer]],
        embed: Callable[[Sequence[str]], Any] | None = None,
        assess: Assess = lambda request_id, name, said: True,
        alert: Alert = lambda webhook, body: None,
        capacity: int = 1_000,
    ) -> None:
        self.monitors = {monitor.endpoint: monitor for monitor in monitors}
        self.store = Scores(database)
        self.scored = self.dropped = self.unassessed = 0
        self.problem: str | None = None
        """What went wrong last, in words."""
        self._make, self._embed, self._assess, self._alert = scorers, embed, assess, alert
        self._scorers: dict[str, Sequence[RowScorer]] = {}
        self._queue: queue.Queue[CallRecord | None] = queue.Queue(capacity)
        self._unsent: deque[_Unsent] = deque(maxlen=10_000)
        self._thread: threading.Thread | None = None
        self._ending = False

    def __call__(self, record: CallRecord) -> None:
        """Take a finished call; returns at once, never raises."""
        call = record.call
        monitor = self.monitors.get(call.endpoint)
        if monitor is None or call.parent_id is not None or record.status_code != 200 or record.response is None:
            return
        if _share(call.request_id) >= monitor.sample:
            return
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def start(self) -> None:
        if self._thread is None and self.monitors:
            self._thread = threading.Thread(target=self._work, name="smalti-online", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 10) -> None:
        """End the thread; calls that wait are left out."""
        thread, self._thread, self._ending = self._thread, None, True
        if thread is not None:
            with contextlib.suppress(queue.Full):  # then it is awake anyhow
                self._queue.put_nowait(None)
            thread.join(timeout)

    @property
    def waiting(self) -> int:
        return self._queue.qsize() + len(self._unsent)

    # --- the thread ---

    def _work(self) -> None:
        while not self._ending:
            try:
                record = self._queue.get(timeout=1)
            except queue.Empty:
                record = None
            try:
                if record is not None:
                    self._score(record)
                self._send()
                self._deliver()
            except Exception as error:  # one bad answer must not end the scoring
                self.problem = f"{type(error).__name__}: {error}"[:500]
                log.exception("a live answer could not be scored")

    def _score(self, record: CallRecord) -> None:
        call, monitor = record.call, self.monitors[record.call.endpoint]
        asked, answer = asked_of(call.payload), answer_of(record.response)
        if not asked or not isinstance(answer, Prediction):
            return
        latency = (record.end_ns - record.start_ns) / 1e6
        question = asked if isinstance(asked, str) else json.dumps(asked, ensure_ascii=False)
        row = Row(call.request_id, question, inputs=None if isinstance(asked, str) else asked)
        if (scorers := self._scorers.get(call.endpoint)) is None:
            scorers = self._scorers[call.endpoint] = self._made(monitor)
        results = asyncio.run(judge([RowResult(row, answer)], scorers, timeout=monitor.timeout))
        said = results[0].judged
        vector = self._embed([question])[0] if self._embed is not None else None
        values = {name: (numeric(each), each.get("error")) for name, each in said.items()}
        if self.store.add(call.request_id, call.endpoint, len(question), latency, vector, values):
            self.scored += 1
            self._unsent.extend(_Unsent(call.request_id, name, each) for name, each in said.items())
            self._look(monitor)

    def _made(self, monitor: Monitor) -> Sequence[RowScorer]:
        try:
            return self._make(monitor)
        except Exception as error:  # traffic is still watched for drift of what is asked
            self.problem = f"the scorers of {monitor.endpoint} cannot be made: {type(error).__name__}: {error}"[:500]
            log.warning("%s", self.problem)
            return ()

    def _send(self) -> None:
        """Write the assessments whose time has come; a trace takes a moment to be there."""
        for _ in range(len(self._unsent)):
            each = self._unsent.popleft()
            if time.monotonic() < each.at:
                self._unsent.append(each)
                continue
            try:
                done = self._assess(each.request_id, each.name, each.said)
            except Exception as error:
                self.problem, done = f"an assessment was not written: {type(error).__name__}: {error}"[:500], False
            if done:
                continue
            each.tries += 1
            if each.tries >= RETRIES:
                self.unassessed += 1
                continue
            each.at = time.monotonic() + min(30.0, 0.25 * 2**each.tries)
            self._unsent.append(each)

    def _look(self, monitor: Monitor) -> None:
        report = self.store.look(monitor.endpoint, reference=monitor.reference, window=monitor.window, alpha=monitor.alpha)
        moved = [series["name"] for series in (report or {}).get("series", ()) if series["drifted"]]
        if report is None or not moved:
            return
        text = f"{monitor.endpoint}: {', '.join(moved)} of the last {monitor.window} scored calls differ from the reference."
        self.store.alert(monitor.endpoint, {"type": "drift", "endpoint": monitor.endpoint, "text": text, **report})
        log.warning("drift: %s", text)

    def _deliver(self) -> None:
        for alert in self.store.undelivered(RETRIES):
            monitor = self.monitors.get(alert["endpoint"])
            if monitor is None or monitor.webhook is None:
                self.store.delivered(alert["id"], "there is no webhook", final=True)
                continue
            problem = self._alert(monitor.webhook, alert["told"])
            self.store.delivered(alert["id"], problem)


def _share(request_id: str) -> float:
    """A place from 0 to 1 that depends on the call alone, so that a call is in the sample or is not wherever that is asked."""
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") / 2**64
