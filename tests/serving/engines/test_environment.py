"""Which requirements a model's environment lacks, and the environment that is made for it; pip is kept off line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import zipfile
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest

from serving.engines import environment
from serving.engines.environment import Environments, unmet
from serving.engines.launch import worker_root
from serving.engines.supervised import LoadFailed

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(environment, "WORKER_NEEDS", ())


def model(folder: Path, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "requirements.txt").write_text("\n".join(lines))
    return folder


def wheel(folder: Path, name: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{name}-1.0.dist-info/RECORD", "")


def test_what_the_server_satisfies_and_what_not(tmp_path: Path) -> None:
    here = version("numpy")
    satisfied = (f"numpy=={here}", "pandas>=2", "# a comment", "", 'winonly==1; sys_platform == "win32"', "mlflow[genai]")
    assert unmet(model(tmp_path, *satisfied)) == []
    assert unmet(model(tmp_path, "numpy<1", "no-such-thing==2", "git+https://host/x.git")) == [
        f"numpy<1 (here: {here})",
        "no-such-thing==2",
        "git+https://host/x.git",
    ]


async def test_the_server_s_own_python_where_it_does_or_must(tmp_path: Path) -> None:
    notes: list[str] = []
    fine, other = model(tmp_path / "a", "numpy"), model(tmp_path / "b", "no-such-thing")
    assert await Environments(tmp_path / "e").python(fine, notes.append) == sys.executable
    assert await Environments(tmp_path / "e", build=False).python(other, notes.append) == sys.executable
    assert notes == ["the server's packages are used, which do not satisfy no-such-thing"]
    assert not (tmp_path / "e").exists()


async def test_an_environment_is_made_once_and_without_the_server_s_packages(tmp_path: Path) -> None:
    wheel(tmp_path, "tinything")
    notes: list[str] = []
    made = Environments(tmp_path / "e")
    python = await made.python(model(tmp_path / "a", "tinything==1.0"), notes.append)
    assert python == await made.python(model(tmp_path / "b", "tinything==1.0"), notes.append)
    told = " ".join(notes)
    assert "is being made: the server does not satisfy tinything==1.0" in told
    assert "is ready" in told
    assert "is there already" in told
    root = worker_root(python)
    assert worker_root(sys.executable) == Path(environment.__file__).parents[2]
    command = [python, "-c", "import importlib.util as u; print([u.find_spec(n) is not None for n in ('tinything', 'numpy')])"]
    run = partial(subprocess.run, command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(root)})
    assert (await asyncio.to_thread(run)).stdout.strip() == "[True, False]"


def test_the_worker_beside_an_environment_needs_no_more_of_this_project(tmp_path: Path) -> None:
    root = worker_root(str(tmp_path / "bin" / "python"))
    packages = [path for path in sys.path if path.endswith("site-packages")]
    script = f"import sys; sys.path[:0] = {[str(root), *packages]}; from serving.engines import worker; print(worker.__file__)"
    alone = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True)  # -S: no editable installs
    assert alone.stdout.strip() == str(root / "serving/engines/worker.py"), alone.stderr


def test_another_build_of_a_package_is_that_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("thing-cpu", "thing_of_others"):
        info = tmp_path / f"{name.replace('-', '_')}-2.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1\n")
        (info / "top_level.txt").write_text("thing\n" if name == "thing-cpu" else "unlike\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert unmet(model(tmp_path / "m", "thing==2.1", "thing<2", "unlike==2.1")) == ["thing<2 (here: 2.1)", "unlike==2.1"]


async def test_requirements_that_cannot_be_had_are_told_and_leave_nothing(tmp_path: Path) -> None:
    notes: list[str] = []
    with pytest.raises(LoadFailed, match=r"cannot be installed: .*no-such-thing==2"):
        await Environments(tmp_path / "e").python(model(tmp_path / "a", "no-such-thing==2"), notes.append)
    assert "ERROR" in " ".join(notes)
    assert list((tmp_path / "e").iterdir()) == []
