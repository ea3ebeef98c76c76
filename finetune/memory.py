"""What memory a training step holds at most: it is made on tensors that have shapes and no content, forward and backward, and
what is there at once is added up. So checkpointing, precision, adapters and attention count as they are, without a formula.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import speed
from finetune.optimizer import PART
from finetune.schema import LanguageRecipe, TrainedRecipe

NF4 = 4.127 / 8
"""Bytes of a weight in four bits, with its scales, which are themselves quantised (https://arxiv.org/abs/2305.14314)."""
FLOAT = 4


@dataclass(frozen=True)
class Memory:
    """Bytes by what holds them, at the moment of a step when there are most."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    """Copies of the trained weights: the moving average, the best evaluated."""
    activations: int
    """What the passes of a micro-batch hold besides, forward and backward."""

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.averages + self.gradients + self.activations


def memory_of(recipe: TrainedRecipe, job: Any, base: Path, device: str, *, checkpointing: bool) -> tuple[Memory, Any]:
    """Memory of a recipe's step on one of its devices, and its task on tensors without content."""
    task = job.shapes(recipe, base)
    if checkpointing:
        speed.checkpoint_layers(task.model)
    trained = [parameter for group in task.groups() for parameter in group["params"]]
    gradients, count = sum(map(_bytes, trained)), sum(parameter.numel() for parameter in trained)
    averages = count * FLOAT * bool(recipe.ema) + gradients * bool(recipe.early_stopping)
    kept = 2 * (count if recipe.optimizer == "adamw-8bit" else gradients)
    weights, processes = _weights(recipe, task.model), recipe.launcher.processes
    rows = -(-recipe.batch_size // processes)
    lengths = task.lengths
    size = min(recipe.micro_batch_size or recipe.batch_size, rows, len(lengths))
    largest = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:size]
    passes = 1 if size >= min(rows, len(lengths)) else 2
    precise = recipe.precision.startswith("bf16") or (recipe.precision == "auto" and speed.has_bf16(device))
    with _without_content(task, device):
        step = _most(task, largest, passes, device, precise)
    activations = max(0, step - gradients)
    if gradients and trained[0].element_size() < FLOAT:  # what the optimizer computes in fp32, a part at a time
        activations = max(activations, 6 * FLOAT * min(PART, max(parameter.numel() for parameter in trained)))
    shares = processes if recipe.launcher.strategy == "fsdp" else 1
    return Memory(weights // shares, gradients // shares, kept // shares, averages // shares, activations), task


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()


def _weights(recipe: TrainedRecipe, model: Any) -> int:
    """Bytes of the model, buffers as well; for `qlora` its layers in four bits and the rest in bf16."""
    import torch

    tensors = {id(each): each for each in (*model.parameters(), *model.buffers())}
    if not isinstance(recipe, LanguageRecipe) or recipe.method != "qlora":
        return sum(map(_bytes, tensors.values()))
    inner = (module for layer in speed.layers(speed.root(model)) for module in layer.modules())
    small = {id(m.weight) for m in inner if isinstance(m, torch.nn.Linear) and not m.weight.requires_grad}
    sizes = (NF4 if key in small else FLOAT if each.requires_grad else 2 for key, each in tensors.items())
    return round(sum(size * each.numel() for size, each in zip(sizes, tensors.values(), strict=True)))


@contextmanager
def _without_content(task: Any, device: str) -> Iterator[None]:
    """Within it a task's tensors, which were made on `meta`, are on the device, with kernels chosen as there, and still empty."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def there(tensor: Any) -> Any:
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    for module in task.model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = torch.nn.Parameter(there(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = there(buffer)
    before = dict(task.__dict__)
    task.__dict__.update({k: there(v) for k, v in before.items() if isinstance(v, torch.Tensor) and v.is_meta}, device=device)
    try:
        yield
    finally:
        task.device = before["device"]


def _most(task: Any, examples: list[int], passes: int, device: str, bf16: bool) -> int:
    """The most bytes that forward and backward passes hold at once, gradients among them and the task's own tensors not."""
    import torch

    live = _live()
    task.model.train()
    with live, torch.autocast(device, torch.bfloat16, enabled=bf16):
        for _ in range(passes):
            loss = task.loss(examples)
            with torch.autocast(device, enabled=False):
                loss.backward()
            del loss
    return live.most


def _live() -> Any:
    """Counts the bytes of every storage that an operation makes, from then until nobody holds it."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Live(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.now = self.most = 0
            self._known: set[int] = set()
            self._sums = torch.ops.aten.add.Tensor

        def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = {
                tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)
            }
            self.most = max(self.most, self.now)
            found = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(found):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                    self._add(tensor.untyped_storage())
            # autograd adds up the gradients of what is used twice in place, and anew only while someone looks on: its sum
            # counts from when what was added is gone
            if func is not self._sums or torch.is_grad_enabled() or torch._C._current_graph_task_id() < 0:
                self.most = max(self.most, self.now)
            return found

        def _add(self, storage: Any) -> None:
            key, size = storage._cdata, storage.nbytes()
            if key in self._known:
                return
            self._known.add(key)
            self.now += size
            weakref.finalize(storage, self._gone, key, size)

        def _gone(self, key: int, size: int) -> None:
            self._known.discard(key)
            self.now -= size

    return Live()
