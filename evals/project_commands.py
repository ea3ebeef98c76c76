"""`smalti test`: a project's own tests, then the evaluations that its smalti.yaml declares."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import typer

from evals.commands import BAD_INPUT, find_scorer, refusing

NO_TESTS = 5
"""pytest's exit status where it found no test (https://docs.pytest.org/en/stable/reference/exit-codes.html)."""


def project_test(
    context: typer.Context,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Record the evaluations in MLflow.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; pytest's lines go to standard error.")] = False,
) -> None:
    """Run the project here: its tests by pytest, then its `evaluations`. Exit status 0: all passed; 1: not; 2: nothing
    to run; 4: an evaluation could not be measured."""
    from evals.judges import judging

    work = context.obj
    with refusing(), judging():  # a judge may choose its model when it is made
        wanted = [_declared(work.settings, each) for each in work.settings.evaluations]
    tests = _pytest(as_json)
    if tests is None and not wanted:
        typer.echo("smalti: there are neither tests (test_*.py) nor evaluations (smalti.yaml) here", err=True)
        raise typer.Exit(BAD_INPUT)
    found, status = [], 0 if tests is None or tests["passed"] else 1
    if wanted:
        with work.connect() as client:
            for asked in wanted:
                told, ended = _evaluate(work, client, asked, record=record, as_json=as_json)
                found.append(told)
                status = max(status, ended)
    passed = status == 0
    if as_json:
        work.print_json({"passed": passed, "tests": tests, "evaluations": found})
    else:
        typer.secho("passed" if passed else "failed", fg="green" if passed else "red", bold=True)
    if not passed:
        raise typer.Exit(status)


def _declared(settings: Any, declared: Any) -> dict[str, Any]:
    """An evaluation whose data, scorers and bounds were read. Raises `DatasetError` and `GateError`."""
    from evals.data import load_dataset
    from evals.report import parse_gate

    scorers = [find_scorer(text) for text in declared.scorers]
    extra = [each.name for each in scorers]
    gates = [parse_gate(f"{name}={bound}", "min", extra) for name, bound in declared.min.items()]
    gates += [parse_gate(f"{name}={bound}", "max", extra) for name, bound in declared.max.items()]
    endpoint = declared.endpoint or settings.main_agent
    return {"endpoint": endpoint, "dataset": load_dataset(declared.data), "gates": gates, "scorers": scorers}


def _pytest(quiet: bool) -> dict[str, Any] | None:
    """What pytest found in this folder; None where it holds no tests."""
    with tempfile.TemporaryDirectory() as kept:
        report = Path(kept, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}"]
        done = subprocess.run(command, stdout=sys.stderr if quiet else None, check=False)
        counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
        if report.exists():
            for suite in ElementTree.parse(report).getroot().iter("testsuite"):
                counts = {key: counts[key] + int(suite.get(key, 0)) for key in counts}
    return None if done.returncode == NO_TESTS else {**counts, "passed": done.returncode == 0, "exit_status": done.returncode}


def _evaluate(work: Any, client: Any, asked: dict[str, Any], *, record: bool, as_json: bool) -> tuple[dict[str, Any], int]:
    """One evaluation asked anew, printed for people; as JSON, and its exit status."""
    from evals.judges import judging
    from evals.local import evaluate_here, options
    from evals.report import check, exit_code, render, to_json

    given = options(work, record=record, scorers=asked["scorers"], reuse=False, progress=not as_json)
    with refusing(), judging():
        evaluation = evaluate_here(work, client, asked["endpoint"], asked["dataset"], given)
    results = check(evaluation, asked["gates"])
    if not as_json:
        from rich.console import Console

        Console().print(render(evaluation, results, metrics=False))
    return to_json(evaluation, results), exit_code(evaluation, results)
