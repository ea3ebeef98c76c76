"""Counts of calls by endpoint, in Prometheus' text format.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://docs.databricks.com/api/workspace/servingendpoints/exportmetrics
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping

from governance.call import CallRecord

_BOUNDS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
"""Upper bounds of the latency buckets, milliseconds."""


class Metrics:
    """Told of each finished call as an observer of the gateway; counts since the start of the process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, int], int] = defaultdict(int)
        self._tokens: dict[tuple[str, str], int] = defaultdict(int)
        self._latency: dict[str, list[float]] = {}

    def __call__(self, record: CallRecord) -> None:
        if record.status_code == 404:
            return  # names of nothing would be kept for ever
        name, took = record.call.endpoint, (record.end_ns - record.start_ns) / 1e6
        with self._lock:
            self._calls[name, record.status_code] += 1
            for kind in ("input_tokens", "output_tokens"):
                if count := record.usage.get(kind):
                    self._tokens[name, kind] += count
            row = self._latency.setdefault(name, [0.0] * (len(_BOUNDS) + 2))
            row[bisect_left(_BOUNDS, took)] += 1
            row[-1] += took

    def text(self, endpoint: str, gauges: Iterable[tuple[str, str, Mapping[str, str], float]] = ()) -> str:
        """One endpoint's metrics; `gauges` are further `(name, help, labels, value)`."""
        with self._lock:
            calls = {status: count for (name, status), count in self._calls.items() if name == endpoint}
            tokens = {kind: count for (name, kind), count in self._tokens.items() if name == endpoint}
            latency = list(self._latency.get(endpoint, [0.0] * (len(_BOUNDS) + 2)))
        lines: list[str] = []

        def family(name: str, kind: str, about: str, samples: Iterable[tuple[str, Mapping[str, str], float]]) -> None:
            lines.extend((f"# HELP {name} {about}", f"# TYPE {name} {kind}"))
            for suffix, labels, value in samples:
                shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in {"endpoint_name": endpoint, **labels}.items())
                lines.append(f"{name}{suffix}{{{shown}}} {value:g}")

        by_status = [("", {"status": str(status)}, count) for status, count in sorted(calls.items())]
        family("request_count_total", "counter", "Calls since the server started, by HTTP status.", by_status)
        errors = [(range(400, 500), "request_4xx_count_total"), (range(500, 600), "request_5xx_count_total")]
        for statuses, name in errors:
            total = sum(count for status, count in calls.items() if status in statuses)
            family(name, "counter", "Calls that failed.", [("", {}, total)])
        reached, buckets = 0.0, []
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), latency, strict=False):
            reached += count
            buckets.append(("_bucket", {"le": bound}, reached))
        summed = [("_sum", {}, latency[-1]), ("_count", {}, reached)]
        family("request_latency_ms", "histogram", "Milliseconds from the request to the end of its answer.", [*buckets, *summed])
        by_kind = [("", {"kind": kind}, count) for kind, count in sorted(tokens.items())]
        family("token_count_total", "counter", "Tokens read and written.", by_kind)
        for name, about, labels, value in gauges:
            family(name, "gauge", about, [("", labels, value)])
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
