"""Layers with a low-rank update (LoRA: Hu et al., 2021, https://arxiv.org/abs/2106.09685), each upgraded in place."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters.kernels import Geometry, can_be_fused, lora_convolution, lora_linear


class LoraLayer(nn.Module):
    """A frozen layer whose weight W has a low-rank update: it computes with ``W + (alpha / rank) B A``.

    A plain layer becomes one in place, so its weight, its name in the model and every reference to it stay what they
    were; ``merge_`` turns it back. Dropout is on the low-rank path's input.
    """

    plain: ClassVar[type[nn.Module]]
    """The class of layers that is upgraded."""

    weight: Any  # a frozen parameter; each plain class types it in its own way
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    rank: int
    alpha: float
    lora_dropout: float

    @classmethod
    def upgrade_(cls, layer: nn.Module, *, rank: int, alpha: float, dropout: float = 0.0) -> Self:
        """Turn ``layer`` into a LoRA layer: A Kaiming-uniform, B zero, so that it computes what it computed before."""
        layer.__class__ = cls
        assert isinstance(layer, cls)
        weight = layer.weight
        # In half precision small updates to A and B would be rounded away, and A x could overflow to inf.
        dtype = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype
        down, up = layer.factor_shapes(rank)
        layer.lora_A = nn.Parameter(torch.empty(down, device=weight.device, dtype=dtype))
        layer.lora_B = nn.Parameter(torch.zeros(up, device=weight.device, dtype=dtype))
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5))
        layer.rank, layer.alpha, layer.lora_dropout = rank, alpha, dropout
        return layer

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @abstractmethod
    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and B."""

    @abstractmethod
    def low_rank(self, x: Tensor) -> Tensor:
        """``B A x``, without the scaling."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)  # of the plain layer, which comes next in every subclass
        x = F.dropout(x, self.lora_dropout, self.training).to(self.lora_A.dtype)
        return y + (self.low_rank(x) * self.scaling).to(y.dtype)

    def product(self, dtype: torch.dtype) -> Tensor:
        """``B A`` in the shape of the weight."""
        return (self.lora_B.to(dtype).flatten(1) @ self.lora_A.to(dtype).flatten(1)).view(self.weight.shape)

    @torch.no_grad()
    def merge_(self) -> None:
        wide = torch.promote_types(self.weight.dtype, torch.float32)  # bfloat16 would round small updates away
        self.weight.copy_(self.weight.to(wide) + self.scaling * self.product(wide))
        del self.lora_A, self.lora_B, self.rank, self.alpha, self.lora_dropout
        self.__class__ = self.plain  # type: ignore[assignment]  # the way back from `upgrade_`

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha:g}, lora_dropout={self.lora_dropout}"


class LoraLinear(LoraLayer, nn.Linear):
    """``y = W x + b + (alpha / rank) B A dropout(x)``.

    Shapes: x (..., in), lora_A (rank, in), lora_B (out, rank), y (..., out).
    """

    plain = nn.Linear

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, self.in_features), (self.out_features, rank)

    def forward(self, x: Tensor) -> Tensor:
        if can_be_fused(x, self.weight, self.lora_A):
            dropout = self.lora_dropout if self.training else 0.0
            return lora_linear(x, self.weight, self.bias, self.lora_A, self.lora_B, self.scaling, dropout)
        return super().forward(x)

    def low_rank(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.lora_A), self.lora_B)


class LoraConv1D(LoraLayer, Conv1D):
    """GPT-2's linear layer, whose weight is (in, out); shapes otherwise as in `LoraLinear`."""

    plain = Conv1D

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, self.nx), (self.nf, rank)

    def low_rank(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.lora_A), self.lora_B)

    def product(self, dtype: torch.dtype) -> Tensor:
        return (self.lora_B.to(dtype) @ self.lora_A.to(dtype)).T

    def extra_repr(self) -> str:
        return f"nx={self.nx}, nf={self.nf}, rank={self.rank}, alpha={self.alpha:g}, lora_dropout={self.lora_dropout}"


class _LoraConv(LoraLayer, nn.modules.conv._ConvNd):
    """A convolution with the kernel ``W + (alpha / rank) B A``, of any stride, padding, dilation and groups.

    A convolves like the layer itself, B mixes its ``rank`` channels point by point. With groups, each group has its
    own rows of B and all share A, so that BA has the shape of the layer's weight.

    Shapes: x (batch, in, *space), lora_A (rank, in / groups, *kernel), lora_B (out, rank, 1, ...).
    """

    _convolve: ClassVar[Callable[..., Tensor]]

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ones = (1,) * len(self.kernel_size)
        return (rank, *self.weight.shape[1:]), (self.out_channels, rank, *ones)

    def forward(self, x: Tensor) -> Tensor:
        # in half precision W would round the update away
        if self._is_simple and x.dtype.itemsize >= 4 and can_be_fused(x, self.weight, self.lora_A):
            geometry: Geometry = (self.stride, self.padding, self.dilation)  # type: ignore[assignment]  # no text here
            return lora_convolution(x, self.weight, self.bias, self.lora_A, self.lora_B, self.scaling, geometry)
        return super().forward(x)

    @property
    def _is_simple(self) -> bool:
        drops = self.training and self.lora_dropout > 0
        return self.groups == 1 and self.padding_mode == "zeros" and not isinstance(self.padding, str) and not drops

    def low_rank(self, x: Tensor) -> Tensor:
        down = torch.cat([self.lora_A] * self.groups) if self.groups > 1 else self.lora_A
        return type(self)._convolve(self._conv_forward(x, down, None), self.lora_B, groups=self.groups)


class LoraConv1d(_LoraConv, nn.Conv1d):
    """See `_LoraConv`."""

    plain = nn.Conv1d
    _convolve = staticmethod(F.conv1d)


class LoraConv2d(_LoraConv, nn.Conv2d):
    """See `_LoraConv`."""

    plain = nn.Conv2d
    _convolve = staticmethod(F.conv2d)


class LoraConv3d(_LoraConv, nn.Conv3d):
    """See `_LoraConv`."""

    plain = nn.Conv3d
    _convolve = staticmethod(F.conv3d)


def peft_computes_the_same(layer: LoraLayer) -> bool:
    """Whether PEFT's layer of this kind computes what ours does.

    PEFT's A is a convolution of its own, without the layer's dilation, groups and padding mode.
    """
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return True
    return layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
