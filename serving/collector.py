"""Traces for an OpenTelemetry collector of the operator's own, beside MLflow's or in place of them.

They are the same spans, sent by OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp/#otlphttp), with OpenTelemetry's own
names for what calls of models are about (`serving.gen_ai`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from governance.call import CallRecord
from serving import gen_ai
from serving.tracing import Tracer
from serving.tracking.base import TrackingServer


class Collector(TrackingServer):
    """Where traces are sent: always there, as far as can be told before they are.

    Parameters
    ----------
    url: what comes before `/v1/traces`.
    """

    name = "the OpenTelemetry collector"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.ready.set()
        self._up.set()


class CollectorTracer(Tracer):
    """An `Observer` that sends finished calls to a collector, which knows no experiments."""

    def __init__(self, url: str) -> None:
        super().__init__(Collector(url))

    def _named(self, record: CallRecord) -> Mapping[str, Any]:
        return gen_ai.attributes(record)

    def _address(self, client: httpx.Client, endpoint: str) -> dict[str, str]:
        return {}
