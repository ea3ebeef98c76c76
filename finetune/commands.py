"""The `finetune` command: runs recipes with progress, and looks after the runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from finetune.runs import Runs, TrainingRun

finetune = typer.Typer(no_args_is_help=True, help="Train models from labelled data, by recipe.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as finetune/recipes/router.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to set.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.")]
_COLUMNS = {
    "id": "Run",
    "task": "Task",
    "status": "Status",
    "step": "Step",
    "created": "Created, UTC",
}


def _database(context: typer.Context) -> str:
    return str(context.obj.tracking_uri)


def _runs(context: typer.Context) -> Runs:
    from finetune.runs import Runs

    return Runs(context.obj.home.path / "finetune")


@finetune.command("run")
def run(
    context: typer.Context,
    recipe: RecipeFile,
    overrides: Overrides = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the run's id and do not wait for it.")] = False,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow elsewhere; default: this state folder's, or `mlflow_url`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train what RECIPE says, record it in MLflow and register the model."""
    from finetune.recipe import find, load_recipe
    from finetune.schema import STARTED

    work = context.obj
    loaded = load_recipe(find(recipe), overrides or ())
    uri = tracking_uri or _database(context)
    if isinstance(loaded, STARTED):
        from finetune.launch import check

        check(loaded)  # told now, not by a process that ends
        new = _runs(context).create(loaded, tracking_uri=uri, created_by="command line")
        new.start()
        _begun(context, new, detach, as_json)
        return
    from finetune.train import run as train

    encoder = work.encoder
    done = train(loaded, encoder.embed, tracking_uri=uri, encoder=encoder.fingerprint)
    if as_json:
        work.print_json(done.as_dict())
    else:
        print(done.summary())


@finetune.command("sweep")
def sweep(
    context: typer.Context,
    recipe: RecipeFile,
    overrides: Overrides = None,
    space: Annotated[list[str] | None, typer.Option(help="KEY=VALUES: [16, 32] or {low: 1e-5, high: 1e-3, log: true}.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all; those that there are already count.")] = None,
    as_json: Json = False,
) -> None:
    """Search over keys of RECIPE and register the best; the same command goes on with a search that was ended."""
    from finetune.launch import check
    from finetune.recipe import RecipeError, find, load_recipe
    from finetune.schema import TrainedRecipe
    from finetune.sweep import sweep as search
    from finetune.sweep import with_space

    loaded = load_recipe(find(recipe), overrides or ())
    if not isinstance(loaded, TrainedRecipe):
        raise RecipeError(
            f"task {loaded.task}, method {loaded.method}: it is not trained step by step; there is nothing to sweep."
        )
    wanted = with_space(loaded, space or (), trials)
    check(wanted)
    told = (lambda line: None) if as_json else (lambda line: print(line, flush=True))
    done = search(wanted, _runs(context), _database(context), told)
    if as_json:
        context.obj.print_json(done.as_dict())
        return
    print("best: " + "  ".join(f"{key}={value}" for key, value in done.best.items()) + f", score {done.score:.4f}")
    print(_summary(done.run.state()["result"]) + f"\nrun {done.run.id}, MLflow run {done.parent_run_id}")


@finetune.command("pairs")
def pairs(
    context: typer.Context,
    index: Annotated[str, typer.Argument(help="An index over a folder; `docs` is short for `main.default.docs`.")],
    train: Annotated[Path, typer.Argument(help="File that gets the pairs to train on.")],
    held_out: Annotated[Path | None, typer.Option("--eval", help="File that gets pairs to judge on.")] = None,
    share: Annotated[float, typer.Option(min=0.0, max=0.9, help="Of the questions, those that are judged on.")] = 0.2,
    headings: Annotated[bool, typer.Option(help="Take headings for questions as well.")] = True,
) -> None:
    """Write INDEX's own pairs of question and passage, for recipes of `embed` and `rerank`: what was asked, and its headings."""
    import json

    from finetune.index_pairs import asked, every_row, pairs_of, scanned, split

    work, name = context.obj, index if "." in index else f"main.default.{index}"
    with work.connect() as client:

        def page(last: str | None) -> Any:
            body = {"num_results": 1000} | ({"last_primary_key": last} if last else {})
            return work.check(client.post(f"/api/2.0/vector-search/indexes/{name}/scan", json=body))

        passages = list(scanned(every_row(page)))
    rows = pairs_of(passages, asked(work.journal.rows(newest=True), name, work.disliked()), headings=headings)
    learnt, judged = split(rows, share if held_out else 0)
    for file, part in ((train, learnt), (held_out, judged)):
        if file is not None:
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part), encoding="utf-8")
    print(f"{len(learnt)} pairs to train on, {len(judged)} to judge on, from {len(passages)} passages")


