"""AdamW: PyTorch's own; one that rounds at random, for weights in bf16; or that of bitsandbytes, with averages of 8 bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.recipe import RecipeError

if TYPE_CHECKING:
    import torch

    from finetune.schema import TrainedRecipe

BETAS, EPS = (0.9, 0.98), 1e-6
PART = 1 << 25
"""Weights that are moved at once in fp32: what is computed besides takes little memory."""


def optimizer_of(recipe: TrainedRecipe, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """The recipe's optimizer over AdamW's parameter groups.

    Raises
    ------
    RecipeError: `adamw-8bit` without a GPU or bitsandbytes.
    """
    import torch

    given: dict[str, Any] = {"lr": recipe.learning_rate, "betas": BETAS, "eps": EPS}
    if recipe.optimizer == "adamw-8bit":
        check_8bit()
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports] - an installation of its own

        return AdamW8bit([dict(group) for group in groups], **given)
    if any(parameter.dtype == torch.bfloat16 for group in groups for parameter in group["params"]):
        return rounded_adamw(recipe.compile)([dict(group) for group in groups], **given)
    return torch.optim.AdamW([dict(group) for group in groups], fused=True, **given)


def check_8bit() -> None:
    """Whether averages of 8 bits can be had here.

    Raises
    ------
    RecipeError: they cannot.
    """
    import torch

    missing = [] if torch.cuda.is_available() else ["a GPU"]
    if importlib.util.find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes (pip install bitsandbytes)")
    if missing:
        raise RecipeError(f"optimizer: adamw-8bit needs {' and '.join(missing)}; take adamw, which needs neither.")


def rounded_adamw(compile: bool = False) -> Callable[..., torch.optim.Optimizer]:
    """AdamW in fp32 on weights and averages in bf16, with the options of `torch.optim.AdamW`.

    A weight is rounded up as often as it lies near the upper of its neighbours, so that on average it goes where fp32 would
    (https://arxiv.org/abs/2010.06192). PyTorch's generator draws, which the loop seeds by the step. `compile` makes one pass over
    the weights of what are twenty otherwise, which for eight billions of them take as long as the rest of a step.
    """
    import torch

    from finetune import speed

    move = speed.compiled(_move) if compile else _move

    class RoundedAdamW(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0) -> None:
            super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            factors: dict[Any, Any] = {}
            for group in self.param_groups:
                (one, two), rate = group["betas"], group["lr"]
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    state = self.state[parameter]
                    if not state:
                        state["step"] = torch.zeros(())
                        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                    state["step"] += 1
                    step = float(state["step"])
                    flat = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
                    local = [_local(tensor.detach()).view(-1) for tensor in flat]
                    # numbers that change are tensors, or each would be compiled for
                    told = (1 - rate * group["weight_decay"], 1 - two**step, rate / (1 - one**step), local[0].device)
                    if told not in factors:
                        factors[told] = torch.tensor(told[:3]).to(told[3]).unbind()
                    for part in zip(*(tensor.split(PART) for tensor in local), strict=True):
                        move(part, factors[told], one, two, group["eps"])

    return RoundedAdamW


def _move(part: tuple[Any, ...], factors: tuple[Any, ...], one: float, two: float, eps: float) -> None:
    """A step of AdamW in place: weight, gradient and averages, flat; what decay leaves, what squares are divided by, the rate."""
    import torch

    weight, gradient, mean, square = part
    kept, unbiased, rate = factors
    slope = gradient.float()
    first, second = mean.float().lerp_(slope, 1 - one), square.float().lerp_(slope.square(), 1 - two)
    mean.copy_(first)
    square.copy_(second)
    divisor = second.div_(unbiased).sqrt_().add_(eps)
    moved = weight.float().mul_(kept).sub_(first.div_(divisor).mul_(rate))
    weight.copy_(rounded(moved) if weight.dtype == torch.bfloat16 else moved)


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """fp32 as bf16, each number up or down by chance, in proportion to how near it is. Overwrites what it is given."""
    import torch

    bits = tensor.view(torch.int32)
    bits += torch.randint_like(bits, 1 << 16)  # carries into the digits that stay as often as the others are large
    bits &= -(1 << 16)
    return tensor.to(torch.bfloat16)


def _local(tensor: Any) -> Any:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
