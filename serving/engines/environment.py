"""The Python environment of a model: the server's own where it has what the model asks for, else one made for it and kept.

An environment is kept by what was asked for, so that models with the same requirements share one. A model's requirements stand in
the `requirements.txt` that MLflow writes beside it:
https://mlflow.org/docs/latest/ml/model/dependencies/
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from serving.engines.process import Note
from serving.engines.supervised import LoadFailed

WORKER_NEEDS = ("mlflow", "numpy", "orjson", "pandas")
"""What the worker itself imports; the server's versions are taken where the model names none."""
BUILD_SECONDS = 1800


def unmet(path: Path) -> list[str]:
    """The requirements of the model in a folder that this environment does not satisfy. Blocking."""
    missing = []
    for line in wanted(path):
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            missing.append(line)  # an address or an option: only pip knows
            continue
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        installed = _installed(requirement.name)
        if installed is None:
            missing.append(line)
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            missing.append(f"{line} (here: {installed})")
    return missing


def _installed(name: str) -> str | None:
    """The version of a package here, or of another build of it: `xgboost-cpu` is what a model means by `xgboost`."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        builds = metadata.packages_distributions().get(name.replace("-", "_"), ())
        return next((metadata.version(build) for build in builds if build.startswith(f"{name}-")), None)


def wanted(path: Path) -> list[str]:
    """The requirements of the model in a folder."""
    try:
        lines = (path / "requirements.txt").read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


class Environments:
    """Makes and keeps environments.

    Parameters
    ----------
    folder: where they are kept, one folder each; removing one makes it anew the next time.
    build: whether they are made at all; otherwise models run on the server's packages, and the build log says what is unmet.
    """

    def __init__(self, folder: Path, *, build: bool = True) -> None:
        self._folder, self._build = folder, build
        self._locks: dict[str, asyncio.Lock] = {}

    async def python(self, path: Path, note: Note) -> str:
        """The interpreter for the model in a folder. Raises `LoadFailed` where its environment cannot be made."""
        missing = await asyncio.to_thread(unmet, path)
        if not missing:
            return sys.executable
        told = ", ".join(missing)
        if not self._build:
            note(f"the server's packages are used, which do not satisfy {told}")
            return sys.executable
        lines = await asyncio.to_thread(wanted, path)
        version = ".".join(map(str, sys.version_info[:2]))
        key = hashlib.sha256("\n".join([version, *sorted(lines)]).encode()).hexdigest()[:24]
        python = self._folder / key / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        async with self._locks.setdefault(key, asyncio.Lock()):
            if python.exists():
                note(f"environment {key} is there already")
                return str(python)
            note(f"environment {key} is being made: the server does not satisfy {told}")
            try:
                await self._make(self._folder / key, python, lines, note)
            except (LoadFailed, asyncio.CancelledError):
                await asyncio.to_thread(shutil.rmtree, self._folder / key, True)
                raise
        note(f"environment {key} is ready")
        return str(python)

    async def _make(self, folder: Path, python: Path, lines: list[str], note: Note) -> None:
        await _run([sys.executable, "-m", "venv", "--clear", str(folder)], note)
        # the worker's own needs in the server's versions, unless the model asks for others
        named = {Requirement(line).name.lower() for line in lines if _readable(line)}
        own = [f"{name}=={metadata.version(name)}" for name in WORKER_NEEDS if name not in named]
        with tempfile.NamedTemporaryFile("w", suffix=".txt", dir=folder) as file:
            file.write("\n".join([*lines, *own]))
            file.flush()
            options = ["--no-input", "--disable-pip-version-check", "-qq", "--retries", "1", "--timeout", "15"]
            await _run([str(python), "-m", "pip", "install", *options, "-r", file.name], note)


def _readable(line: str) -> bool:
    try:
        Requirement(line)
    except InvalidRequirement:
        return False
    return True


async def _run(command: list[str], note: Note) -> None:
    """Run a command; what it says goes to the build log. Raises `LoadFailed` with its last words."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), BUILD_SECONDS)
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise LoadFailed(f"The model's environment was not made within {BUILD_SECONDS} s.") from None
        raise
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    for line in lines[-40:]:
        note(line)
    if process.returncode:
        errors = [line for line in lines if line.startswith("ERROR") and "Ignored the following" not in line] or lines
        raise LoadFailed(
            f"The model's requirements cannot be installed: {' '.join(errors[-3:])[:500]} "
            "Log it with versions that go together and can be had from here, or set `model_environments: server`."
        )
