"""`smalti eval review`: queues of answers for people, on the state itself, beside a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.commands import BAD_INPUT, refusing

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Name = Annotated[str, typer.Argument(help="The queue.")]

_ALONE = "No item was judged by two people yet; it takes a queue whose items need two reviews (--reviews 2)."

review = typer.Typer(no_args_is_help=True, help="Queues of answers for people to judge; how far they agree; datasets of it.")


@contextmanager
def _queues(context: typer.Context) -> Iterator[Any]:
    from evals.review import Reviews
    from governance.call import CallError

    try:
        with refusing():
            yield Reviews(context.obj.engine)
    except CallError as error:
        typer.echo(f"smalti: {error.message}", err=True)
        raise typer.Exit(BAD_INPUT) from None


@review.command("create")
def create(
    context: typer.Context,
    name: Name,
    endpoint: Annotated[str, typer.Argument(help="Whose answers are reviewed.")],
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME:boolean, NAME:numeric, NAME:text or NAME:ONE|OTHER; may be given again. Default: correct:boolean"
        ),
    ] = None,
    reviewer: Annotated[list[str] | None, typer.Option(help="user:NAME or group:NAME; may be given again.")] = None,
    reviews: Annotated[
        int | None,
        typer.Option(min=1, max=20, help="Reviews that an item needs. Default: 2 where two or more may review, else 1."),
    ] = None,
    schema: Annotated[Path | None, typer.Option(help="JSON file of the whole queue, as the API takes it.")] = None,
    as_json: Json = False,
) -> None:
    """Make a queue."""
    from evals.review import Queue

    with _queues(context) as queues:
        given: dict[str, Any] = json.loads(schema.read_text("utf-8")) if schema else {}
        if reviews is not None:
            given["reviews_per_item"] = reviews
        if reviewer:
            given["reviewers"] = reviewer
        if label or not schema:
            given["labels"] = [_label(text) for text in label or ["correct:boolean"]]
        made = queues.create(Queue.parse({**given, "name": name, "endpoint": endpoint}), "local")
    _show(context, made, as_json, f"{name} is there: smalti eval review add {name}")


@review.command("add")
def add(
    context: typer.Context,
    name: Name,
    since: Annotated[str | None, typer.Option(help="Answers from this time on, ISO 8601.")] = None,
    match: Annotated[str | None, typer.Option(help="Only questions in which this regular expression is found.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the sample.")] = 0,
    run: Annotated[str | None, typer.Option(help="Answers of this evaluation in place of the journal's.")] = None,
    as_json: Json = False,
) -> None:
    """Fill a queue with the endpoint's answers in the journal, or with those of an evaluation."""
    from evals import collect
    from evals.review import readable

    work = context.obj
    with _queues(context) as queues:
        if run is not None:
            from evals.journal import find_journal, read_journal

            items = [_of_run(result) for result in read_journal(find_journal(work.home.path / "evals", run)).results]
            items = [item for item in items if item["answer"]]
        else:
            rows = work.journal.rows(since, endpoint=queues.queue(name).endpoint)
            found = collect.from_journal(rows, match=match, sample=sample, seed=seed)
            items = [{**row, "request_id": row["id"], "trace_id": f"tr-{row['id']}"} for row in found]
        short = readable(items)
        told = {"added": queues.add(name, short), "too_long": len(items) - len(short)}
    left = f"; {told['too_long']} left out, which are too long to be read" if told["too_long"] else ""
    _show(context, told, as_json, f"{told['added']} items added to {name}{left}")


def _of_run(result: Any) -> dict[str, Any]:
    from evals.cache import digest

    row, said = result.row, result.prediction
    asked = {"question": row.question} if row.inputs is None else {"inputs": dict(row.inputs)}
    identity = digest([row.id, said.text])[:32]
    return {
        **asked, "id": identity, "row_id": row.id, "answer": said.text or str(said.label or ""), "expected": row.expectations(),
        "passages": [dict(passage) for passage in said.passages],
    }  # fmt: skip


@review.command("list")
def listing(context: typer.Context, as_json: Json = False) -> None:
    """The queues."""
    with _queues(context) as queues:
        rows = queues.list()
    columns = {"name": "Queue", "endpoint": "Endpoint", "items": "Items", "done": "Done", "created": "Made"}
    context.obj.print_rows(rows, columns, as_json=as_json, empty="No queues yet: smalti eval review create NAME ENDPOINT")


