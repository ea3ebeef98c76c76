"""Several processes that train one model: each computes a part of every batch, and their gradients are added up.

The loss is divided by all targets of the batch before the gradients are added, so a step is the one that a single process would
have made of the whole batch, to the last bits of its sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone, all of it costs nothing."""

    rank: int = 0
    size: int = 1

    def part(self, batch: Sequence[int]) -> Sequence[int]:
        """The examples of a batch that are this process's."""
        return batch if self.size == 1 else batch[self.rank :: self.size]

    def add(self, parameters: Iterable[torch.nn.Parameter], loss: float) -> float:
        """Add up the gradients, in place, and the losses, which are given back."""
        if self.size == 1:
            return loss
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


def current() -> Ranks:
    """This process's place, if it trains with others."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Ranks()
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())


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
