"""Templates: small projects whose own tests pass, whose settings are accepted, whose agents load."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from agents.agent import Agent
from agents.registry import load_builder
from agents.scaffold import GROUP, TemplateError, create, templates
from evals.data import load_dataset
from serving.settings import Settings
from tests.live import ROOT

OURS = ("analyst", "classifier", "rag", "supervisor")
TESTED = {"classifier": "tests/evals/test_project_commands.py", "rag": "tests/test_docs.py"}
"""Templates whose own tests are run there, by `smalti test`."""


def test_ours_are_there() -> None:
    assert set(OURS) <= set(templates())


@pytest.mark.parametrize("template", OURS)
def test_a_new_project_is_small_and_its_tests_pass(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = create("my-agent", template, tmp_path)
    project = tmp_path / "my-agent"
    assert len(made) <= 6
    assert len((project / "agent.py").read_text().splitlines()) <= 60
    assert not any("{{" in path.read_text() for path in made)
    if template not in TESTED:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(project), str(project)]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr

    monkeypatch.chdir(project)
    monkeypatch.delenv("SMALTI_ROUTER", raising=False)
    settings = Settings.load()
    (endpoint,) = settings.endpoints
    assert endpoint.name == settings.main_agent == "my-agent"
    assert settings.evaluations[0].min["contains"] == 1.0
    assert load_dataset(project / "eval.jsonl").rows
    entity = endpoint.config.served_entities[0].agent
    assert entity is not None
    if template != "analyst":  # whose tables are a tool
        Agent("my-agent", load_builder(entity.builder), None, None)


def test_what_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    for name, template, says in (
        ("My Agent", "rag", "no name for an agent"),
        ("../x", "rag", "no name for an agent"),
        ("mine", "nothing", "there are analyst"),
        ("taken", "rag", "there already"),
    ):
        with pytest.raises(TemplateError, match=says):
            create(name, template, tmp_path)


def test_a_package_offers_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "agent.py").write_text("# {{name}}\n")
    (tmp_path / "theirs" / "logo.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "their_templates.py").write_text(f"from pathlib import Path\nfolder = Path({str(tmp_path / 'theirs')!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    good = metadata.EntryPoint("theirs", "their_templates:folder", GROUP)
    broken = metadata.EntryPoint("broken", "nowhere_at_all:folder", GROUP)
    monkeypatch.setattr(
        metadata, "entry_points", lambda **wanted: [e for e in (good, broken) if wanted.get("name") in (None, e.name)]
    )
    assert {"theirs", "broken", "rag"} <= set(templates())
    create("mine", "theirs", tmp_path)
    assert (tmp_path / "mine" / "agent.py").read_text() == "# mine\n"
    assert (tmp_path / "mine" / "logo.png").read_bytes() == b"\x89PNG\xff"
    with pytest.raises(TemplateError, match="does not load"):
        create("other", "broken", tmp_path)
