"""What the units of an experiment did: each finished call of the journal is taken in once, and added to its unit's sums.

A unit (a thread, a user, a request) is the thing that was dealt to an arm, so it is what is counted: its value of a metric is the
mean over its calls, and calls of one unit are never taken for independent ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from sqlalchemy import Engine, func, select

from governance.call import MODEL_FAILED, is_failure
from governance.flight import CLIENT_GONE
from governance.frames import iso
from governance.tables import experiment_events, inference_table

if TYPE_CHECKING:
    import numpy as np

LOWER_IS_BETTER = frozenset({"latency_ms", "ttfb_ms", "cost", "output_tokens", "error", "abandoned", "retry", "fallback"})
OF_ROWS = LOWER_IS_BETTER | {"turns"}
"""Metrics that the journal's rows tell; every other name is one of events or of MLflow's assessments (`user_feedback`)."""
ADJUSTED = frozenset({"latency_ms", "ttfb_ms", "cost"})
"""Metrics for which CUPED is used."""

_BEFORE = timedelta(days=14)  # of a user's calls before the experiment, for CUPED
_LATE = timedelta(seconds=15)  # by which a row may reach the table later than one that began after it, or clocks may differ
_GIVEN_UP = 3_600.0  # seconds after which a call without an end is taken for lost
_RETRY_SECONDS = 600.0
_PAGE = 2_000

_t = inference_table.c
_COLUMNS = (
    _t.databricks_request_id,
    _t.request_time,
    _t.status_code,
    func.substr(_t.error, 1, len(MODEL_FAILED)).label("failed"),
    _t.execution_duration_ms,
    _t.time_to_first_byte_ms,
    _t.served_entity_name,
    _t.output_tokens,
    _t.cost,
    _t.usage_context,
    func.length(_t.request).label("length"),
    func.substr(_t.request, 1, 2_000).label("head"),
)


class Event(NamedTuple):
    """A number told of a call from outside; one with the same `id` replaces an earlier one."""

    id: str
    request_id: str
    name: str
    value: float | None
    """None: it was taken back."""


class Values(NamedTuple):
    """One metric: the arm (by position), the value and the covariates of each unit that has one."""

    arms: np.ndarray
    values: np.ndarray
    covariates: np.ndarray


class Exposures:
    """Sums by unit, kept in memory and built again from the journal after a restart. Not thread-safe: one look at a time.

    Parameters
    ----------
    engine: the state database.
    experiment, endpoint: whose rows count.
    arms: the served entities' names.
    since: when it started, ISO 8601.
    paired: in a shadow experiment a unit is seen by every arm.
    """

    def __init__(
        self, engine: Engine, experiment: str, endpoint: str, arms: Sequence[str], since: str, *, paired: bool = False
    ) -> None:
        self._engine, self._experiment, self._endpoint, self._since = engine, experiment, endpoint, since
        self.arms, self._paired = list(arms), paired
        self._events: dict[str, Event] = {}
        self._last_event = 0
        self._begin()

    def _begin(self) -> None:
        """Nothing is taken in yet, of calls; what was told elsewhere stays."""
        self._mark, self._taken = self._since, set()
        self._open: dict[str, float] = {}  # when each was first seen, by the clock that does not jump
        self._index: dict[tuple[str, str], int] = {}
        self._arm: list[int] = []
        self._calls: list[int] = []
        self._touched: list[bool] = []
        self._length: list[float] = []
        self._unit: list[str] = []
        self._asked: dict[int, tuple[int, int, float]] = {}
        self._sums: dict[str, dict[int, tuple[float, int]]] = {}
        self._placed: dict[str, tuple[int, str, float]] = {}
        self._earlier: dict[str, dict[str, float]] | None = None
        self.crossed = 0
        """Calls left out because their unit had been dealt to another arm before: someone changed the shares."""

    # --- reading ---

    def read(self, events: Iterable[Event] = ()) -> None:
        """Take in what is new. Blocking.

        `events`: told elsewhere, since the last time; those kept by `add_event` are read by themselves.
        """
        now = iso(time.time_ns())
        if now < _shift(self._mark, -_LATE):  # the clock was put back: what was written since then lies before the mark
            self._begin()
        with self._engine.connect() as connection:
            for ids in _chunks(list(self._open)):
                statement = select(*_COLUMNS).where(_t.databricks_request_id.in_(ids), _t.status_code.is_not(None))
                for row in connection.execute(statement).mappings():
                    self._open.pop(row["databricks_request_id"])
                    self._take(dict(row))
            first = _shift(self._since, -_LATE)
            since, after = _shift(self._mark, -_LATE), ""
            recent: dict[str, str] = {}
            while True:
                key = (_t.request_time, _t.databricks_request_id)
                past = (key[0] > since) | ((key[0] == since) & (key[1] > after))
                statement = select(*_COLUMNS).where(_t.endpoint_name == self._endpoint, past, key[0] >= first)
                found = connection.execute(statement.order_by(*key).limit(_PAGE)).mappings().all()
                for row in found:
                    identifier, since, after = row["databricks_request_id"], row["request_time"], row["databricks_request_id"]
                    recent[identifier] = since
                    if identifier in self._taken or identifier in self._open:
                        continue
                    if row["status_code"] is None:
                        self._open[identifier] = time.monotonic()
                    else:
                        self._take(dict(row))
                if len(found) < _PAGE:
                    break
            self._mark = max(self._mark, min(since, now))  # another server's clock may be ahead
            oldest = _shift(self._mark, -_LATE)
            self._taken = {identifier for identifier, when in recent.items() if when >= oldest}
            lost = time.monotonic() - _GIVEN_UP
            self._open = {identifier: when for identifier, when in self._open.items() if when > lost}
            statement = select(experiment_events).where(
                experiment_events.c.experiment == self._experiment, experiment_events.c.id > self._last_event
            )
            for row in connection.execute(statement.order_by(experiment_events.c.id)).mappings():
                self._last_event = row["id"]
                self._events[f"event-{row['id']}"] = Event(f"event-{row['id']}", row["request_id"], row["name"], row["value"])
            self._events |= {event.id: event for event in events}
            self._place(connection)

    def _take(self, row: Mapping[str, Any]) -> None:
        exposure = orjson.loads(row["usage_context"]) if row["usage_context"] else {}
        arm, unit = exposure.get("smalti_arm"), exposure.get("smalti_unit")
        if exposure.get("smalti_experiment") != self._experiment or arm not in self.arms or not isinstance(unit, str):
            return
        position = self._position(unit, arm)
        if position is None:
            self.crossed += 1
            return
        status = row["status_code"]
        fallback = bool(row["served_entity_name"]) and row["served_entity_name"] != arm and status == 200
        self._touched[position] |= fallback
        self._calls[position] += 1
        self._add(position, "fallback", float(fallback))
        self._add(position, "abandoned", float(status == CLIENT_GONE))
        if status != CLIENT_GONE:
            self._add(position, "error", float(is_failure(status) or status == 429 or row["failed"] == MODEL_FAILED))
        if status == 200:
            self._add(position, "latency_ms", row["execution_duration_ms"])
            self._add(position, "ttfb_ms", row["time_to_first_byte_ms"])
            self._add(position, "cost", row["cost"])
            self._add(position, "output_tokens", row["output_tokens"])
        if row["length"]:
            if self._calls[position] == 1:  # only the first request is sure to be untouched by the arm's answers
                self._length[position] = float(row["length"])
            asked = row["length"], hash(row["head"])
            when = datetime.fromisoformat(row["request_time"]).timestamp()
            before = self._asked.get(position)
            again = before is not None and before[:2] == asked and abs(when - before[2]) <= _RETRY_SECONDS
            self._add(position, "retry", float(again))
            self._asked[position] = (*asked, when)

    def _position(self, unit: str, arm: str) -> int | None:
        """Where a unit's sums are; None where it belongs to another arm."""
        key = (unit, arm if self._paired else "")
        position = self._index.get(key)
        if position is None:
            position = self._index[key] = len(self._arm)
            self._arm.append(self.arms.index(arm))
            self._calls.append(0)
            self._touched.append(False)
            self._length.append(float("nan"))
            self._unit.append(unit)
        return position if self.arms[self._arm[position]] == arm else None

    def _add(self, position: int, metric: str, value: float | None, times: int = 1) -> None:
        if value is not None:
            total, count = self._sums.setdefault(metric, {}).get(position, (0.0, 0))
            self._sums[metric][position] = (total + value, count + times)

    def _place(self, connection: Any) -> None:
        """Give events to the units whose calls they are about; those of calls that are not known yet wait."""
        wanted = {event.request_id for event in self._events.values()}
        for ids in _chunks(list(wanted)):
            statement = select(_t.databricks_request_id, _t.usage_context).where(
                _t.databricks_request_id.in_(ids), _t.endpoint_name == self._endpoint, _t.request_time >= self._since
            )
            told = {row[0]: orjson.loads(row[1]) for row in connection.execute(statement) if row[1]}
            for event in [event for event in self._events.values() if event.request_id in told]:
                exposure = told[event.request_id]
                key = (exposure.get("smalti_unit", ""), exposure.get("smalti_arm", "") if self._paired else "")
                position = self._index.get(key)
                if exposure.get("smalti_experiment") != self._experiment:
                    del self._events[event.id]
                elif position is not None:
                    del self._events[event.id]
                    if event.id in self._placed:
                        old, name, value = self._placed.pop(event.id)
                        self._add(old, name, -value, -1)
                    if event.value is not None and self.arms[self._arm[position]] == exposure.get("smalti_arm"):
                        self._add(position, event.name, event.value)
                        self._placed[event.id] = (position, event.name, event.value)
        if len(self._events) > 10_000:  # about calls that are no part of it
            self._events = dict(list(self._events.items())[-10_000:])

    # --- what is known ---

    def counts(self) -> list[dict[str, int]]:
        """Of each arm `units`, `calls`, and `fallbacks`: units that another entity answered too, which are left out."""
        counted = [{"units": 0, "calls": 0, "fallbacks": 0} for _ in self.arms]
        for arm, calls, touched in zip(self._arm, self._calls, self._touched, strict=True):
            counted[arm]["units"] += 1
            counted[arm]["calls"] += calls
            counted[arm]["fallbacks"] += touched
        return counted

    def metrics(self) -> list[str]:
        """Names of the metrics that some unit has."""
        return sorted({*self._sums, *(["turns"] if self._arm else [])})

    def values(self, metric: str) -> Values:
        """A metric by unit. Units touched by a fallback are left out, but for `fallback` and `error`, which tell of them."""
        import numpy as np

        sums = self._sums.get(metric, {}) if metric != "turns" else {k: (float(n), 1) for k, n in enumerate(self._calls)}
        whole = metric in ("fallback", "error")
        kept = [k for k, (_, count) in sums.items() if count > 0 and (whole or not self._touched[k])]
        values = np.array([sums[k][0] / sums[k][1] for k in kept], float)
        covariates = np.empty((len(kept), 0))
        if metric in ADJUSTED and kept:
            earlier = self._known_before().get(metric, {})
            columns = [np.log1p([self._length[k] for k in kept]), [earlier.get(self._unit[k], np.nan) for k in kept]]
            covariates = np.column_stack(columns)
        return Values(np.array([self._arm[k] for k in kept], int), values, covariates)

    def _known_before(self) -> Mapping[str, Mapping[str, float]]:
        """Each caller's means before the experiment, by metric and unit; read once."""
        if self._earlier is None:
            columns = {"latency_ms": _t.execution_duration_ms, "ttfb_ms": _t.time_to_first_byte_ms, "cost": _t.cost}
            statement = (
                select(_t.requester_kind, _t.requester, *(func.avg(column).label(name) for name, column in columns.items()))
                .where(_t.endpoint_name == self._endpoint, _t.status_code == 200)
                .where(_t.request_time >= _shift(self._since, -_BEFORE), _t.request_time < self._since)
                .group_by(_t.requester_kind, _t.requester)
            )
            self._earlier = {name: {} for name in columns}
            with self._engine.connect() as connection:
                for row in connection.execute(statement).mappings():
                    for name in columns:
                        if row[name] is not None:
                            self._earlier[name][f"{row['requester_kind']}:{row['requester']}"] = float(row[name])
        return self._earlier


def _shift(moment: str, by: timedelta) -> str:
    return iso((datetime.fromisoformat(moment) + by).astimezone(UTC))


def _chunks(items: list[str]) -> Iterable[list[str]]:
    return (items[start : start + 500] for start in range(0, len(items), 500))
