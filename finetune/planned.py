"""A plan in a process of its own, so that a server that trains nothing imports no PyTorch: `python -m finetune.planned`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune.recipe import Recipe, RecipeError, load_recipe

PATIENCE = 180.0
"""Seconds after which a plan is given up."""


def planned(recipe: Recipe, *, price_per_hour: float = 0.0, memory: float | None = None) -> dict[str, Any]:
    """What `finetune.plan.plan` says of a recipe, as JSON values; parameters as there. Blocking.

    Raises
    ------
    RecipeError: it cannot be planned; the message says why.
    """
    rooms = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (rooms, os.environ.get("PYTHONPATH"))))}
    asked = {"recipe": recipe.model_dump(mode="json"), "price_per_hour": price_per_hour, "memory": memory}
    command = [sys.executable, "-m", "finetune.planned"]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise RecipeError(f"The plan took longer than {PATIENCE:.0f} s; ask `smalti finetune plan`.") from None
    try:
        told = json.loads(done.stdout)
    except ValueError:
        raise RecipeError(
            f"The plan could not be made: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        ) from None
    if "error" in told:
        raise RecipeError(told["error"])
    return told


def _main() -> None:
    os.nice(5)  # answers come first
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from finetune.data import DataError
    from finetune.plan import plan

    asked = json.load(sys.stdin)
    try:
        made = plan(load_recipe(asked.pop("recipe")), **asked)
        told = made.as_dict()
    except (DataError, RecipeError, OSError) as error:
        told = {"error": str(error)}
    print(json.dumps(told))


if __name__ == "__main__":
    _main()
