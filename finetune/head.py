"""The losses of tokens, without the logits of all of them at once.

With a vocabulary of 128,000 the logits of 8,000 tokens take four gigabytes, and their gradient four more. Here they exist for a
chunk of tokens at a time, and only for tokens that are learnt. `summed` is `cross_entropy` of all logits, with its gradients,
which it works out on the way forward, while the logits of a chunk are there (as https://arxiv.org/abs/2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 28
"""Bytes that the logits of a chunk may take, as fp32."""
LARGE = 1 << 30
"""The same on a GPU where the head is trained: its gradient, as large as the head, is added to once a chunk."""
TILE = 256
"""Rows of a chunk are a multiple of it: what a GPU's matrix products are cut into."""
Slope = Callable[[Any, Any], tuple[Any, Any]]
_RESHAPING = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Of a model's configuration: what is done to logits behind the head."""


def plain(model: Any) -> bool:
    """Whether a causal model's logits are its head's and nothing else, so that their loss can be taken chunk by chunk."""
    import torch

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    changed = any(getattr(config, name, None) not in (None, 1, 1.0) for name in _RESHAPING)
    return type(model.get_output_embeddings()) is torch.nn.Linear and not changed


@contextmanager
def instead_of_logits(model: Any, make: Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]) -> Iterator[None]:
    """Within it the model's `logits` are what `make(states, weight, bias)` gives. It stays a call of the whole model, so weights
    that are shared out among processes are gathered as ever."""
    head = model.get_output_embeddings()
    head.forward = lambda states: make(states, head.weight, head.bias)
    try:
        yield
    finally:
        del head.forward


def slope(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the cross-entropies of some tokens, fp32, and its gradient for their logits; takes the room of one copy."""
    import torch

    told = logits.float().log_softmax(-1)
    total = -told.gather(1, labels[:, None]).sum()
    found = told.exp_()
    found.scatter_add_(1, labels[:, None], torch.full_like(labels[:, None], -1, dtype=found.dtype))
    return total, found.to(logits.dtype)


def fusible_slope(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`slope` without changes in place, for a compiler to make one pass over the logits of it."""
    import torch

    told = logits.float().log_softmax(-1)
    right = torch.arange(logits.shape[1], device=logits.device)[None, :] == labels[:, None]
    return -told.gather(1, labels[:, None]).sum(), (told.exp() - right.float()).to(logits.dtype)


def summed(states: torch.Tensor, weight: torch.Tensor, bias: Any, labels: torch.Tensor, slope: Slope = slope) -> torch.Tensor:
    """The sum of the cross-entropies of tokens, fp32.

    Parameters
    ----------
    states: (tokens, width), what the head reads. weight, bias: the head's, (vocabulary, width). labels: (tokens,), all learnt.
    slope: this module's, or one that is compiled.
    """
    import torch

    class Summed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, states: Any, weight: Any, bias: Any, labels: Any) -> Any:
            wanted = [bool(need) for need in ctx.needs_input_grad[:3]]
            total, *gradients = _pass(states, weight, bias, labels, wanted, slope)
            ctx.save_for_backward(*gradients)
            return total

        @staticmethod
        def backward(ctx: Any, *outer: Any) -> Any:
            return (*(None if g is None else g * outer[0].to(g.dtype) for g in ctx.saved_tensors), None)

    if not torch.is_grad_enabled():
        return _pass(states, weight, bias, labels, [False] * 3, slope)[0]
    found: Any = Summed.apply(states, weight, bias, labels)
    return found


def each(states: torch.Tensor, weight: torch.Tensor, bias: Any, labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each token, fp32; parameters as `summed`. Logits are computed again for the backward pass."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def chunk(part: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = torch.nn.functional.linear(part, weight, bias)
        return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    parts = list(zip(states.split(_rows(weight)), labels.split(_rows(weight)), strict=True))
    if len(parts) < 2:
        return chunk(states, labels)
    return torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in parts])  # type: ignore[arg-type]


def _pass(states: Any, weight: Any, bias: Any, labels: Any, wanted: list[bool], slope: Slope) -> tuple[Any, Any, Any, Any]:
    """The summed loss, and the gradients that are wanted, of states, weight and bias."""
    import torch

    given = states.dtype, weight.dtype, None if bias is None else bias.dtype
    device = states.device.type
    if torch.is_autocast_enabled(device):
        precise = torch.get_autocast_dtype(device)
        states, weight, bias = states.to(precise), weight.to(precise), None if bias is None else bias.to(precise)
    total = states.new_zeros((), dtype=torch.float32)
    of_states = torch.empty_like(states, dtype=given[0]) if wanted[0] else None
    of_weight = torch.zeros_like(weight, dtype=given[1]) if wanted[1] else None
    of_bias = None if bias is None or not wanted[2] else torch.zeros_like(bias, dtype=given[2])
    rows = _rows(weight, LARGE if wanted[1] and device == "cuda" else None)
    with torch.autocast(device, enabled=False):
        for at in range(0, len(labels), rows):
            part, right = states[at : at + rows], labels[at : at + rows]
            logits = torch.nn.functional.linear(part, weight, bias)
            if not any(wanted):
                total = total + torch.nn.functional.cross_entropy(logits.float(), right, reduction="sum")
                continue
            loss, by = slope(logits, right)
            total = total + loss
            if of_states is not None:
                of_states[at : at + len(part)] = by @ weight
            if of_weight is not None and of_weight.dtype == by.dtype:
                of_weight.addmm_(by.T, part)
            elif of_weight is not None:
                of_weight += by.T @ part
            if of_bias is not None:
                of_bias += by.sum(0)
    return total, of_states, of_weight, of_bias


def _rows(weight: Any, room: int | None = None) -> int:
    """Tokens of a chunk whose logits take that many bytes at most."""
    rows = (room or CHUNK) // (4 * len(weight))
    return max(1, rows - rows % TILE if rows > TILE else rows)
