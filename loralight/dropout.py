"""Dropout whose random numbers cost less on a CPU."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from loralight.adapters.kernels import drop_mask


def set_cheap_dropout_(modules: Iterable[nn.Module], on: bool) -> None:
    """Turn those of ``modules`` that are exactly ``nn.Dropout`` into cheap ones, in place, or those back."""
    before, after = (nn.Dropout, CheapDropout) if on else (CheapDropout, nn.Dropout)
    for module in modules:
        if type(module) is before:
            module.__class__ = after


class CheapDropout(nn.Dropout):
    """`nn.Dropout` in distribution, by other random numbers: on a CPU half of its time, and a quarter of its memory.

    Elsewhere, and where something traces, it is what it comes from.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self._is_cheap(x):
            return super().forward(x)
        dropped: Tensor = _Drop.apply(x, self.p)
        return dropped

    def _is_cheap(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.is_floating_point()
            and x.numel() > 0
            and 1e-4 < self.p < 1 - 1e-4  # drawn to 2**-16
            and not self.inplace
            and not torch.compiler.is_compiling()
            and not torch._C._are_functorch_transforms_active()
        )


class _Drop(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        mask, ctx.scale = drop_mask(x, probability)
        kept = mask.logical_not_().view(torch.int8)  # to multiply in place by these costs a third of `masked_fill`
        ctx.save_for_backward(kept)
        y: Tensor = (x * ctx.scale).mul_(kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * ctx.scale).mul_(kept), None
