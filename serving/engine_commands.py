"""`smalti engines`: environments for engines that are no dependency of Smalti's, under `SMALTI_HOME/engines`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.cli import CommandError

engines = typer.Typer(no_args_is_help=True, help="Engines in environments of their own, such as vLLM.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
_PACKAGES = {"vllm": "vllm"}
_ABOUT = "smalti-engine.json"
_COLUMNS = {"name": "Engine", "version": "Version", "python": "Python"}


@engines.command()
def install(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The engine: vllm.")],
    package: Annotated[str | None, typer.Option(help="What pip installs, as `vllm==0.11.0`; default: the newest.")] = None,
    python: Annotated[Path | None, typer.Option(help="Interpreter to make the environment with; default: this one.")] = None,
    pip: Annotated[list[str] | None, typer.Option(help="A further argument of pip's; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Make an engine's environment and install it there."""
    if name not in _PACKAGES:
        raise CommandError(f"There is no engine {name!r} to install; there is: {', '.join(_PACKAGES)}.", 2)
    folder = _folder(context) / name
    if folder.exists():
        raise CommandError(f"{name} is installed in {folder}. Remove it first: smalti engines remove {name}", 2)
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted = package or _PACKAGES[name]
    try:
        _run([str(python or sys.executable), "-m", "venv", str(folder)])
        _run([str(_python(folder)), "-m", "pip", "install", "--quiet", *(pip or ()), wanted])
        project = wanted.split("=")[0].split("<")[0].split(">")[0].split("[")[0].strip()
        found = _run([str(_python(folder)), "-m", "pip", "show", project], capture=True) if "/" not in project else ""
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    version = next((line.split(":", 1)[1].strip() for line in found.splitlines() if line.startswith("Version:")), "unknown")
    about = {"name": name, "package": wanted, "version": version, "installed": int(time.time())}
    (folder / _ABOUT).write_text(json.dumps(about))
    shown = {**about, "python": str(_python(folder))}
    if as_json:
        context.obj.print_json(shown)
    else:
        print(f"{name} {version} is installed. Serve a model with it: SMALTI_CHAT_MODEL={name}:ORG/MODEL smalti serve")


@engines.command("list")
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List the installed engines."""
    rows = [_about(folder) for folder in sorted(_folder(context).glob("*")) if (folder / _ABOUT).is_file()]
    context.obj.print_rows(rows, _COLUMNS, as_json=as_json, empty="No engines. Install one: smalti engines install vllm")


@engines.command()
def remove(context: typer.Context, name: Annotated[str, typer.Argument(help="The engine.")]) -> None:
    """Remove an engine's environment."""
    folder = _folder(context) / name
    if name not in _PACKAGES or not folder.is_dir():
        raise CommandError(f"There is no engine {name!r} in {_folder(context)}.", 2)
    shutil.rmtree(folder)
    print(f"{name} is removed.")


def _folder(context: typer.Context) -> Path:
    return context.obj.settings.home.resolve() / "engines"


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _about(folder: Path) -> dict[str, Any]:
    return {**json.loads((folder / _ABOUT).read_text()), "python": str(_python(folder))}


def _run(command: list[str], *, capture: bool = False) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CommandError(f"`{' '.join(command[:6])} …` failed: {error}", 1) from None
    return done.stdout or ""
