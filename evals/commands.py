"""The `eval` commands: ask an endpoint every question of a dataset, hold the answers against gates, compare two evaluations."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

BAD_INPUT = 2
"""Exit status when the dataset or a gate cannot be read; 1 is a gate that failed, `evals.report.BROKEN` infrastructure."""


class _OrRun(TyperGroup):
    """`smalti eval ENDPOINT …` is `smalti eval run ENDPOINT …`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


evals = typer.Typer(
    name="eval",
    cls=_OrRun,
    no_args_is_help=True,
    help="Measure endpoints on datasets: `smalti eval ENDPOINT --data FILE`, then compare, gate and report.",
)


@contextmanager
def refusing() -> Iterator[None]:
    """What was given wrongly is said in one line and ends with `BAD_INPUT`; an evaluation that broke down with `BROKEN`."""
    from evals.errors import DatasetError
    from evals.journal import EvaluationError
    from evals.judges import JudgeError
    from evals.report import BROKEN, GateError

    try:
        yield
    except (DatasetError, GateError, JudgeError) as error:
        typer.echo(f"smalti: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except EvaluationError as error:
        typer.echo(f"smalti: {error}", err=True)
        raise typer.Exit(BAD_INPUT if error.journal is None else BROKEN) from None


@evals.command("run")
def evaluate(
    context: typer.Context,
    endpoint: Annotated[str, typer.Argument(help="The endpoint to evaluate, such as `assistant`; with --url, the model there.")],
    data: Annotated[Path, typer.Option(help="Dataset: a JSONL file.")],
    minimum: Annotated[
        list[str] | None, typer.Option("--min", metavar="METRIC=VALUE", help="Fail below; may be given again.")
    ] = None,
    maximum: Annotated[
        list[str] | None, typer.Option("--max", metavar="METRIC=VALUE", help="Fail above (latencies, costs, losses).")
    ] = None,
    scorer: Annotated[
        list[str] | None, typer.Option(metavar="MODULE:NAME", help="A further scorer, such as mlflow.genai.scorers:Safety.")
    ] = None,
    groundedness: Annotated[
        bool, typer.Option("--groundedness", help="Score how far the quoted passages support each answer, without an LLM.")
    ] = False,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Score whether summaries change what their passages say, without an LLM.")
    ] = False,
    answerability: Annotated[
        bool, typer.Option("--answerability", help="Score whether the passages hold an answer to the question, without an LLM.")
    ] = False,
    url: Annotated[str | None, typer.Option(help="Base URL of an endpoint elsewhere, such as http://host/v1.")] = None,
    protocol: Annotated[str, typer.Option(help="What it speaks: responses, chat or invocations.")] = "responses",
    key_env: Annotated[str, typer.Option(help="Environment variable with the key for --url.")] = "SMALTI_EVAL_KEY",
    revision: Annotated[
        str | None, typer.Option(help="What is at --url now (a commit, a date); rows answered under it are not asked again.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask every row, even one that was answered before.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Questions asked at once.")] = 4,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a question may take.")] = 120.0,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "smalti",
    record: Annotated[bool, typer.Option("--record/--no-record", help="Record the run in MLflow.")] = True,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show MLflow's own output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Ask ENDPOINT every question of a dataset, score the answers, and record the run in MLflow."""
    from evals.data import load_dataset
    from evals.judges import judging
    from evals.local import evaluate_at, evaluate_here, options
    from evals.report import GateError, check, exit_code, parse_gate, render, to_json

    work = context.obj
    with refusing(), judging():  # a judge may choose its model when it is made
        scorers = [find_scorer(text) for text in scorer or ()]
        if groundedness:
            from evals.groundedness import Groundedness

            scorers.append(Groundedness(work.encoder.embed))
        if faithfulness:
            from evals.faithfulness import Faithfulness

            scorers.append(Faithfulness(work.encoder.read))
        if answerability:
            from evals.answerability import Answerability

            scorers.append(Answerability(work.encoder.embed))
        extra = [each.name for each in scorers]
        gates = [parse_gate(text, "min", extra) for text in minimum or ()]
        gates += [parse_gate(text, "max", extra) for text in maximum or ()]
        if protocol not in ("responses", "chat", "invocations"):
            raise GateError(f"--protocol {protocol!r}: choose responses, chat or invocations")
        dataset = load_dataset(data)
    asking = {"concurrency": concurrency, "timeout": timeout, "experiment": experiment, "scorers": scorers}
    given = options(work, record=record, reuse=not fresh, progress=not as_json, verbose=verbose, **asking)
    with refusing(), judging():
        if url is not None:
            headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(key_env)) else {}
            known = {"url": url, "protocol": protocol, "revision": revision} if revision else None
            path = "" if protocol == "invocations" else None
            evaluation = evaluate_at(url, headers, endpoint, dataset, given, protocol=protocol, path=path, identity=known)
        else:
            with work.connect() as client:
                evaluation = evaluate_here(work, client, endpoint, dataset, given, protocol=protocol)
    results = check(evaluation, gates)
    if as_json:
        work.print_json(to_json(evaluation, results))
    else:
        from rich.console import Console

        Console().print(render(evaluation, results))
    if code := exit_code(evaluation, results):
        raise typer.Exit(code)


