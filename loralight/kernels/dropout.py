"""Dropout whose random numbers cost less on a CPU."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from loralight.kernels.linear import is_eager, keep_mask, parts


def set_cheap_dropout_(modules: Iterable[nn.Module], on: bool) -> None:
    """Turn each exact ``nn.Dropout`` of ``modules`` into a `CheapDropout`, in place, or turn it back."""
    before, after = (nn.Dropout, CheapDropout) if on else (CheapDropout, nn.Dropout)
    for module in modules:
        if type(module) is before:
            module.__class__ = after


class CheapDropout(nn.Dropout):
    """`nn.Dropout` in distribution, by other random numbers: half of its time on a CPU, and a quarter of its memory.

    On other devices, and under tracing, it behaves as its base class.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.inplace or not can_be_cheap(x, self.p):
            return super().forward(x)
        dropped: Tensor = _Drop.apply(x, self.p)
        return dropped


def can_be_cheap(x: Tensor, probability: float) -> bool:
    """Whether elements of x can be dropped by the cheaper random numbers."""
    return (
        x.device.type == "cpu"
        and x.is_floating_point()
        and x.numel() > 0
        and 1e-4 < probability < 1 - 1e-4  # drawn to 2**-16
        and is_eager()
    )


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float) -> Tensor:
    """`F.scaled_dot_product_attention` in three quarters of its time, by the cheaper random numbers (`can_be_cheap`).

    Shapes: query, key, value and the result (batch, heads, tokens, width), mask (batch, 1, 1, tokens), True at tokens
    that are attended to.
    """
    scores = (query * scale) @ key.transpose(-1, -2)
    if mask is not None:  # adding costs less than filling
        scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    attended: Tensor = _Drop.apply(scores.softmax(-1), dropout) @ value
    return attended


class _Drop(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        kept, ctx.scale = keep_mask(x, probability)
        ctx.save_for_backward(kept)
        return _masked(x, ctx.scale, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _masked(gradient, ctx.scale, kept), None


def _masked(x: Tensor, scale: float, kept: Tensor) -> Tensor:
    y = torch.mul(x, scale).contiguous()
    for some, drawn in parts(y.view(-1), kept.view(-1)):
        some.mul_(drawn)
    return y
