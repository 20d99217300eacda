"""LoRA on a fused projection of queries, keys and values, with A and B of its own for each slice that is adapted."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters.kernels import can_be_fused, lora_linear
from loralight.adapters.lora_layers import LoraConv1D, LoraLayer, LoraLinear, thin

SLICES = "qkv"
"""The equal parts of a fused projection's output, in their order."""


class SlicedLayer(LoraLayer):
    """A fused projection ``[W_q; W_k; W_v]`` whose chosen slices have the updates ``(alpha / rank) B_i A_i``.

    Together they are one update of rank ``n rank``, of which B has the blocks B_i::

        chosen "qv":   A = [A_q]  (n rank, in)     B = [B_q  0 ]  (out, n rank)
                           [A_v]                       [ 0   0 ]
                                                       [ 0  B_v]

    Shapes: x (..., in), lora_A (n rank, in), lora_B (n in, rank), y (..., out) with out = 3 in.
    """

    extras = (*LoraLayer.extras, "slices")

    slices: str

    @classmethod
    def upgrade_(cls, layer: nn.Module, *, slices: str = SLICES, **settings: Any) -> Self:
        layer.slices = "".join(name for name in SLICES if name in slices)  # type: ignore[assignment]  # no module
        return super().upgrade_(layer, **settings)

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        width = min(self.weight.shape)  # each slice is square
        return (len(self.slices) * rank, width), (len(self.slices) * width, rank)

    def blocks(self, lora_B: Tensor) -> Tensor:
        """B as a whole, (out, n rank)."""
        diagonal = torch.block_diag(*lora_B.chunk(len(self.slices)))  # type: ignore[no-untyped-call]
        rows = dict(zip(self.slices, diagonal.chunk(len(self.slices)), strict=True))
        empty = torch.zeros_like(rows[self.slices[0]])
        return torch.cat([rows.get(name, empty) for name in SLICES])

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return F.linear(F.linear(x, lora_A), self.blocks(lora_B))

    def update_factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.blocks(self.lora_B)


class LoraSlicedLinear(SlicedLayer, LoraLinear):
    """See `SlicedLayer`."""

    def forward(self, x: Tensor) -> Tensor:
        if can_be_fused(x, self.weight, self.lora_A):
            dropout = self.lora_dropout if self.training else 0.0
            lora_A = thin(self.lora_A, self.draw_ranks())
            return lora_linear(x, self.weight, self.bias, lora_A, self.blocks(self.lora_B), self.scaling, dropout)
        return LoraLayer.forward(self, x)


class LoraSlicedConv1D(SlicedLayer, LoraConv1D):
    """See `SlicedLayer`; the weight is (in, out)."""


SLICED: dict[type[nn.Module], type[SlicedLayer]] = {nn.Linear: LoraSlicedLinear, Conv1D: LoraSlicedConv1D}
"""What each class of fused projection becomes."""
