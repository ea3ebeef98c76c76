"""`kill -9` at every event of a run of each pattern: the next turn works, no tool that finished is forgotten or runs again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.bench.pattern_kills import PATTERNS
from tests.live import ROOT


@pytest.mark.timeout(300)
@pytest.mark.parametrize("patterns", [("rag", "supervisor", "router"), ("react", "swarm", "plan_execute")])
def test_the_next_turn_works(patterns: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tests.bench.pattern_kills", *patterns]  # apart, since it forks
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == set(patterns)
    assert not [each["wrong"] for each in found.values() if each["wrong"]]
    assert all(each["killed_at"] > 10 for each in found.values())


def test_every_pattern_is_killed() -> None:
    from agents.registry import BUILTIN

    assert set(PATTERNS) == set(BUILTIN)
