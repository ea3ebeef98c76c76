"""Commands over indexes. They go through the server that owns the state, so that one process writes the vector store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Name = Annotated[str, typer.Argument(help="Name of the index; `docs` is short for `main.default.docs`.")]

index = typer.Typer(no_args_is_help=True, help="Indexes: folders made searchable.")

SKIPPED = 3
"""Exit status when the index is good but files were skipped."""

_INDEXES = {"name": "Name", "path": "Folder", "documents": "Documents", "chunks": "Chunks"}
_INDEXES |= {"status": "Status", "skipped": "Skipped"}
_HITS = {"score": "Score", "source": "Source", "text": "Text"}


@index.command("add")
def add(
    context: typer.Context,
    name: Name,
    path: Annotated[Path, typer.Argument(help="Folder or file to index.")],
    as_json: Json = False,
) -> None:
    """Make a folder searchable as NAME, and bring it up to date."""
    _sync(context.obj, "/api/2.0/smalti/indexes", {"name": name, "path": str(path.expanduser().resolve())}, as_json)


@index.command("sync")
def sync(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Bring NAME up to date with its folder."""
    _sync(context.obj, "/api/2.0/smalti/indexes", {"name": name}, as_json)


@index.command("watch")
def watch(
    context: typer.Context,
    name: Name,
    seconds: Annotated[float | None, typer.Option("--seconds", min=0, help="Stop after this long; default: Ctrl-C.")] = None,
    as_json: Json = False,
) -> None:
    """Follow NAME's folder: what is saved there is searchable within a second."""
    from retrieval.watch import changes

    with context.obj.connect() as client:
        row = context.obj.check(client.get(f"/api/2.0/smalti/indexes/{name}"))
        if not as_json:
            print(f"Watching {row['path']} for {row['name']}; Ctrl-C ends it.", flush=True)
        try:
            for _ in changes(Path(row["path"]), seconds=seconds):
                response = client.post("/api/2.0/smalti/indexes", json={"name": row["name"]})
                told = [json.loads(line) for line in response.text.splitlines()] if response.is_success else []
                if not told:
                    context.obj.check(response)
                last = told[-1]
                if as_json:
                    context.obj.print_json(last)
                else:
                    print(summary(last["report"]) if "report" in last else last["error"], flush=True)
        except KeyboardInterrupt:
            return


@index.command("list")
def list_indexes(context: typer.Context, as_json: Json = False) -> None:
    """All indexes."""
    with context.obj.connect() as client:
        rows = context.obj.check(client.get("/api/2.0/smalti/indexes"))["indexes"]
    shown = rows if as_json else [{**row, "skipped": len(row["skipped"])} for row in rows]
    context.obj.print_rows(shown, _INDEXES, as_json=as_json, empty="No indexes yet: smalti index add NAME PATH")


@index.command("status")
def status(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """One index: counts, last sync, and what was skipped and why."""
    with context.obj.connect() as client:
        row = context.obj.check(client.get(f"/api/2.0/smalti/indexes/{name}"))
    if as_json:
        context.obj.print_json(row)
        return
    context.obj.print_rows([{**row, "skipped": len(row["skipped"])}], _INDEXES, as_json=False, empty="")
    for item in row["skipped"]:
        print(f"skipped {item['source']}: {item['reason']}")


@index.command("query")
def query(
    context: typer.Context,
    name: Name,
    question: str,
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="How many passages.")] = 5,
    mode: Annotated[str, typer.Option(help="HYBRID, ANN (vectors) or FULL_TEXT (words).")] = "HYBRID",
    as_json: Json = False,
) -> None:
    """The passages that fit QUESTION best."""
    body = {"query_text": question, "num_results": k, "query_type": mode, "columns": ["id", "source", "text", "start", "end"]}
    with context.obj.connect() as client:
        found = context.obj.check(client.post(f"/api/2.0/vector-search/indexes/{name}/query", json=body))
    names = [column["name"] for column in found["manifest"]["columns"]]
    rows = [dict(zip(names, row, strict=True)) for row in found["result"]["data_array"]]
    if not as_json:
        rows = [{**row, "score": f"{row['score']:.4f}", "text": " ".join(row["text"].split())[:160]} for row in rows]
    context.obj.print_rows(rows, _HITS, as_json=as_json, empty="Nothing found.")


