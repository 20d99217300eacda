"""Layers with a low-rank update (LoRA: Hu et al., 2021, https://arxiv.org/abs/2106.09685), each upgraded in place."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters.disabled import Switchable, is_off
from loralight.kernels.batch_norm import Follower, Unread
from loralight.kernels.convolution import Geometry, lora_convolution
from loralight.kernels.linear import can_be_fused, is_on_accelerator, linear_can_be_fused, lora_linear
from loralight.kernels.onednn import forget_, matrices_of


class LoraLayer(Switchable):
    """A frozen layer whose weight W has a low-rank update: it computes with ``W + scaling B A``.

    A plain layer becomes a LoRA layer in place, so its weight, its name in the model and every reference to it stay the
    same; ``merge_`` turns it back. Dropout is on the low-rank path's input.

    Where the factors' initial product is not zero, `keep_start_` subtracts it: the layer computes with
    ``W + scaling (B A - B_0 A_0)``, with A_0 and B_0 frozen.
    """

    plain: ClassVar[type[nn.Module]]
    """The class of layers that is upgraded."""

    extras: ClassVar[tuple[str, ...]] = (
        *("lora_A", "lora_B", "start_A", "start_B"),
        *("rank", "alpha", "lora_dropout", "rank_dropout", "use_rslora"),
    )
    """Attributes that the layer may have in addition to a plain layer's; `merge_` removes them."""

    is_additive: ClassVar[bool] = False
    """Whether the output is the plain layer's plus ``scaling * low_rank(dropout(x))``, each row by itself."""

    has_peft_form: ClassVar[bool] = False
    """Whether PEFT has a layer that computes the same, given A and B as they are."""

    follows_norm: ClassVar[bool] = False
    """Whether the layer can apply a frozen BatchNorm that reads its output, see `Follower`."""

    peft_parts: ClassVar[Mapping[str, str]] = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    """PEFT's names of the trainable parameters."""

    weight: Any  # a frozen parameter; each plain class types it in its own way
    lora_A: Tensor
    lora_B: Tensor
    start_A: Tensor
    start_B: Tensor
    rank: int
    alpha: float
    lora_dropout: float
    rank_dropout: float = 0.0
    use_rslora: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make each class declare its own capabilities: a subclass computes something else."""
        super().__init_subclass__(**kwargs)
        for capability in ("is_additive", "has_peft_form", "follows_norm"):
            setattr(cls, capability, vars(cls).get(capability, False))

    @property
    def is_known_to_peft(self) -> bool:
        """Whether PEFT's layer computes the same as this one with its settings."""
        return self.has_peft_form and self.start is None

    @classmethod
    def upgrade_(cls, layer: nn.Module, *, rank: int, alpha: float, dropout: float = 0.0) -> Self:
        """Turn ``layer`` into a LoRA layer: A Kaiming-uniform, B zero, so that its output is unchanged at first."""
        layer.__class__ = cls
        assert isinstance(layer, cls)
        down, up = layer.factor_shapes(rank)
        like: Any = {"device": layer.weight.device, "dtype": wide(layer.weight.dtype)}
        layer.lora_A = nn.Parameter(torch.empty(down, **like))
        layer.lora_B = nn.Parameter(torch.zeros(up, **like))
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5))
        layer.rank, layer.alpha, layer.lora_dropout = rank, alpha, dropout
        return layer

    @property
    def scaling(self) -> float:
        """``alpha / rank``, or ``alpha / sqrt(rank)`` (rsLoRA: Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @property
    def start(self) -> tuple[Tensor, Tensor] | None:
        """A_0 and B_0, if there are any."""
        return (self.start_A, self.start_B) if "start_A" in self._buffers else None

    def keep_start_(self) -> None:
        """Keep the present factors as A_0 and B_0, so that the layer computes the same as the plain layer."""
        self.register_buffer("start_A", self.lora_A.detach().clone())
        self.register_buffer("start_B", self.lora_B.detach().clone())

    @torch.no_grad()
    def join_start_(self) -> None:
        """Become a layer of twice the rank that computes the same without a start: A_0 below A, -B_0 to B's right."""
        if self.start is None:
            return
        self.lora_A = nn.Parameter(torch.cat([self.lora_A, self.start_A]))
        self.lora_B = nn.Parameter(torch.cat([self.lora_B, -self.start_B], dim=1))
        scaling = self.scaling
        self.rank *= 2
        self.alpha *= scaling / self.scaling
        del self.start_A, self.start_B

    @abstractmethod
    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and B."""

    @abstractmethod
    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        """``B A x`` for factors of these shapes."""

    def as_matrix(self, weight: Tensor) -> Tensor:
        """A weight of this layer as the matrix (out, fan in) to which ``B A`` is added."""
        return weight.flatten(1)

    def as_weight(self, matrix: Tensor) -> Tensor:
        """The inverse of `as_matrix`."""
        return matrix.view(self.weight.shape)

    def as_output(self, vector: Tensor) -> Tensor:
        """A vector (out,) in a shape that broadcasts to the output."""
        return vector

    def update(self, x: Tensor) -> Tensor:
        """The output of the low-rank path, without the scaling."""
        kept = self.draw_ranks()
        y = self.low_rank(x, thin(self.lora_A, kept), self.lora_B)
        if self.start is None:
            return y
        return y - self.low_rank(x, thin(self.start_A, kept), self.start_B)  # the same operations: zero at step 0

    def draw_ranks(self) -> Tensor | None:
        """Each rank's factor in this pass, (rank, 1, ...): 0 for dropped ranks; None if no rank can be dropped."""
        if not (self.training and self.rank_dropout):
            return None
        ones = self.lora_A.new_ones(len(self.lora_A), *(1,) * (self.lora_A.ndim - 1))
        return F.dropout(ones, self.rank_dropout)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Unread):
            x = x.read()  # kernels do not see that it is not a plain tensor
        if is_off(self):
            plain: Tensor = self.plain.forward(self, x)
            return plain
        return self.adapted_forward(x)

    def adapted_forward(self, x: Tensor) -> Tensor:
        """The layer's output with its update."""
        y: Tensor = self.plain.forward(self, x)
        x = self.cast(F.dropout(x, self.lora_dropout, self.training))
        return y + (self.update(x) * self.scaling).to(y.dtype)

    def cast(self, x: Tensor) -> Tensor:
        """The low-rank path's input in the dtype of its products."""
        return x.to(self.lora_A.dtype)

    def update_factors(self) -> tuple[Tensor, Tensor]:
        """Matrices A (n, fan in) and B (out, n) whose product is the update; n is twice the rank with a start."""
        a, b = self.lora_A.flatten(1), self.lora_B.flatten(1)
        if self.start is None:
            return a, b
        return torch.cat([a, self.start_A.flatten(1)]), torch.cat([b, -self.start_B.flatten(1)], dim=1)

    def product(self, dtype: torch.dtype) -> Tensor:
        """The update in the shape of the weight, without the scaling."""
        a, b = self.update_factors()
        return self.as_weight(b.to(dtype) @ a.to(dtype))

    def merged(self, dtype: torch.dtype) -> Tensor:
        """The weight of the plain layer that computes the same."""
        merged: Tensor = self.weight.to(dtype) + self.scaling * self.product(dtype)
        return merged

    @torch.no_grad()
    def merge_(self) -> None:
        self.weight.copy_(self.merged(wide(self.weight.dtype)))
        self.strip_()

    def strip_(self) -> None:
        """Be the plain layer again, without the update."""
        for name in self.extras:
            for owner in (vars(self), self._parameters, self._buffers):
                owner.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
        self.__class__ = self.plain  # type: ignore[assignment]  # the way back from `upgrade_`

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha:g}, lora_dropout={self.lora_dropout}"


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype for updates: half precision would round small updates away, and ``A x`` could overflow to inf."""
    return torch.promote_types(dtype, torch.float32)


def thin(factor: Tensor, kept: Tensor | None) -> Tensor:
    """A without the ranks that `LoraLayer.draw_ranks` has dropped."""
    return factor if kept is None else factor * kept


class LoraProduct(LoraLayer):
    """A layer that multiplies its input by a matrix: ``y = W x + b + (alpha / rank) B A dropout(x)``.

    Shapes: x (..., in), lora_A (rank, in), lora_B (out, rank), y (..., out).
    """

    bias: Any

    def adapted_forward(self, x: Tensor) -> Tensor:
        if self.start is not None or not linear_can_be_fused(x, self.weight, self.lora_A):
            return super().adapted_forward(x)
        dropout = self.lora_dropout if self.training else 0.0
        lora_A = thin(self.lora_A, self.draw_ranks())
        matrix = self.as_matrix(self.weight)
        matrices = matrices_of(self.weight)
        if matrices is not None and self.weight_is_transposed:
            matrices = matrices.T
        return lora_linear(x, matrix, self.bias, lora_A, self.whole_B(self.lora_B), self.scaling, dropout, matrices)

    weight_is_transposed: ClassVar[bool] = False
    """Whether the weight is (in, out)."""

    def whole_B(self, lora_B: Tensor) -> Tensor:
        """B as the matrix (out, rank) of the product."""
        return lora_B

    def cast(self, x: Tensor) -> Tensor:
        return x if is_on_accelerator(x) else super().cast(x)

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return F.linear(F.linear(x, lora_A.to(x.dtype)), self.whole_B(lora_B).to(x.dtype))

    def strip_(self) -> None:
        forget_(self.weight)
        super().strip_()


class LoraLinear(LoraProduct, nn.Linear):
    """See `LoraProduct`."""

    plain = nn.Linear
    is_additive = has_peft_form = True

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, self.in_features), (self.out_features, rank)


class LoraConv1D(LoraProduct, Conv1D):
    """GPT-2's linear layer, whose weight is (in, out); see `LoraProduct`."""

    plain = Conv1D
    is_additive = has_peft_form = True
    weight_is_transposed = True

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, self.nx), (self.nf, rank)

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.T

    def as_weight(self, matrix: Tensor) -> Tensor:
        return matrix.T

    def extra_repr(self) -> str:
        return f"nx={self.nx}, nf={self.nf}, rank={self.rank}, alpha={self.alpha:g}, lora_dropout={self.lora_dropout}"


