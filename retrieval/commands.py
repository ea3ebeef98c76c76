"""Commands over indexes. They go through the server that owns the state, so that one process writes the vector store."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from retrieval.progress import progress_bar
from retrieval.rows import commands as over_rows
from retrieval.rows.commands import BUILT_IN, SEARCH

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Name = Annotated[str, typer.Argument(help="Name of the index; `docs` is short for `main.default.docs`.")]

index = typer.Typer(no_args_is_help=True, help="Indexes: folders made searchable.")

SKIPPED = 3
"""Exit status when the index is good but files were skipped."""

ENCODER = "all-minilm-l6-v2"

PAGE = 1000
"""Rows that `export` asks for at once."""
SHOWN = 160
"""Characters of a text that a line shows."""

_INDEXES = {"name": "Name", "path": "Source", "documents": "Documents", "chunks": "Chunks"}
_INDEXES |= {"status": "Status", "skipped": "Skipped"}
_RANKS = {"dense": "ANN", "lexical": "FULL_TEXT"}
RANKED = 100
"""How deep a passage's place among the nearest vectors and the best words is looked for."""


@index.command("add")
def add(
    context: typer.Context,
    name: Name,
    path: Annotated[
        str, typer.Argument(help="Folder or file to index; with --key a table, see `smalti index table`, or an index.")
    ],
    key: Annotated[str | None, typer.Option(help="Column of a table's primary key: a row is then what is found.")] = None,
    text: Annotated[str, typer.Option(help="Column of a table that is searched.")] = "text",
    columns: Annotated[str | None, typer.Option(help="Columns of a table to keep, as price,lang; default: all.")] = None,
    continuous: Annotated[bool, typer.Option("--continuous", help="Follow the table.")] = False,
    encoder: Annotated[str, typer.Option(help="Embeddings endpoint of a table's text.")] = ENCODER,
    strategy: Annotated[
        str | None, typer.Option(help="How a folder's documents are cut: structure (default) or sentences.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Word pieces of a passage, at most: 8 to 200, the default.")] = None,
    overlap: Annotated[int | None, typer.Option(help="Word pieces that a passage repeats of the one before; default: 0.")] = None,
    as_json: Json = False,
) -> None:
    """Make a folder, or a table's rows, searchable as NAME, and bring it up to date."""
    plan = {
        what: given for what, given in (("strategy", strategy), ("tokens", tokens), ("overlap", overlap)) if given is not None
    }
    if key is None and encoder != ENCODER:
        raise typer.BadParameter("--encoder is for tables, with --key: a folder's passages are embedded by the built-in encoder")
    if key is not None:
        if plan:
            raise typer.BadParameter("--strategy, --tokens and --overlap are for folders: a table's rows are not cut")
        more = {"columns": columns, "continuous": continuous, "encoder": encoder}
        _told(context.obj, over_rows.add(context.obj, name, path, key=key, text=text, **more), as_json)
        return
    path = str(Path(path).expanduser().resolve())
    with context.obj.connect() as client:
        _sync(context.obj, client, {"name": name, "path": path} | ({"chunking": plan} if plan else {}), as_json)


