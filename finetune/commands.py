"""The `finetune` command: runs a recipe, with progress, and prints what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

finetune = typer.Typer(no_args_is_help=True, help="Train models from labelled data, by recipe.")


@finetune.callback()
def _group() -> None:
    """Keeps `run` a command of its own while it is the only one."""


@finetune.command("run")
def run(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as finetune/recipes/router.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to set.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Train what RECIPE says, record it in MLflow and register the model."""
    from finetune.recipe import find, load_recipe
    from finetune.train import run as train

    work = context.obj
    loaded = load_recipe(find(recipe), overrides or ())
    encoder = work.encoder
    done = train(loaded, encoder.embed, tracking_uri=f"sqlite:///{work.home.path / 'mlflow.db'}", encoder=encoder.fingerprint)
    if as_json:
        work.print_json(done.as_dict())
    else:
        print(done.summary())
