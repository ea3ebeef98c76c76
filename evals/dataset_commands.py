"""`smalti dataset`: what an evaluation's questions are, told by a manifest beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evals.commands import refusing

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
File = Annotated[Path, typer.Argument(help="The dataset: a JSONL file.")]

dataset = typer.Typer(no_args_is_help=True, help="Datasets of evaluations and their manifests.")


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
    from evals.manifest import manifest_path, seal

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
