"""What makes a task's steps quick or small without changing what they compute, and how much of the processor they use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from finetune.schema import TrainedRecipe

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 operations a second of GPUs, by a part of their name, from their makers' data sheets."""


def root(model: Any) -> Any:
    """The network itself: without the head that a task put on it, and without PEFT around it."""
    model = getattr(model, "encoder", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layers(model: Any) -> Iterator[Any]:
    """A network's layers: members of the lists of modules that stand in no other such list."""
    import torch

    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    inner = {id(below) for stack in stacks for below in stack.modules() if below is not stack}
    for stack in stacks:
        if id(stack) not in inner:
            yield from stack


def checkpoint_layers(model: Any) -> bool:
    """Keep of a forward pass what stands between the layers, and compute a layer again for its gradients; whether it can."""
    import warnings

    network = root(model)
    if not getattr(network, "supports_gradient_checkpointing", False):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of caches, of which training has none
        network.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": _as_before})
    return True


def _as_before() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What a layer is computed within, and computed again within: by the same kernels of attention, or what the second pass keeps
    for the gradients would not be what the first one kept."""
    return nullcontext(), _cudnn_first() if _QUICK.get() else nullcontext()


def prepare(model: Any, recipe: TrainedRecipe, checkpointing: bool) -> None:
    """Apply `gradient_checkpointing` and `compile` to a task's model."""
    if checkpointing:
        checkpoint_layers(model)
    if recipe.compile:
        for layer in layers(root(model)):
            layer.compile(**COMPILED)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose operations on tensors are fused."""
    import torch

    return torch.compile(function, **COMPILED)


def there(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A tensor on a device; a GPU takes it from pinned memory, while what was asked of it before still runs."""
    if device.startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


_QUICK: ContextVar[bool] = ContextVar("quick", default=False)
"""Whether attention is that of cuDNN now."""


@contextmanager
def quickest_attention(device: str, alone: bool) -> Iterator[None]:
    """Within it, attention of sequences of one text each (`alone`) is that of cuDNN where it serves, on GPUs from Hopper on,
    where it is quicker than flash attention; everything else is as ever."""
    if not (alone and _hopper(device)):
        yield
        return
    token = _QUICK.set(True)
    try:
        with _cudnn_first():
            yield
    finally:
        _QUICK.reset(token)


def _hopper(device: str) -> bool:
    import torch

    return device.startswith("cuda") and torch.cuda.get_device_capability() >= (9, 0)


def _cudnn_first() -> AbstractContextManager[Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


COMPILED: dict[str, Any] = {}
"""Options of `torch.compile`; tests take another backend, which needs no compiler."""


def operations(model: Any, trained: int) -> tuple[int, int]:
    """Floating-point operations of a training step for each token, by the usual convention, and its factor.

    6 a weight, or 4 where the base model's own stay as they are: their gradients are not computed. A table of word vectors that
    is only looked up is left out; so are attention's own, which grow with the length, and what checkpointing computes again.

    Parameters
    ----------
    trained: how many parameters are trained.
    """
    network = root(model)
    table, head = network.get_input_embeddings().weight, network.get_output_embeddings()
    total = sum(parameter.numel() for parameter in model.parameters())
    counted = total - (0 if head is not None and head.weight is table else table.numel())
    factor = 6 if trained > total / 2 else 4
    return factor * counted, factor


def peak(device: str) -> float | None:
    """Operations a second that a GPU's maker promises for bf16; None where they are not known."""
    import torch

    if not device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name()
    return next((rate for part, rate in PEAKS.items() if part.lower() in name.lower()), None)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether that is what went wrong, on processors and GPUs."""
    import torch

    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def has_bf16(device: str) -> bool:
    """Whether the device computes in bf16 by itself."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