@review.command("label")
def give(
    context: typer.Context,
    name: Name,
    reviewer: Annotated[str, typer.Option("--as", help="Who judges.")],
    item: Annotated[str | None, typer.Argument(help="The item; without it, one after the other is asked about.")] = None,
    values: Annotated[list[str] | None, typer.Argument(metavar="LABEL=VALUE…", help="What is said of it.")] = None,
    as_json: Json = False,
) -> None:
    """Judge an item, or all that are left, one after the other."""
    with _queues(context) as queues:
        schemas = {label.name: label for label in queues.queue(name).labels}
        if item is not None:
            queues.label(name, item, reviewer, dict(_value(schemas, text) for text in values or ()))
            _show(context, {"item": item}, as_json, f"{item} is judged")
            return
        while (found := queues.next(name, reviewer)) is not None:
            content = found["content"]
            typer.echo(f"\n{content.get('question') or content.get('inputs')}\n\n{content.get('answer', '')}\n")
            said = {}
            for label in schemas.values():
                asked = typer.prompt(f"{label.title or label.name} ({_hint(label)})", default="" if not label.required else None)
                if asked:
                    said |= dict([_value(schemas, f"{label.name}={asked}")])
            queues.label(name, found["id"], reviewer, said)
    typer.echo("Nothing is left to judge.")


@review.command("agreement")
def agreement(
    context: typer.Context,
    name: Name,
    run: Annotated[str | None, typer.Option(help="An evaluation whose scorers are held against what people said.")] = None,
    as_json: Json = False,
) -> None:
    """How far reviewers agree (Cohen's kappa); with --run, how far its scorers and judges agree with most of them."""
    with _queues(context) as queues:
        rows = [{**row, "between": " – ".join(row.pop("reviewers"))} for row in queues.agreement(name)]
        if run is not None:
            from evals.agreement import with_people
            from evals.journal import find_journal, read_journal

            evaluation = read_journal(find_journal(context.obj.home.path / "evals", run))
            rows += with_people(queues, name, evaluation)
    shown = rows if as_json else [{**row, **{k: _short(row[k]) for k in ("agreement", "kappa")}} for row in rows]
    columns = {"label": "Label", "between": "Between", "n": "Items", "agreement": "Same", "kappa": "Kappa"}
    context.obj.print_rows(shown, columns, as_json=as_json, empty=_ALONE)


@review.command("dataset")
def to_dataset(
    context: typer.Context,
    name: Name,
    out: Annotated[Path, typer.Option(help="The dataset to write: a JSONL file.")],
    append: Annotated[bool, typer.Option("--append", help="Add to a dataset that is there.")] = False,
    as_json: Json = False,
) -> None:
    """What most reviewers said, as a dataset; where they are tied, the label is left out."""
    from evals.collect import write

    with _queues(context) as queues:
        rows, disputed = queues.dataset(name)
        count = write(out, rows, append=append)
    told = {"rows": count, "disputed": disputed, "path": str(out)}
    _show(context, told, as_json, f"{count} rows written to {out}, {disputed} labels left out for want of a majority")


def _label(text: str) -> dict[str, Any]:
    from evals.collect import EXPECTED

    name, _, kind = text.partition(":")
    kinds = ("boolean", "numeric", "text", "text_list")
    given = {"type": kind or "boolean"} if (kind or "boolean") in kinds else {"type": "categorical", "options": kind.split("|")}
    return {"name": name, "type": "expectation" if name in EXPECTED else "feedback", "input": given}


def _value(schemas: Any, text: str) -> tuple[str, Any]:
    from governance.call import bad_request

    name, _, said = text.partition("=")
    if name not in schemas:
        raise bad_request(f"There is no label {name!r}; this queue has {', '.join(schemas)}.")
    kind, said = schemas[name].input.type, said.strip()
    if kind == "boolean":
        return name, {"y": True, "yes": True, "true": True, "1": True, "n": False, "no": False, "false": False, "0": False}.get(
            said.lower(), said
        )
    if kind == "numeric":
        try:
            return name, float(said)
        except ValueError:
            return name, said
    return name, [part.strip() for part in said.split(";") if part.strip()] if kind == "text_list" else said


def _hint(label: Any) -> str:
    kinds = {"boolean": "yes or no", "numeric": "a number", "text": "text", "text_list": "texts with ; between them"}
    return " | ".join(label.input.options) if label.input.options else kinds[label.input.type]


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _show(context: typer.Context, told: dict[str, Any], as_json: bool, line: str) -> None:
    if as_json:
        context.obj.print_json(told)
    else:
        print(line)
