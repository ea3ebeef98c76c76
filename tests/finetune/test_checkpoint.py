"""A checkpoint is whole or not there: whatever is torn, the one before it is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune import checkpoint


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 4), value), "step": torch.tensor(value)}


def test_the_newest_comes_back_and_the_oldest_go(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, tensors(step), {"at": step})
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, found.state) == (3, {"at": 3})
    assert torch.equal(found.tensors["a"], tensors(3)["a"])
    assert found.tensors["step"].shape == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("tear", [_truncate, _flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_torn_one_is_passed_over(tmp_path: Path, name: str, tear: Callable[[Path], None]) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(step), {"at": step})
    tear(tmp_path / "step-00000002" / name)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.state == {"at": found.step}
    assert torch.equal(found.tensors["a"], tensors(found.step)["a"])
    assert found.step == 1 or name == "manifest.json"  # a flip in a manifest need not touch what it vouches for
    checkpoint.save(tmp_path, 2, tensors(2), {"at": 2})  # the run comes by again
    again = checkpoint.newest(tmp_path)
    assert again is not None
    assert again.step == 2


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path: Path) -> None:
    half = checkpoint.save(tmp_path, 1, tensors(1), {})
    half.rename(tmp_path / ".new-00000001-77")
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "missing") is None
