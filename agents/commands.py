"""The commands of people who write agents: `smalti new` and `smalti dev`."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

PATIENCE = 15.0
"""Seconds in which a server ends what it is doing, before it is killed."""


def new(
    name: Annotated[str, typer.Argument(help="Name of the project, its folder and its endpoint.")],
    template: Annotated[str, typer.Option(help="rag, supervisor, analyst, classifier, or one that a package offers.")] = "rag",
    folder: Annotated[Path, typer.Option(help="Where to make the project's folder.")] = Path("."),
) -> None:
    """Make a small agent project: a graph, its settings, a test and an evaluation."""
    from agents.scaffold import create, first_question

    made = create(name, template, folder)
    for path in made:
        typer.echo(f"  {path}")
    question = first_question(folder / name / "eval.jsonl") or "What can you do?"
    typer.echo(f"\ncd {folder / name}\nsmalti ask {shlex.quote(question)}\nsmalti test")


def dev(
    port: Annotated[int | None, typer.Option(help="Port; default 8000.")] = None,
    docs: Annotated[Path | None, typer.Option(help="Folder of documents to answer from.")] = None,
) -> None:
    """Serve, and again whenever a Python, YAML or JSON-lines file here changes. A broken agent does not stop the server."""
    from watchfiles import PythonFilter, watch

    given = [part for option, value in (("--port", port), ("--docs", docs)) if value is not None for part in (option, str(value))]
    command = [sys.executable, "-P", "-c", "from app import main; main()", "serve", *given]
    kinds = PythonFilter(ignore_paths=(str(Path(".smalti").resolve()),), extra_extensions=(".yaml", ".jsonl", ".csv"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the server never outlives this command
    server: subprocess.Popen[bytes] | None = None
    try:
        server = subprocess.Popen(command)
        for changes in watch(".", watch_filter=kinds):
            typer.echo(f"smalti: {len(changes)} changed, starting again", err=True)
            _end(server)
            server = subprocess.Popen(command)
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # asked twice
        if server is not None:
            _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


agents = typer.Typer(name="agents", no_args_is_help=True, help="Agents as MLflow models.")

IGNORED = (".git", ".smalti", ".venv", "__pycache__", "mlruns", "mlflow.db", ".pytest_cache", "node_modules")
"""What of a project's folder is not part of its model."""


@agents.callback()
def _agents() -> None:
    """Agents as MLflow models."""


@agents.command("log")
def log_agent(
    name: Annotated[str, typer.Argument(help="The agent's endpoint, as smalti.yaml here declares it.")],
    folder: Annotated[Path, typer.Option(help="The project's folder.")] = Path("."),
    register: Annotated[str | None, typer.Option(help="Name to register the model by.")] = None,
) -> None:
    """Log the project here as an MLflow model (a ResponsesAgent), where MLFLOW_TRACKING_URI points; prints its URI."""
    import shutil
    import tempfile
    from importlib.metadata import version

    import mlflow

    if not (folder / "smalti.yaml").is_file():
        raise typer.BadParameter(f"{folder} holds no smalti.yaml that declares an agent", param_hint="--folder")
    with tempfile.TemporaryDirectory() as kept:
        project = Path(kept, "project")
        shutil.copytree(folder, project, ignore=shutil.ignore_patterns(*IGNORED))
        logged = mlflow.pyfunc.log_model(
            name=name.replace(".", "-"),
            python_model=Path(__file__).with_name("logged.py"),
            artifacts={"project": str(project)},
            model_config={"endpoint": name},
            pip_requirements=[f"smalti=={version('smalti')}"],
            registered_model_name=register,
        )
    typer.echo(logged.model_uri)
