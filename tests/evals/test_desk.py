"""A desk of several agents (documents, a table, a classifier), all classical, answers its 100 questions; its citations stand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evals.citations import Verified
from tests.live import ROOT, environment

DESK = ROOT / "evals" / "datasets" / "desk"


@pytest.mark.timeout(300)
def test_routes_are_right_and_every_citation_stands(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (DESK / "questions.jsonl").read_text("utf-8").splitlines()]
    trained = {json.loads(line)["text"] for line in (DESK / "routes.jsonl").read_text("utf-8").splitlines()}
    assert len({row["question"] for row in rows}) == 100
    assert not trained & {row["question"] for row in rows}, "nothing is asked that the router was trained on"
    gates = ("--min", "route=0.95", "--min", "verified=1.0", "--min", "contains=0.9")
    command = [sys.executable, "-m", "app", "eval", "desk", "--data", "questions.jsonl", "--scorer", "evals.citations:Verified"]
    done = subprocess.run(
        [*command, *gates, "--no-record", "--json"],
        cwd=DESK,
        env=environment(tmp_path / "home", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["rows"], told["errors"]) == (100, 0)
    assert told["metrics"]["verified"] == 1


def test_citations_that_do_not_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A\n\nThe bridge is 314 metres long.")
    (tmp_path / "t.csv").write_text("name,amount\na,1\nb,2.5\n")

    def said(text: str, **more: Any) -> bool | None:
        return Verified().run(outputs={"text": text, "abstained": False, "passages": (), **more})

    quote = {"source": "a.md", "start": 0, "end": 35, "quote": "The bridge is 314 metres long."}
    assert said("The bridge is 314 metres long. [1]", passages=[quote]) is True
    assert said("The bridge is 314 metres long.", passages=[quote]) is False, "no marker"
    assert said("The bridge is 3 metres long. [1]", passages=[{**quote, "quote": "The bridge is 3 metres long."}]) is False
    assert said("It is long. [1]", passages=[{**quote, "source": "b.md"}]) is False
    assert said("It is. [1]") is False
    assert said("I do not know.", abstained=True, passages=[quote]) is None
    assert said("Hello!") is None
    table = "```sql\nSELECT sum(amount) AS s FROM t\n```\n\n| s |\n|---|\n| {} |"
    assert said(table.format("3.5")) is True
    assert said(table.format("4")) is False
