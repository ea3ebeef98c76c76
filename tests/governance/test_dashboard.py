"""The Grafana dashboard asks for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

from governance.call import Call, Caller, CallRecord
from governance.metrics import Metrics

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"


def test_every_panel_finds_its_metrics() -> None:
    metrics = Metrics(lambda: 1, lambda: 2)
    verdict = {"guardrail": "pii", "where": "input", "action": "MASK", "reason": "EMAIL"}
    call = Call("e", "chat", {}, caller=Caller("a"))
    usage = {"input_tokens": 1, "output_tokens": 1}
    for status in (200, 429):
        metrics(CallRecord(call, status, 0, 2, 1, {}, None, usage, (), 0.1, (verdict,)))
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
