"""The commands of people who write agents: `smalti new` and `smalti dev`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def new(
    name: Annotated[str, typer.Argument(help="Name of the project, its folder and its endpoint.")],
    template: Annotated[str, typer.Option(help="rag, supervisor, analyst, classifier, or one that a package offers.")] = "rag",
    folder: Annotated[Path, typer.Option(help="Where to make the project's folder.")] = Path("."),
) -> None:
    """Make a small agent project: a graph, its settings, a test and an evaluation."""
    from agents.scaffold import create

    made = create(name, template, folder)
    for path in made:
        typer.echo(f"  {path}")
    typer.echo(f"\ncd {folder / name}\npython -m pytest\nsmalti dev")


def dev(
    port: Annotated[int | None, typer.Option(help="Port; default 8000.")] = None,
    docs: Annotated[Path | None, typer.Option(help="Folder of documents to answer from.")] = None,
) -> None:
    """Serve, and again whenever a Python, YAML or JSON-lines file here changes. A broken agent does not stop the server."""
    from watchfiles import PythonFilter, run_process

    given = [part for option, value in (("--port", port), ("--docs", docs)) if value is not None for part in (option, str(value))]
    command = [sys.executable, "-P", "-c", "from app import main; main()", "serve", *given]
    run_process(
        ".",
        target=_shell(command),
        target_type="command",
        watch_filter=PythonFilter(ignore_paths=(str(Path(".smalti").resolve()),), extra_extensions=(".yaml", ".jsonl", ".csv")),
        callback=lambda changes: typer.echo(f"smalti: {len(changes)} changed, starting again", err=True),
        grace_period=0.5,
    )


def _shell(command: list[str]) -> str:
    import shlex

    return shlex.join(command)
