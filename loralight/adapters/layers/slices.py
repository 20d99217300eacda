"""LoRA on a fused projection of queries, keys and values; each adapted slice has its own A and B."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters.layers.lora import LoraConv1D, LoraLinear, LoraProduct

SLICES = "qkv"
"""The equal parts of a fused projection's output, in their order."""


class SlicedLayer(LoraProduct):
    """A fused projection ``[W_q; W_k; W_v]`` whose chosen slices have the updates ``(alpha / rank) B_i A_i``.

    Together they are one update of rank ``n rank``, whose B consists of the blocks B_i::

        chosen "qv":   A = [A_q]  (n rank, in)     B = [B_q  0 ]  (out, n rank)
                           [A_v]                       [ 0   0 ]
                                                       [ 0  B_v]

    Shapes: x (..., in), lora_A (n rank, in), lora_B (n in, rank), y (..., out) with out = 3 in.
    """

    extras = (*LoraProduct.extras, "slices")

    slices: str

    @classmethod
    def upgrade_(cls, layer: nn.Module, *, slices: str = SLICES, **settings: Any) -> Self:
        layer.slices = "".join(name for name in SLICES if name in slices)  # type: ignore[assignment]  # no module
        return super().upgrade_(layer, **settings)

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        width = min(self.weight.shape)  # each slice is square
        return (len(self.slices) * rank, width), (len(self.slices) * width, rank)

    def whole_B(self, lora_B: Tensor) -> Tensor:
        """B with its blocks in their places, (out, n rank)."""
        diagonal = torch.block_diag(*lora_B.chunk(len(self.slices)))  # type: ignore[no-untyped-call]
        rows = dict(zip(self.slices, diagonal.chunk(len(self.slices)), strict=True))
        empty = torch.zeros_like(rows[self.slices[0]])
        return torch.cat([rows.get(name, empty) for name in SLICES])

    def update_factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.whole_B(self.lora_B)


class LoraSlicedLinear(SlicedLayer, LoraLinear):
    """See `SlicedLayer`."""


class LoraSlicedConv1D(SlicedLayer, LoraConv1D):
    """See `SlicedLayer`; the weight is (in, out)."""


SLICED: dict[type[nn.Module], type[SlicedLayer]] = {nn.Linear: LoraSlicedLinear, Conv1D: LoraSlicedConv1D}
"""The LoRA class of each class of fused projection."""
