"""The gate over the default agent: it answers from docs/, offline, and must reach `evals/datasets/smalti.gate.yaml`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from evals.journal import read_journal
from tests.live import ROOT, Live, serving, smalti

DATA = ROOT / "evals" / "datasets"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("state") / "home", ROOT / "docs") as server:
        yield server


@pytest.mark.timeout(400)  # seven commands, each a process of its own
def test_the_default_agent_passes_its_gate(live: Live, tmp_path: Path) -> None:
    done = smalti("eval", "assistant", "--data", str(DATA / "smalti.jsonl"), "--json", home=live.home)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["rows"], told["errors"]) == (40, 0)
    junit, markdown = tmp_path / "junit.xml", tmp_path / "gate.md"
    outputs = ("--junit", str(junit), "--markdown", str(markdown))
    decided = smalti("eval", "gate", told["run_id"], "--criteria", str(DATA / "smalti.gate.yaml"), *outputs, home=live.home)
    assert decided.returncode == 0, decided.stdout + decided.stderr
    assert ElementTree.parse(junit).getroot().get("failures") == "0"
    assert "gate: passed" in markdown.read_text()

    # Again: nothing is asked twice, and the same answers are no worse than themselves.
    again = json.loads(
        smalti("eval", "assistant", "--data", str(DATA / "smalti.jsonl"), "--json", "--no-record", home=live.home).stdout
    )
    first, second = read_journal(told["journal"]), read_journal(again["journal"])
    assert [r.prediction.request_id for r in first.results] == [r.prediction.request_id for r in second.results]
    held = ("--baseline", told["journal"], "--margin", "contains=0.5", "--ratio", "latency_p95_ms=1.5")
    assert smalti("eval", "gate", again["journal"], *held, home=live.home).returncode == 0
    few = smalti("eval", "gate", "latest", "--baseline", told["journal"], "--margin", "contains=0.01", "--json", home=live.home)
    assert few.returncode == 3
    assert "inconclusive, needs n = " in few.stdout
    plot = tmp_path / "plot.svg"
    compared = smalti("eval", "compare", told["journal"], "latest", "--plot", str(plot), home=live.home)
    assert compared.returncode == 0, compared.stderr
    assert "assistant is not shown to differ over 40 rows" in compared.stdout
    assert "contains" in plot.read_text()
    report = tmp_path / "report.html"
    assert smalti("eval", "report", told["run_id"], "--out", str(report), home=live.home).returncode == 0
    assert "rows went wrong" in report.read_text()
