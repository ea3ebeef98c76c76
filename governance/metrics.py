"""Prometheus metrics of every call, per endpoint and served entity. Their number is bounded whatever callers send.

Names follow https://prometheus.io/docs/practices/naming/; an endpoint's label is its name where a call was admitted to it, and
`other` for names that nothing answers to and beyond the first few hundred. `served_entity` is empty where none was reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from governance.call import CallRecord

CONTENT_TYPE = CONTENT_TYPE_LATEST
_ENDPOINTS, _ENTITIES = 256, 1_024
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_GUARDRAILS = ("pii", "invalid_keywords", "valid_topics", "safety", "guardrail")


class Metrics:
    """An observer of calls.

    Parameters
    ----------
    in_flight: tells how many calls are being answered now.
    queued: tells how many wait for their turn.
    """

    def __init__(self, in_flight: Callable[[], int] = lambda: 0, queued: Callable[[], int] = lambda: 0) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry, "namespace": "smalti"}
        at = ["endpoint"]
        by = [*at, "served_entity"]
        self._requests = Counter("requests", "Calls that ended, by status.", [*by, "task", "status"], **made)
        self._tokens = Counter("tokens", "Tokens read and written.", [*by, "kind"], **made)
        self._cost = Counter("cost_dollars", "What tokens cost, in US dollars.", by, **made)
        timed = {"buckets": _SECONDS, **made}
        self._latency = Histogram("request_seconds", "From the request to the end of its answer.", by, **timed)
        self._first = Histogram("first_byte_seconds", "From the request to the first of its answer.", by, **timed)
        self._limited = Counter("limits_hit", "Calls refused by a limit or a budget.", at, **made)
        self._verdicts = Counter("guardrail_verdicts", "What guardrails did.", [*at, "guardrail", "where", "action"], **made)
        Gauge("in_flight", "Calls being answered now.", **made).set_function(in_flight)
        Gauge("queued", "Calls that wait for their turn.", **made).set_function(queued)
        self._endpoints: set[str] = set()
        self._entities: set[tuple[str, str]] = set()
        self._children: dict[tuple[str, ...], Any] = {}

    def __call__(self, record: CallRecord) -> None:
        """Count a finished call."""
        call = record.call
        endpoint = self._endpoint(call.endpoint, record.status_code)
        entity = self._entity(endpoint, record.served_entity_name or "")
        self._child(self._requests, endpoint, entity, call.task, str(record.status_code)).inc()
        for verdict in record.verdicts:
            name = verdict["guardrail"] if verdict["guardrail"] in _GUARDRAILS else "custom"
            self._child(self._verdicts, endpoint, name, verdict["where"], verdict["action"]).inc()
        if record.status_code == 429:
            self._child(self._limited, endpoint).inc()
        if record.first_event_ns is None:
            return
        self._child(self._latency, endpoint, entity).observe((record.end_ns - record.start_ns) / 1e9)
        self._child(self._first, endpoint, entity).observe((record.first_event_ns - record.start_ns) / 1e9)
        for kind in ("input", "output"):
            if count := record.usage.get(f"{kind}_tokens"):
                self._child(self._tokens, endpoint, entity, kind).inc(count)
        if record.cost:
            self._child(self._cost, endpoint, entity).inc(record.cost)

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

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric._name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child


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