@index.command("table")
def table(
    context: typer.Context,
    name: Name,
    place: Annotated[str, typer.Argument(help="A .jsonl, .json, .csv or .parquet file, or DATABASE_URL#TABLE.")],
    as_json: Json = False,
) -> None:
    """Declare a table as NAME, so that Delta Sync indexes can be made from it."""
    path = place if "://" in place else str(Path(place).expanduser().resolve())
    with context.obj.connect() as client:
        done = context.obj.check(client.post("/api/2.0/smalti/indexes/tables", json={"name": name, "path": path}))
    if as_json:
        context.obj.print_json(done)
    else:
        print(f"{done['name']}: {done['rows']:,} rows.")


@index.command("restrict")
def restrict(
    context: typer.Context,
    name: Name,
    column: Annotated[
        str | None, typer.Argument(help="The column that names groups; `folder` of an index over a folder.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Show every row to all who may query NAME.")] = False,
    as_json: Json = False,
) -> None:
    """Show a row of NAME to the groups that its COLUMN names, and to no one else but administrators."""
    path = f"/api/2.0/smalti/indexes/{name}/row-access"
    if off and column is not None:
        raise typer.BadParameter("give COLUMN or --off, not both")
    with context.obj.connect() as client:
        if off:
            response = client.delete(path)
        else:
            response = client.get(path) if column is None else client.put(path, json={"column": column})
        done = context.obj.check(response)
    if as_json:
        context.obj.print_json(done)
    elif done["column"] is None:
        print(f"{done['name']}: every row is shown to all who may query it.")
    else:
        print(f"{done['name']}: a row is shown to the groups in {done['column']!r}, and to administrators.")


@index.command("drop")
def drop(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Delete NAME and everything stored for it; the folder is left alone."""
    with context.obj.connect() as client:
        done = context.obj.check(client.delete(f"/api/2.0/smalti/indexes/{name}"))
    if as_json:
        context.obj.print_json(done)
    else:
        print(f"{done['name']} is gone.")


def _sync(work: Any, path: str, body: dict[str, Any], as_json: bool) -> None:
    report: dict[str, Any] = {}
    with work.connect() as client, progress_bar(as_json) as bar, client.stream("POST", path, json=body) as response:
        if not response.is_success:
            response.read()
            work.check(response)
        for line in response.iter_lines():
            told = json.loads(line)
            if "error" in told:
                raise typer.Exit(_fail(told["error"]))
            if "report" in told:
                report = told["report"]
            else:
                bar.show(told)
    if as_json:
        work.print_json(report)
    else:
        print(summary(report))
    if report.get("skipped"):
        raise typer.Exit(SKIPPED)


def _fail(message: str) -> int:
    typer.echo(message, err=True)
    return 1


def summary(report: dict[str, Any]) -> str:
    """A sync's report in words: what changed, and each skipped file with its reason."""
    line = (
        f"{report['index']}: {report['added']} added, {report['changed']} changed, {report['deleted']} deleted, "
        f"{report['unchanged']} unchanged; {report['chunks']} chunks, {report['embedded']} embedded in {report['seconds']:.1f} s"
    )
    return "\n".join([line, *(f"skipped {item['source']}: {item['reason']}" for item in report["skipped"])])


class ProgressBar:
    """A progress bar on standard error; silent for machines and where standard error is no terminal."""

    def __init__(self, silent: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TextColumn("files, {task.fields[chunks]} chunks"))
        quiet = silent or not console.is_terminal
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet)
        self._task = self._bar.add_task("", total=None, chunks=0, visible=False)
        self._bar.start()

    def show(self, told: dict[str, Any]) -> None:
        """Draw a sync's progress: `done` of `total` files, `chunks` so far."""
        self._bar.update(self._task, completed=told["done"], total=told["total"] or None, chunks=told["chunks"], visible=True)

    def stop(self) -> None:
        """Take the bar away; safe to call again."""
        self._bar.stop()


@contextmanager
def progress_bar(silent: bool = False) -> Iterator[ProgressBar]:
    """A progress bar for the length of a block."""
    bar = ProgressBar(silent)
    try:
        yield bar
    finally:
        bar.stop()
