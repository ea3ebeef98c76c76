"""The Grafana dashboard asks for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

from governance.call import Call, Caller, CallRecord
from governance.metrics import Metrics, Upstreams

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"


def test_every_panel_finds_its_metrics() -> None:
    metrics = Metrics(lambda: 1, lambda: 2)
    metrics.registry.register(Upstreams(lambda: {"e": {"a": True}}))
    verdict = {"guardrail": "pii", "where": "input", "action": "MASK", "reason": "EMAIL"}
    call = Call("e", "chat", {}, caller=Caller("a"))
    usage = {"input_tokens": 1, "output_tokens": 1}
    for status in (200, 429):
        metrics(CallRecord(call, status, 0, 2, 1, {}, None, usage, (), 0.1, (verdict,), "a"))
    told = metrics.exposition().decode()
    labels = {name: set(re.findall(r'(\w+)="', held or "")) for name, held in re.findall(r"^(smalti_\w+)(\{.*\})? ", told, re.M)}
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(asked) >= 10
    for expression in asked:
        names = re.findall(r"smalti_\w+", expression)
        assert names
        assert set(names) <= labels.keys(), expression
        wanted = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
        assert wanted <= set.union(*(labels[name] for name in names)), expression


def test_metrics_tell_of_each_served_entity_and_their_number_is_bounded() -> None:
    metrics = Metrics()
    metrics.registry.register(Upstreams(lambda: {"e": {"a": True, "b": False}}))
    call = Call("e", "chat", {}, caller=Caller("a"))
    for number in range(2_000):
        metrics(CallRecord(call, 200, 0, 2, 1, {}, None, {"input_tokens": 3}, (), 0.1, (), f"v{number}"))
    told = metrics.exposition().decode()
    assert 'smalti_tokens_total{endpoint="e",kind="input",served_entity="v7"} 3.0' in told
    assert 'smalti_upstream_up{endpoint="e",served_entity="a"} 1.0' in told
    assert 'smalti_upstream_up{endpoint="e",served_entity="b"} 0.0' in told
    assert told.count("smalti_requests_total{") <= 1_025
    assert 'served_entity="other",status="200",task="chat"} 976.0' in told