@index.command("sync")
def sync(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Bring NAME up to date with its folder or table."""
    with context.obj.connect() as client:
        found = client.get(f"{SEARCH}/indexes/{name}")
        if found.is_success and found.json()["endpoint_name"] != BUILT_IN:
            _told(context.obj, over_rows.sync(context.obj, client, name), as_json)
        else:
            _sync(context.obj, client, {"name": name}, as_json)


def _told(work: Any, found: dict[str, Any], as_json: bool) -> None:
    over_rows.show(work, found, as_json)
    if found["status"].get("skipped"):
        raise typer.Exit(SKIPPED)


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
        response = client.get(f"/api/2.0/smalti/indexes/{name}")
        if response.status_code == 404 and client.get(f"{SEARCH}/indexes/{name}").is_success:
            raise typer.Exit(
                over_rows.fail(f"{name} is no index over a folder: a table is followed with `smalti index add --continuous`")
            )
        row = context.obj.check(response)
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
        rows = context.obj.check(client.get("/api/2.0/smalti/indexes"))["indexes"] + over_rows.listed(context.obj, client)
    shown = rows if as_json else [{**row, "skipped": len(row["skipped"])} for row in rows]
    context.obj.print_rows(shown, _INDEXES, as_json=as_json, empty="No indexes yet: smalti index add NAME PATH")


@index.command("status")
def status(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """One index: counts, last sync, and what was skipped and why."""
    with context.obj.connect() as client:
        response = client.get(f"/api/2.0/smalti/indexes/{name}")
        if response.status_code == 404:
            rows = context.obj.check(client.get(f"{SEARCH}/indexes/{name}"))
            over_rows.show(context.obj, rows, as_json)
            return
        row = context.obj.check(response)
    if as_json:
        context.obj.print_json(row)
        return
    context.obj.print_rows([{**row, "skipped": len(row["skipped"])}], _INDEXES, as_json=False, empty="")
    if row["error"]:
        print(f"its last sync failed: {row['error']}")
    if row["warning"]:
        print(row["warning"])
    plan = row["chunking"]
    print(f"cut by {plan['strategy']}, passages of up to {plan['tokens']} word pieces, overlapping by {plan['overlap']}")
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
    """The passages that fit QUESTION best, with their places by vectors and by words, and its words marked."""
    body: dict[str, Any] = {"query_text": question, "num_results": k, "query_type": mode}
    path = f"{SEARCH}/indexes/{name}"
    with context.obj.connect() as client:
        over = context.obj.check(client.get(path))
        key, folder = over["primary_key"], over["endpoint_name"] == BUILT_IN
        if folder:
            body["columns"] = ["id", "source", "text", "start", "end"]
        rows = _found(context.obj, client, path, body | {"debug_level": 1})
        for rank, kind in _RANKS.items() if mode.upper() == "HYBRID" and rows else ():
            asked = body | {"columns": [key], "num_results": RANKED, "query_type": kind}
            places = {row[key]: place for place, row in enumerate(_found(context.obj, client, path, asked), 1)}
            for row in rows:
                row[rank] = places.get(row.get(key))
    ranks = {rank: rank.capitalize() for rank in _RANKS if rows and rank in rows[0]}
    columns = ["source", "text"] if folder else over_rows.telling(over, rows[0]) if rows else []
    columns = [column for column in columns if column not in ranks]
    shown = {"score": "Score"} | ranks | {column: column.capitalize() if folder else column for column in columns}
    if not as_json:
        rows = [{what: _short(value, question) for what, value in row.items()} for row in rows]
    context.obj.print_rows(rows, shown, as_json=as_json, empty="Nothing found.")


def _found(work: Any, client: Any, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    found = work.check(client.post(f"{path}/query", json=body))
    for warning in found.get("debug_info", {}).get("warnings", ()):
        typer.echo(warning, err=True)
    names = [column["name"] for column in found["manifest"]["columns"]]
    return [dict(zip(names, row, strict=True)) for row in found["result"]["data_array"]]


@index.command("export")
def export(
    context: typer.Context,
    name: Name,
    file: Annotated[Path | None, typer.Argument(help="Where to write; default: standard output.")] = None,
) -> None:
    """Write all rows of NAME as JSON lines, in pages: passages with their place in the document, or rows without vectors."""
    with context.obj.connect() as client, nullcontext(sys.stdout) if file is None else file.open("w", encoding="utf-8") as out:
        count, last = 0, None
        while True:
            body = {"num_results": PAGE} | ({"last_primary_key": last} if last is not None else {})
            found = context.obj.check(client.post(f"{SEARCH}/indexes/{name}/scan", json=body))
            for entry in found["data"]:
                row = {field["key"]: _plain(field["value"]) for field in entry["fields"]}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count, last = count + len(found["data"]), found["last_primary_key"]
            if len(found["data"]) < PAGE:
                break
    typer.echo(f"{name}: {count:,} rows exported.", err=True)


@index.command("table")
def table(
    context: typer.Context,
    name: Name,
    place: Annotated[str, typer.Argument(help="JSONL, JSON, CSV or Parquet files, a Delta table, or DATABASE_URL#TABLE.")],
    as_json: Json = False,
) -> None:
    """Declare a table as NAME, so that Delta Sync indexes can be made from it."""
    with context.obj.connect() as client:
        done = over_rows.declare(context.obj, client, name, place)
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
        response = client.delete(f"/api/2.0/smalti/indexes/{name}")
        if response.status_code == 404:
            context.obj.check(client.delete(f"{SEARCH}/indexes/{name}"))
            done = {"name": name}
        else:
            done = context.obj.check(response)
    if as_json:
        context.obj.print_json(done)
    else:
        print(f"{done['name']} is gone.")


def _short(value: Any, question: str) -> Any:
    """A value in one line; of a text the part that holds most of the question's words, these marked."""
    if not isinstance(value, str):
        return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
    from rich.text import Text

    from retrieval.words import STOPWORDS, WORD

    text = " ".join(value.split())
    wanted = {word.lower()[: max(4, len(word) - 2)] for word in WORD.findall(question) if word.lower() not in STOPWORDS}
    places = [match for match in WORD.finditer(text) if any(match[0].lower().startswith(stem) for stem in wanted)]
    inside = {at: sum(at <= other.start() < at + SHOWN for other in places) for at in (max(0, m.start() - 30) for m in places)}
    start = max(inside, key=lambda at: inside[at]) if len(text) > SHOWN and inside else 0
    start = text.rfind(" ", 0, start) + 1
    line = Text(("… " if start else "") + text[start : start + SHOWN])
    for match in places:
        at = match.start() - start + 2 * bool(start)
        if match.start() >= start:
            line.stylize("bold", at, at + len(match[0]))
    return line


def _plain(value: dict[str, Any]) -> Any:
    """A value as protobuf's JSON writes one of any type, see `retrieval.api.shapes.value`."""
    ((kind, given),) = value.items()
    return [_plain(each) for each in given["values"]] if kind == "list_value" else None if kind == "null_value" else given


@contextmanager
def _interrupted(work: Any, name: str) -> Iterator[None]:
    """Says what becomes of a sync that nobody waits for any more."""
    try:
        yield
    except KeyboardInterrupt:
        goes_on = work.home.server() is not None
        what = "The server goes on with it" if goes_on else f"What was done is kept: smalti index sync {name} goes on with it"
        typer.echo(f"{what}; smalti index status {name} tells how it stands.", err=True)
        raise


def _sync(work: Any, client: Any, body: dict[str, Any], as_json: bool) -> None:
    report: dict[str, Any] = {}
    with (
        _interrupted(work, body["name"]),
        progress_bar(as_json) as bar,
        client.stream("POST", "/api/2.0/smalti/indexes", json=body) as response,
    ):
        if not response.is_success:
            response.read()
            work.check(response)
        for line in response.iter_lines():
            told = json.loads(line)
            if "error" in told:
                raise typer.Exit(over_rows.fail(told["error"]))
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


def summary(report: dict[str, Any]) -> str:
    """A sync's report in words: what changed, and each skipped file with its reason."""
    line = (
        f"{report['index']}: {report['added']} added, {report['changed']} changed, {report['deleted']} deleted, "
        f"{report['unchanged']} unchanged; {report['chunks']} chunks, {report['embedded']} embedded in {report['seconds']:.1f} s"
    )
    return "\n".join([line, *(f"skipped {item['source']}: {item['reason']}" for item in report["skipped"])])