@finetune.command("export")
def export(context: typer.Context, recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Print the job file by which `databricks air run` trains RECIPE, whose launcher is `databricks`."""
    import yaml

    from finetune.launch import job
    from finetune.recipe import RecipeError, find, load_recipe
    from finetune.schema import TrainedRecipe

    loaded = load_recipe(find(recipe), overrides or ())
    if not isinstance(loaded, TrainedRecipe):
        raise RecipeError(f"task {loaded.task}, method {loaded.method}: it takes seconds here; there is nothing to export.")
    print(yaml.safe_dump(job(loaded, find(recipe), overrides or ()), sort_keys=False, width=1000), end="")


@finetune.command("validate")
def validate(context: typer.Context, recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Say what is wrong with RECIPE's data, by file, line, column and fix. Ends with 1 if it cannot be run."""
    from finetune.recipe import find, load_recipe
    from finetune.validate import validate as look

    report = look(load_recipe(find(recipe), overrides or ()), context.obj.find_pii)
    context.obj.print_json(report.as_dict()) if as_json else print(report.summary())
    if report.errors:
        raise typer.Exit(1)


@finetune.command("plan")
def plan(
    context: typer.Context,
    recipe: RecipeFile,
    overrides: Overrides = None,
    price: Annotated[float, typer.Option(help="What an hour of this machine costs.")] = 0.0,
    memory: Annotated[float | None, typer.Option(help="GB there are; default: what is free here.")] = None,
    as_json: Json = False,
) -> None:
    """Say what RECIPE will take: memory, tokens, time and cost, and what would make it fit."""
    from finetune.plan import plan as estimate
    from finetune.recipe import find, load_recipe

    made = estimate(load_recipe(find(recipe), overrides or ()), price_per_hour=price, memory=memory)
    context.obj.print_json(made.as_dict()) if as_json else print(made.summary())


@finetune.command("list")
def list_runs(context: typer.Context, as_json: Json = False) -> None:
    """List the runs, the newest first."""
    rows = [each.summary() for each in _runs(context).list()]
    if not as_json:  # to the minute, so that a row is a line
        steps = [f"{row['step'] or 0}/{row['steps']}" if row["steps"] else "" for row in rows]
        created = [str(row["created"])[:16].replace("T", " ") for row in rows]
        said = [f"{line[0]} …" if len(line := row["message"].splitlines()) > 1 else row["message"] for row in rows]
        told = zip(rows, steps, created, said, strict=True)
        rows = [row | {"step": step, "created": at, "message": message} for row, step, at, message in told]
    context.obj.print_rows(rows, _COLUMNS, as_json=as_json, empty="No runs yet.", below="message")


@finetune.command("show")
def show(context: typer.Context, run: RunId, as_json: Json = False) -> None:
    """Show a run: its state, its recipe and its result."""
    _show(context, _runs(context).get(run), as_json)


@finetune.command("events")
def events(
    context: typer.Context,
    run: RunId,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more until the run ends.")] = False,
    as_json: Json = False,
) -> None:
    """Print what a run told."""
    from finetune.runs import describe

    for event in _runs(context).get(run).events(follow=follow):
        context.obj.print_json(event) if as_json else print(describe(event), flush=True)


@finetune.command("cancel")
def cancel(context: typer.Context, run: RunId) -> None:
    """Ask a run to end after the step it is in; it can be resumed."""
    found = _runs(context).get(run)
    found.cancel()
    print(f"Run {found.id} ends after its step.")


@finetune.command("resume")
def resume(
    context: typer.Context,
    run: RunId,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for it.")] = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that failed, was canceled or was killed, from its newest whole checkpoint."""
    found = _runs(context).get(run)
    found.start()
    _begun(context, found, detach, as_json)


@finetune.command("register")
def register(
    context: typer.Context,
    run: RunId,
    name: Annotated[str, typer.Argument(help="catalog.schema.model.")],
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for it.")] = False,
    as_json: Json = False,
) -> None:
    """Register the model of a run that completed without register_to."""
    found = _runs(context).get(run)
    found.register(name)
    _begun(context, found, detach, as_json)


@finetune.command("load")
def load(
    context: typer.Context,
    run: RunId,
    to: Annotated[str, typer.Option(help="A running server: vLLM, or with --endpoint Smalti.")] = "http://127.0.0.1:8000",
    endpoint: Annotated[str | None, typer.Option(help="The local model of Smalti's settings that takes the adapter.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the adapter; default: the run's.")] = None,
) -> None:
    """Load RUN's adapter into a server while it serves. The key is that of SMALTI_KEY, for vLLM of VLLM_API_KEY."""
    from finetune.hot_load import hot_load

    found = _runs(context).get(run)
    key = os.environ.get("SMALTI_KEY" if endpoint else "VLLM_API_KEY")
    print(hot_load(found.folder / "model", name or found.name, to, endpoint=endpoint, key=key))


def _show(context: typer.Context, run: TrainingRun, as_json: bool) -> None:
    row = run.summary()
    if as_json:
        context.obj.print_json({**row, "recipe": run.spec["recipe"]})
        return
    result = row.pop("result")
    print("\n".join(f"{key:14} {value}" for key, value in row.items() if value not in (None, "")))
    if result:
        print(_summary(result))


def _begun(context: typer.Context, run: TrainingRun, detach: bool, as_json: bool) -> None:
    if detach:
        _show(context, run, as_json)
    else:
        _follow(context, run, as_json)


def _follow(context: typer.Context, run: TrainingRun, as_json: bool) -> None:
    """Shows progress until the run ends; Ctrl-C leaves it running."""
    from finetune.runs import RunError, describe

    last: dict[str, Any] = {}
    try:
        with _bar(quiet=as_json) as told:
            for event in run.events(follow=True, attempt=True):
                last = event
                told(event)
    except KeyboardInterrupt:
        print(f"\nThe run goes on: smalti finetune events --follow {run.id}, or cancel {run.id}.")
        return
    if last["event"] != "completed":
        raise RunError(f"Run {run.id}: {describe({k: v for k, v in last.items() if k != 'message'})}: {last.get('message', '')}")
    result = run.state().get("result") or {}
    if as_json:
        context.obj.print_json({"id": run.id, **result})
    else:
        print(_summary(result) + f"\nrun {run.id}, MLflow run {result['mlflow_run_id']}")


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A progress bar on a terminal, lines elsewhere, on standard error; nothing where a machine reads."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from finetune.runs import describe

    console = Console(stderr=True, quiet=quiet, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("starting", total=None)

        def told(event: dict[str, Any]) -> None:
            line = describe(event)
            if event["event"] == "progress":
                progress.update(bar, total=event["steps"], completed=event["step"], description=line)
            elif event["event"] in ("baseline", "registering", "validated", "started"):
                progress.update(bar, description=event["event"])
            if event["event"] != "progress" or not console.is_terminal:
                console.print(line, markup=False, soft_wrap=True)

        yield told


def _summary(result: dict[str, Any]) -> str:
    """A few lines for people."""
    metrics, baseline = result.get("metrics") or {}, result.get("baseline") or {}
    seen = f"{result['tokens']:,} tokens" if "tokens" in result else f"the best is {result['estimator']}"
    lines = [f"{result['steps']} steps, {seen}, {result['training_seconds']:.0f} s of training"]
    if metrics:
        width = max(map(len, metrics))
        lines.append(f"{'':{width}}   this model" + (f"{result.get('baseline_name', 'baseline'):>18}" if baseline else ""))
        for name, value in metrics.items():
            lines.append(f"{name:{width}} {value:12.3f}" + (f" {baseline[name]:17.3f}" if name in baseline else ""))
    if done := result.get("registered"):
        alias = "alias champion" if done["champion"] else "not promoted"
        lines.append(f"registered as {done['name']} version {done['version']}, {alias}: {done['reason']}")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in result.get("warnings") or ())])