def find_scorer(text: str) -> Any:
    """A scorer by `module:name`: an object with a name and `run`, or a class that makes one without arguments."""
    from evals.report import GateError

    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
        scorer = found() if isinstance(found, type) else found
    except Exception as error:
        raise GateError(f"--scorer {text!r}: {type(error).__name__}: {str(error)[:300]}; write MODULE:NAME of a scorer") from None
    if not hasattr(scorer, "run") or not getattr(scorer, "name", None):
        raise GateError(f"--scorer {text!r}: is no scorer; decorate it with mlflow.genai.scorer")
    return scorer


@evals.command("compare")
def compare(
    context: typer.Context,
    before: Annotated[str, typer.Argument(help="An evaluation: its journal, its MLflow run id or `latest`.")],
    after: Annotated[str, typer.Argument(help="The evaluation to hold against it.")],
    score: Annotated[list[str] | None, typer.Option(help="A score to compare; may be given again. Default: all.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the differences as a drawing (SVG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Say what changed between two evaluations of one dataset, row by row, and whether chance explains it."""
    from dataclasses import asdict

    from evals.compare import compare_runs, draw, render
    from evals.journal import find_journal

    work = context.obj
    folder = work.home.path / "evals"
    with refusing():
        found = compare_runs(find_journal(folder, before), find_journal(folder, after), scores=score)
    if plot is not None:
        plot.write_text(draw(found), encoding="utf-8")
    if as_json:
        differences = [asdict(item) for item in found.differences if item.n]
        work.print_json(
            {"sentence": found.sentence(), "rows": found.rows, "left_out": found.left_out, "differences": differences}
        )
    else:
        from rich.console import Console

        Console().print(render(found))


@evals.command("gate")
def gate(
    context: typer.Context,
    candidate: Annotated[str, typer.Argument(help="An evaluation: its journal, its MLflow run id or `latest`.")] = "latest",
    baseline: Annotated[str | None, typer.Option(help="The evaluation that it may not fall behind.")] = None,
    criteria: Annotated[Path | None, typer.Option(help="YAML file with min, max, margins, ratios and why.")] = None,
    minimum: Annotated[list[str] | None, typer.Option("--min", metavar="METRIC=VALUE", help="At least.")] = None,
    maximum: Annotated[list[str] | None, typer.Option("--max", metavar="METRIC=VALUE", help="At most.")] = None,
    margin: Annotated[list[str] | None, typer.Option(metavar="SCORE=VALUE", help="May be lost against the baseline.")] = None,
    ratio: Annotated[
        list[str] | None, typer.Option(metavar="METRIC=VALUE", help="Times the baseline's latency, cost or tokens.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Decide whether an evaluation is good enough: exit status 0 it is, 1 it is not, 2 bad input, 3 its rows cannot tell, 4 rows
    or scores are missing."""
    from evals import gate as gates
    from evals.journal import find_journal, read_journal

    work = context.obj
    folder = work.home.path / "evals"
    with refusing():
        wanted = gates.load_criteria(criteria) if criteria else gates.Criteria()
        given = {"min": minimum, "max": maximum, "margins": margin, "ratios": ratio}
        merged = {key: {**getattr(wanted, key), **_numbers(key, texts)} for key, texts in given.items()}
        decision = gates.gate(
            read_journal(find_journal(folder, candidate)),
            read_journal(find_journal(folder, baseline)) if baseline else None,
            gates.Criteria(**merged, why=wanted.why),
        )
    gates.store(decision)
    if junit is not None:
        junit.write_text(gates.to_junit(decision), encoding="utf-8")
    if markdown is not None:
        markdown.write_text(gates.to_markdown(decision), encoding="utf-8")
    if as_json:
        work.print_json(decision.to_dict())
    else:
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(gates.to_markdown(decision)))
    if code := gates.EXIT[decision.outcome]:
        raise typer.Exit(code)


def _numbers(option: str, texts: list[str] | None) -> dict[str, float]:
    from evals.report import GateError

    found: dict[str, float] = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise GateError(f"{option} {text!r}: write NAME=VALUE, such as contains=0.05") from None
    return found


@evals.command("report")
def report(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="An evaluation: its journal, its MLflow run id or `latest`.")] = "latest",
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("evaluation.html"),
) -> None:
    """Write an evaluation as one HTML file that needs nothing else: failures first, each with all that is known of it."""
    from evals.html import page
    from evals.journal import find_journal, read_journal
    from evals.local import mlflow_pages

    work = context.obj
    with refusing():
        evaluation = read_journal(find_journal(work.home.path / "evals", run))
    place = f"{mlflow_pages(work)}/#/experiments/{evaluation.experiment_id or 0}"
    out.write_text(page(evaluation, f"{place}/traces?selectedEvaluationId={{trace_id}}"), encoding="utf-8")
    typer.echo(f"{evaluation.rows} rows of {evaluation.endpoint} in {out}")
