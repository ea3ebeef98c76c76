"""Prometheus metrics of every call, per endpoint. Their number is bounded whatever callers send.

Names follow https://prometheus.io/docs/practices/naming/; an endpoint's label is its name where a call was admitted to it, and
`other` for names that nothing answers to and beyond the first few hundred.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, islice
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from governance.call import CallRecord

CONTENT_TYPE = CONTENT_TYPE_LATEST
_ENDPOINTS, _ENTITIES = 256, 1_024
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_ENDS = (*map(str, _SECONDS), "+Inf")
_GUARDRAILS = ("pii", "invalid_keywords", "valid_topics", "safety", "guardrail")


class _Durations:
    """How many calls of one served entity took how long."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * len(_ENDS)
        self.total = 0.0

    def add(self, nanoseconds: int) -> None:
        seconds = nanoseconds / 1e9
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total += seconds


class Metrics(Collector):
    """An observer of calls: it counts in plain numbers, which cost a call little, and makes metrics of them for who scrapes.

    Parameters
    ----------
    in_flight: tells how many calls are being answered now.
    queued: tells how many wait for their turn.
    """

    def __init__(self, in_flight: Callable[[], int] = lambda: 0, queued: Callable[[], int] = lambda: 0) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)
        made: dict[str, Any] = {"registry": self.registry, "namespace": "smalti"}
        Gauge("in_flight", "Calls being answered now.", **made).set_function(in_flight)
        Gauge("queued", "Calls that wait for their turn.", **made).set_function(queued)
        self._lock = threading.Lock()
        self._endpoints: set[str] = set()
        self._entities: set[tuple[str, str]] = set()
        self._requests: dict[tuple[Any, ...], int] = defaultdict(int)
        self._tokens: dict[tuple[Any, ...], int] = defaultdict(int)
        self._cost: dict[tuple[Any, ...], float] = defaultdict(float)
        self._limited: dict[tuple[Any, ...], int] = defaultdict(int)
        self._verdicts: dict[tuple[Any, ...], int] = defaultdict(int)
        self._latency: dict[tuple[str, str], _Durations] = defaultdict(_Durations)
        self._first: dict[tuple[str, str], _Durations] = defaultdict(_Durations)

    def __call__(self, record: CallRecord) -> None:
        """Count a finished call."""
        call, status, usage = record.call, record.status_code, record.usage
        with self._lock:
            endpoint = self._endpoint(call.endpoint, status)
            by = endpoint, self._entity(endpoint, record.served_entity_name or "")
            self._requests[*by, call.task, status] += 1
            for verdict in record.verdicts:
                name = verdict["guardrail"] if verdict["guardrail"] in _GUARDRAILS else "custom"
                self._verdicts[endpoint, name, verdict["where"], verdict["action"]] += 1
            if status == 429:
                self._limited[(endpoint,)] += 1
            if record.first_event_ns is None:
                return
            self._latency[by].add(record.end_ns - record.start_ns)
            self._first[by].add(record.first_event_ns - record.start_ns)
            if count := usage.get("input_tokens"):
                self._tokens[*by, "input"] += count
            if count := usage.get("output_tokens"):
                self._tokens[*by, "output"] += count
            if record.cost:
                self._cost[by] += record.cost

    def collect(self) -> Iterator[Metric]:
        """The metrics as they stand."""
        at = ["endpoint"]
        by = [*at, "served_entity"]
        counted: tuple[tuple[str, str, list[str], dict[tuple[Any, ...], Any]], ...] = (
            ("requests", "Calls that ended, by status.", [*by, "task", "status"], self._requests),
            ("tokens", "Tokens read and written.", [*by, "kind"], self._tokens),
            ("cost_dollars", "What tokens cost, in US dollars.", by, self._cost),
            ("limits_hit", "Calls refused by a limit or a budget.", at, self._limited),
            ("guardrail_verdicts", "What guardrails did.", [*at, "guardrail", "where", "action"], self._verdicts),
        )
        timed = (
            ("request_seconds", "From the request to the end of its answer.", self._latency),
            ("first_byte_seconds", "From the request to the first of its answer.", self._first),
        )
        with self._lock:
            counts = [list(held.items()) for *_, held in counted]
            times = [[(key, list(each.counts), each.total) for key, each in held.items()] for *_, held in timed]
        for (name, told, labels, _), held in zip(counted, counts, strict=True):
            family = CounterMetricFamily(f"smalti_{name}", told, labels=labels)
            for key, count in held:
                family.add_metric([str(label) for label in key], count)
            yield family
        for (name, told, _), held in zip(timed, times, strict=True):
            family = HistogramMetricFamily(f"smalti_{name}", told, labels=by)
            for key, bands, total in held:
                family.add_metric(list(key), list(zip(_ENDS, accumulate(bands), strict=True)), total)
            yield family

    def exposition(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)

    def of(self, endpoint: str, gauges: Iterable[Metric] = ()) -> bytes:
        """The same text for one endpoint, with further gauges that whoever serves it knows."""
        kept = CollectorRegistry()
        kept.register(_Only(self.registry, endpoint, tuple(gauges)))
        return generate_latest(kept)

    def _endpoint(self, name: str, status: int) -> str:
        if name in self._endpoints:
            return name
        if status in (401, 403, 404) or len(self._endpoints) >= _ENDPOINTS:
            return "other"
        self._endpoints.add(name)
        return name

    def _entity(self, endpoint: str, name: str) -> str:
        if name and (endpoint, name) not in self._entities:
            if endpoint == "other" or len(self._entities) >= _ENTITIES:
                return "other"
            self._entities.add((endpoint, name))
        return name


class Upstreams(Collector):
    """Which served entities elsewhere are asked (1), or left alone for a while because they failed several times in a row (0).

    Parameters
    ----------
    health: tells it by endpoint and served entity.
    """

    def __init__(self, health: Callable[[], Mapping[str, Mapping[str, bool]]]) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        told = GaugeMetricFamily("smalti_upstream_up", "Whether a served entity is asked.", labels=["endpoint", "served_entity"])
        every = ((endpoint, name, up) for endpoint, entities in self._health().items() for name, up in entities.items())
        for endpoint, name, up in islice(every, _ENTITIES):
            told.add_metric([endpoint, name], float(up))
        yield told


class _Only(Collector):
    """What a registry holds of one endpoint, and some more."""

    def __init__(self, registry: CollectorRegistry, endpoint: str, more: Iterable[Metric]) -> None:
        self._registry, self._of, self._more = registry, endpoint, more

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if sample.labels.get("endpoint") == self._of]
            if family.samples:
                yield family
        yield from self._more
