"""`smalti eval dataset`, also `smalti dataset`: datasets made of the journal, of traces and of an index; their manifests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.commands import refusing

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
File = Annotated[Path, typer.Argument(help="The dataset: a JSONL file.")]

Out = Annotated[Path, typer.Option(help="The dataset to write: a JSONL file.")]
Append = Annotated[bool, typer.Option("--append", help="Add to a dataset that is there; questions it has are left out.")]
Raw = Annotated[bool, typer.Option("--no-redact", help="Keep personal data (addresses, numbers, keys) as it is.")]
Endpoint = Annotated[str | None, typer.Option(help="Only of this endpoint.")]

dataset = typer.Typer(no_args_is_help=True, help="Datasets of evaluations, what they are made from, and their manifests.")


@dataset.command("seal")
def seal_dataset(
    context: typer.Context,
    file: File,
    version: Annotated[str, typer.Option(help="What this content is called from now on.")],
    licence: Annotated[str, typer.Option(help="Under which it may be used.")] = "",
    source: Annotated[list[str] | None, typer.Option("--from", help="What it was made from; may be given again.")] = None,
    description: Annotated[str, typer.Option(help="One line for people.")] = "",
    as_json: Json = False,
) -> None:
    """Write the manifest (hash, version, lineage, licence); an edit afterwards is refused by every evaluation."""
    from evals.manifest import manifest_path
    from evals.seal import seal

    with refusing():
        made = seal(file, version=version, licence=licence, lineage=source or (), description=description)
    if as_json:
        context.obj.print_json(made)
    else:
        print(f"{file}: version {version}, {made['rows']} rows, sha256 {made['sha256'][:12]}…, in {manifest_path(file).name}")


@dataset.command("check")
def check_dataset(context: typer.Context, file: File, as_json: Json = False) -> None:
    """Whether a dataset can be used and is what was sealed."""
    from evals.data import load_dataset
    from evals.manifest import read

    with refusing():
        loaded, held = load_dataset(file), read(file)
    if as_json:
        context.obj.print_json({"rows": len(loaded), "sha256": loaded.sha256, "manifest": held})
    else:
        told = f"version {held['version']}, as it was sealed" if held else "not sealed: smalti dataset seal"
        print(f"{file}: {len(loaded)} rows, {told}")


@dataset.command("journal")
def from_journal(
    context: typer.Context,
    out: Out,
    endpoint: Endpoint = None,
    since: Annotated[str | None, typer.Option(help="Only calls from this time on, ISO 8601.")] = None,
    until: Annotated[str | None, typer.Option(help="Only calls before this time, ISO 8601.")] = None,
    caller: Annotated[str | None, typer.Option(help="Only calls of this user or service principal.")] = None,
    match: Annotated[str | None, typer.Option(help="Only questions in which this regular expression is found.")] = None,
    status: Annotated[list[int] | None, typer.Option(help="Only calls with this status; default 200.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="At most so many; the same for the same calls and --seed.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the sample.")] = 0,
    no_redact: Raw = False,
    append: Append = False,
    as_json: Json = False,
) -> None:
    """What was asked of the endpoints here, without personal data; the answers stand beside, for people to judge."""
    from evals import collect

    work = context.obj
    rows = collect.from_journal(
        work.journal.rows(since, endpoint=endpoint), statuses=status or (200,), until=until, caller=caller, match=match,
        sample=sample, seed=seed, redact=None if no_redact else work.redact,
    )  # fmt: skip
    _write(work, out, rows, append, as_json)


@dataset.command("traces")
def from_traces(
    context: typer.Context,
    out: Out,
    endpoint: Endpoint = None,
    no_redact: Raw = False,
    append: Append = False,
    as_json: Json = False,
) -> None:
    """The MLflow traces that people gave feedback or expectations on; expectations become the row's."""
    import mlflow

    from evals import collect

    work = context.obj
    mlflow.set_tracking_uri(f"sqlite:///{work.home.path / 'mlflow.db'}")
    experiments = mlflow.search_experiments(filter_string=f"name = '{_quoted(endpoint)}'" if endpoint else None)
    places = [each.experiment_id for each in experiments]
    traces = mlflow.search_traces(locations=places, return_type="list") if places else []
    rows = collect.from_traces(traces, redact=None if no_redact else work.redact)
    _write(work, out, rows, append, as_json)


