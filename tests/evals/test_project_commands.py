"""`smalti test`: a project's tests and evaluations as one gate."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.scaffold import create
from tests.live import ROOT, Live, environment, serving


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Live]]:
    """A project and its running server, which the command asks; without one it starts its own."""
    place = tmp_path_factory.mktemp("project")
    create("desk", "classifier", place)
    with serving(place / "home", cwd=place / "desk") as live:
        yield place / "desk", live


def smalti_test(folder: Path, live: Live, *given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "app", "test", *given]
    env = environment(live.home, PYTHONPATH=str(ROOT))
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=100)


def test_a_new_project_passes_and_a_bound_that_is_missed_fails(project: tuple[Path, Live]) -> None:
    folder, live = project
    good = smalti_test(folder, live, "--json")
    assert good.returncode == 0, good.stdout + good.stderr
    told = json.loads(good.stdout)
    assert told["passed"]
    assert told["tests"] == {"tests": 2, "failures": 0, "errors": 0, "skipped": 0, "passed": True, "exit_status": 0}
    assert [(each["endpoint"], each["contains"], each["errors"]) for each in told["evaluations"]] == [("desk", 1.0, 0)]

    (folder / "test_agent.py").write_text("def test_it(): assert False\n")
    rows = (folder / "eval.jsonl").read_text()
    (folder / "eval.jsonl").write_text(rows.replace('["billing"]', '["sales"]'))
    bad = smalti_test(folder, live)
    assert bad.returncode == 1
    assert "1 failed" in bad.stdout
    assert "failed contains ≥ 1: 0.667 is below 1" in bad.stdout
    assert bad.stdout.endswith("failed\n")


def test_what_cannot_be_run_is_said_before_anything_runs(project: tuple[Path, Live], tmp_path: Path) -> None:
    _, live = project
    nothing = smalti_test(tmp_path, live)
    assert (nothing.returncode, "neither tests" in nothing.stderr) == (2, True)
    (tmp_path / "smalti.yaml").write_text("evaluations: [{data: gone.jsonl}]\n")
    missing = smalti_test(tmp_path, live)
    assert (missing.returncode, "gone.jsonl" in missing.stderr) == (2, True)
