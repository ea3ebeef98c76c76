"""The documentation is true: its snippets run, its commands work, its settings are accepted, its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import ROOT, Live, environment, serving, smalti

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = re.compile("smalti new")
"""A fence that begins so is a project's way from nothing; it is run as a whole."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(language: str) -> list:
    found = []
    for page in PAGES:
        for number, (kind, text) in enumerate(FENCE.findall(page.read_text())):
            if kind == language:
                found.append(pytest.param(text, id=f"{page.stem}-{number}"))
    return found


def commands(first: str) -> list:
    lines = {}
    for page in PAGES:
        for _, text in FENCE.findall(page.read_text()):
            for line in text.replace("\\\n", " ").splitlines():
                if line.startswith(first + " ") and not PROJECT.match(text):
                    lines.setdefault(line, pytest.param(line, id=f"{page.stem}: {line[:60]}"))
    return list(lines.values())


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("state") / "home", ROOT / "docs", SMALTI_MLFLOW="true") as server:
        prepared = smalti("conformance", "prepare", home=server.home)  # the models that docs/serving.md serves
        assert prepared.returncode == 0, prepared.stderr
        yield server


def run(command: list[str] | str, live: Live, **more) -> subprocess.CompletedProcess[str]:
    env = environment(live.home, SMALTI_KEY=live.key) | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, **more)


@pytest.mark.parametrize("snippet", fences("python"))
def test_a_snippet_runs(snippet: str, live: Live) -> None:
    code = snippet.replace("http://127.0.0.1:8000", live.url)
    done = run([sys.executable, "-c", code], live)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", commands("smalti"))
def test_a_command_works(line: str, live: Live) -> None:
    done = smalti(*shlex.split(line)[1:], home=live.home, SMALTI_KEY=live.key)
    assert done.returncode in (0, 3), done.stderr + done.stdout


def test_a_project_is_made_asked_and_tested(tmp_path: Path) -> None:
    (fence, *same) = {text for page in PAGES for _, text in FENCE.findall(page.read_text()) if PROJECT.match(text)}
    assert not same
    (tmp_path / "smalti").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m app "$@"\n')
    (tmp_path / "smalti").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = {**environment(tmp_path / "home", PYTHONPATH=str(ROOT)), "PATH": path}
    command = ["sh", "-e", "-c", fence]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a year. [1]\n\n[1] handbook.md" in done.stdout
    assert done.stdout.endswith("passed\n")


@pytest.mark.parametrize("line", commands("curl"))
def test_a_curl_line_is_answered(line: str, live: Live) -> None:
    done = run(line.replace("http://127.0.0.1:8000", live.url), live, shell=True)
    told = json.loads(done.stdout)
    assert told.get("status") == "completed" or "openapi" in told, told


@pytest.mark.parametrize("text", fences("yaml"))
def test_settings_in_the_docs_are_accepted(text: str, tmp_path: Path) -> None:
    from serving.settings import Settings

    (tmp_path / "smalti.yaml").write_text(text)
    settings = Settings.load(tmp_path / "smalti.yaml")
    assert settings.endpoints or settings.indexes


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
