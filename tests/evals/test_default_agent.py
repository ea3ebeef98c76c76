"""The gate over the default agent: it answers from docs/, offline, and must reach `evals/datasets/smalti.gate.yaml`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app import cli
from evals.journal import read_journal
from tests.live import ROOT, Live, environment, mlflow_store, serving, smalti

DATA = ROOT / "evals" / "datasets"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("state") / "home", ROOT / "docs") as server:
        mlflow_store(server.home)
        yield server


@pytest.mark.timeout(400)
def test_the_default_agent_passes_its_gate(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = smalti("eval", "assistant", "--data", str(DATA / "smalti.jsonl"), "--json", home=live.home)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["rows"], told["errors"]) == (40, 0)

    # What follows asks next to nothing, so it is not worth a process each.
    for name, value in environment(live.home).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["eval", *arguments])

    junit, markdown = tmp_path / "junit.xml", tmp_path / "gate.md"
    outputs = ("--junit", str(junit), "--markdown", str(markdown))
    decided = run("gate", told["run_id"], "--criteria", str(DATA / "smalti.gate.yaml"), *outputs)
    assert decided.exit_code == 0, decided.output
    assert ElementTree.parse(junit).getroot().get("failures") == "0"
    assert "gate: passed" in markdown.read_text()

    # Again: nothing is asked twice, and the same answers are no worse than themselves.
    again = json.loads(run("assistant", "--data", str(DATA / "smalti.jsonl"), "--json", "--no-record").stdout)
    first, second = read_journal(told["journal"]), read_journal(again["journal"])
    assert [r.prediction.request_id for r in first.results] == [r.prediction.request_id for r in second.results]
    held = ("--baseline", told["journal"], "--margin", "contains=0.5", "--ratio", "latency_p95_ms=1.5")
    assert run("gate", again["journal"], *held).exit_code == 0
    few = run("gate", "latest", "--baseline", told["journal"], "--margin", "contains=0.01", "--json")
    assert few.exit_code == 3
    assert "inconclusive, needs n = " in few.stdout
    plot = tmp_path / "plot.svg"
    compared = run("compare", told["journal"], "latest", "--plot", str(plot))
    assert compared.exit_code == 0, compared.output
    assert "assistant is not shown to differ over 40 rows" in " ".join(compared.stdout.split())
    assert "contains" in plot.read_text()
    report = tmp_path / "report.html"
    assert run("report", told["run_id"], "--out", str(report)).exit_code == 0
    assert "rows went wrong" in report.read_text()