class _LoraConv(LoraLayer, nn.modules.conv._ConvNd):
    """A convolution with the kernel ``W + (alpha / rank) B A``, of any stride, padding, dilation and groups.

    A convolves like the layer itself, and B mixes A's ``rank`` channels point by point. With groups, each group has its
    own rows of B and all share A, so that BA has the shape of the layer's weight.

    Shapes: x (batch, in, *space), lora_A (rank, in / groups, *kernel), lora_B (out, rank, 1, ...).
    """

    extras: ClassVar[tuple[str, ...]] = (*LoraLayer.extras, "follower")
    _convolve: ClassVar[Callable[..., Tensor]]

    follower: Follower | None = None
    """The BatchNorm that is the only reader of the output, if known; where it is frozen, it is applied here."""

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ones = (1,) * len(self.kernel_size)
        return (rank, *self.weight.shape[1:]), (self.out_channels, rank, *ones)

    def adapted_forward(self, x: Tensor) -> Tensor:
        has_batch = x.ndim == self.weight.ndim
        if not (has_batch and self._is_simple and can_be_fused(x, self.weight, self.lora_A)):
            return super().adapted_forward(x)
        weight, bias, scaling = self.weight, self.bias, self.scaling
        geometry: Geometry = (self.stride, self.padding, self.dilation)  # type: ignore[assignment]  # no text here
        lora_A, lora_B = thin(self.lora_A, self.draw_ranks()), self.lora_B

        def convolve(folded: tuple[Tensor, Tensor] | None) -> Tensor:
            gain, summand = (None, bias) if folded is None else folded
            if folded is not None and bias is not None:
                summand = torch.addcmul(folded[1], bias, folded[0])
            return lora_convolution(x, weight, summand, lora_A, lora_B, scaling, geometry, gain)

        learns = bias is not None and bias.requires_grad
        norm = self.follower.of(self, weight.dtype) if self.follower and self.training and not learns else None
        return convolve(None) if norm is None else Unread.of(convolve, norm, x.device)

    @property
    def is_known_to_peft(self) -> bool:
        """PEFT's A is a convolution of its own, without the layer's dilation, groups and padding mode."""
        is_plain = self.groups == 1 and set(self.dilation) == {1} and self.padding_mode == "zeros"
        return super().is_known_to_peft and is_plain

    def as_output(self, vector: Tensor) -> Tensor:
        return vector.view(1, -1, *(1,) * len(self.kernel_size))

    @property
    def _is_simple(self) -> bool:
        if (self.training and self.lora_dropout > 0) or self.start is not None:
            return False
        return self.groups == 1 and self.padding_mode == "zeros" and not isinstance(self.padding, str)

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        down = torch.cat([lora_A] * self.groups) if self.groups > 1 else lora_A
        return type(self)._convolve(self._conv_forward(x, down, None), lora_B, groups=self.groups)


class LoraConv1d(_LoraConv, nn.Conv1d):
    """See `_LoraConv`."""

    plain = nn.Conv1d
    is_additive = has_peft_form = follows_norm = True
    _convolve = staticmethod(F.conv1d)


class LoraConv2d(_LoraConv, nn.Conv2d):
    """See `_LoraConv`."""

    plain = nn.Conv2d
    is_additive = has_peft_form = follows_norm = True
    _convolve = staticmethod(F.conv2d)


class LoraConv3d(_LoraConv, nn.Conv3d):
    """See `_LoraConv`."""

    plain = nn.Conv3d
    is_additive = has_peft_form = follows_norm = True
    _convolve = staticmethod(F.conv3d)


LAYERS: dict[type[nn.Module], type[LoraLayer]] = {
    layer.plain: layer for layer in (LoraLinear, LoraConv1D, LoraConv1d, LoraConv2d, LoraConv3d)
}
"""The LoRA class of each class of layer that multiplies its input by a weight."""
