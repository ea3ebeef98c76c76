"""Several processes that train one model: each computes a part of every batch, and their gradients are added up.

The loss is divided by all targets of the batch before the gradients are added, so a step is the one that a single process would
have made of the whole batch, to the last bits of its sums. Each process holds the whole model (`ddp`), or a part of every weight,
gradient and average, and gathers a layer's weights while it computes with them (`fsdp`:
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.speed import layers

if TYPE_CHECKING:
    import torch

    from finetune.schema import LauncherRecipe


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone, all of it costs nothing."""

    rank: int = 0
    size: int = 1
    sharded: bool = False
    """Whether each holds a part of every weight: then all must compute in step, forward and backward."""

    def part(self, batch: Sequence[int]) -> Sequence[int]:
        """The examples of a batch that are this process's."""
        return batch if self.size == 1 else batch[self.rank :: self.size]

    def rows(self, batch: Sequence[int]) -> int:
        """Of how many rows this process makes its forward passes: its own, or where all keep step those of the largest part."""
        return -(-len(batch) // self.size) if self.sharded else len(self.part(batch))

    @property
    def weight(self) -> int:
        """What the loss is multiplied by: sharded gradients are divided by the number of processes as they are added."""
        return self.size if self.sharded else 1

    def add(self, parameters: Iterable[torch.nn.Parameter], loss: float) -> float:
        """Add up the gradients, in place, and the losses, which are given back."""
        if self.size == 1:
            return loss
        if self.sharded:  # the backward pass has added them
            return self._sum(loss)
        import torch

        whole = list(parameters)
        for parameter in whole:
            if parameter.grad is None:  # a batch with fewer rows than there are processes
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.reshape(-1).float() for parameter in whole])  # type: ignore[union-attr]
        torch.distributed.all_reduce(flat)
        at = 0
        for parameter in whole:
            size = parameter.numel()
            parameter.grad.copy_(flat[at : at + size].view_as(parameter))  # type: ignore[union-attr]
            at += size
        return float(self._sum(loss, flat.device))

    def agree(self, wish: bool) -> bool:
        """Whether any of the processes wishes it."""
        return wish if self.size == 1 else self._sum(float(wish)) > 0

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            self._sum(0.0)

    def _sum(self, value: float, device: Any = None) -> float:
        import torch

        if device is None and torch.distributed.get_backend() == "nccl":
            device = "cuda"
        told = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(told)
        return float(told)


def current(launcher: LauncherRecipe | None = None) -> Ranks:
    """This process's place, if it trains with others."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Ranks()
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return Ranks(rank, size, size > 1 and launcher is not None and launcher.strategy == "fsdp")


def place(model: Any, device: str, launcher: LauncherRecipe) -> Any:
    """A model where it is to train: on the device, or its parts shared out among the processes, layer by layer."""
    here = current(launcher)
    if not here.sharded or device == "meta":
        return model.to(device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (here.size,))
    root = model.get_base_model() if hasattr(model, "get_base_model") else model  # `generate` calls what adapters are put on
    for layer in layers(root):
        fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh)
    return model


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this process may hold a part; all processes ask for it together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def held(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that is here."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


def like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of another, or this process's part of it where the other is one."""
    if not hasattr(other, "to_local") or hasattr(tensor, "to_local") or tensor.shape != other.shape:
        return tensor.to(other.device)
    from torch.distributed.tensor import distribute_tensor

    part: Any = other
    return distribute_tensor(tensor.to(other.device), part.device_mesh, part.placements, src_data_rank=None)


def join() -> Ranks:
    """Join the processes that a launcher started (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, as torchrun sets them)."""
    import torch

    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return current()


def leave() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