@dataset.command("generate")
def generate_dataset(
    context: typer.Context,
    index: Annotated[str, typer.Argument(help="The index whose passages are asked about.")],
    out: Out,
    count: Annotated[int, typer.Option("--count", min=1, max=10_000, help="Rows, at most.")] = 100,
    unanswerable: Annotated[float, typer.Option(min=0, max=1, help="Share of rows that have no answer.")] = 0.2,
    model: Annotated[str | None, typer.Option(help="Chat endpoint that writes the questions; default: templates do.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the passages.")] = 0,
    append: Append = False,
    as_json: Json = False,
) -> None:
    """Questions about an index's passages, each with its source; also some that it cannot answer."""
    import asyncio

    from evals.generate import generate

    work = context.obj
    with work.connect() as client:
        passages = list(_passages(work, client, index))

        async def ask(prompt: str) -> str:
            answer = await asyncio.to_thread(client.post, "/v1/responses", json={"model": model, "input": prompt, "store": False})
            parts = [part for item in work.check(answer)["output"] if item["type"] == "message" for part in item["content"]]
            return "".join(part.get("text", "") for part in parts)

        asked, failures = ask if model else None, []
        made = generate(passages, count, share=unanswerable, seed=seed, ask=asked, embed=work.encoder.embed, failures=failures)
        rows = asyncio.run(made)
    _write(work, out, rows, append, as_json)
    if failures:
        typer.echo(f"smalti: {model} failed on {len(failures)} passages, such as: {failures[0]}", err=True)
    if len(rows) < count:
        typer.echo(f"smalti: {count} rows were asked for, and {len(passages)} passages gave {len(rows)}", err=True)


@dataset.command("mirror")
def mirror_dataset(
    context: typer.Context,
    file: File,
    name: Annotated[str | None, typer.Option(help="In MLflow; default: the file's name and its version or hash.")] = None,
    experiment: Annotated[str, typer.Option(help="MLflow experiment that it belongs to.")] = "smalti",
    as_json: Json = False,
) -> None:
    """Put a dataset among MLflow's, tagged with its hash; every row is looked for there afterwards."""
    from evals.mirror import mirror

    home = context.obj.home.path
    uri = f"sqlite:///{home / 'mlflow.db'}?timeout=60"
    with refusing():
        made = mirror(file, uri, experiment=experiment, name=name, artifact_root=home / "mlartifacts")
    if as_json:
        context.obj.print_json(made)
    else:
        print(f"{made['name']}: {made['rows']} rows in MLflow, {made['dataset_id']}")


def _write(work: Any, out: Path, rows: Sequence[Mapping[str, Any]], append: bool, as_json: bool) -> None:
    from evals.collect import write

    with refusing():
        count = write(out, rows, append=append)
    if as_json:
        work.print_json({"rows": count, "path": str(out)})
    else:
        print(f"{count} rows written to {out}")


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _passages(work: Any, client: Any, index: str) -> Iterator[dict[str, Any]]:
    """All passages of an index, page by page."""
    after = None
    while True:
        body = {"num_results": 1000, **({"last_primary_key": after} if after else {})}
        page = work.check(client.post(f"/api/2.0/vector-search/indexes/{index}/scan", json=body))
        for entry in page["data"]:
            row = {field["key"]: _value(field["value"]) for field in entry["fields"]}
            if row.get("text"):
                yield {"source": row.get("source") or index, **row}
        after = page.get("last_primary_key")
        if not page["data"] or after is None:
            return


def _value(value: Mapping[str, Any]) -> Any:
    """A value of the vector search API's protobuf shape (https://protobuf.dev/reference/protobuf/google.protobuf/#value)."""
    if (items := value.get("list_value")) is not None:
        return [_value(item) for item in items.get("values", ())]
    return next(iter(value.values()), None)
