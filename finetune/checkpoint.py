"""Checkpoints that are there wholly or not at all.

A checkpoint is a folder `step-00000100` with `tensors.safetensors`, `state.json` and `manifest.json` (size and SHA-256 of the
other two). It is written under another name, flushed to the disk and renamed; reading passes over every folder whose files are
not what its manifest says, so a torn one costs the steps since the one before and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

KEPT = 2
_PREFIX = "step-"
_FILES = ("tensors.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """What training goes on from after `step` steps."""

    step: int
    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]


def save(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], keep: int = KEPT) -> Path:
    """Write a checkpoint, and delete all but the newest `keep`. Blocking.

    Raises
    ------
    OSError: the disk is full or not writable; the checkpoints before are untouched.
    """
    from safetensors.torch import save as serialize

    folder.mkdir(parents=True, exist_ok=True)
    final, new = folder / f"{_PREFIX}{step:08d}", folder / f".new-{step:08d}-{os.getpid()}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        contents = (serialize({name: tensor.contiguous() for name, tensor in tensors.items()}), json.dumps(dict(state)).encode())
        manifest = {}
        for name, content in zip(_FILES, contents, strict=True):
            _write(new / name, content)
            manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        _write(new / "manifest.json", json.dumps({"step": step, "files": manifest}).encode())
        _flush(new)
        shutil.rmtree(final, ignore_errors=True)  # there only if it was torn, or it would have been resumed from
        os.rename(new, final)
        _flush(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none."""
    from safetensors.torch import load as deserialize

    for path in _newest_first(folder):
        if (contents := _read(path)) is not None:
            state = json.loads(contents["state.json"])
            return Checkpoint(int(path.name.removeprefix(_PREFIX)), deserialize(contents["tensors.safetensors"]), state)
    return None


def _read(path: Path) -> dict[str, bytes] | None:
    """A checkpoint's files, or None if one is missing or is not what was written."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())["files"]
        contents = {name: (path / name).read_bytes() for name in _FILES}
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        return contents if all(sums[name] == manifest[name]["sha256"] for name in _FILES) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
