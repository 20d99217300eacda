"""Layers whose weight is a direction, with a low-rank update, times a magnitude for each output."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from loralight.adapters.layers.embedding import LoraEmbedding
from loralight.adapters.layers.lora import LoraConv1D, LoraConv1d, LoraConv2d, LoraConv3d, LoraLayer, LoraLinear
from loralight.adapters.layers.quantised import LoraQuantisedLinear

_LEAST = 1e-6
"""The norm that is assumed for a row of zeros (such as a pruned output), so that the row can learn."""


class DoraLayer(LoraLayer):
    """A layer with the weight ``m (W + scaling B A) / ||W + scaling B A||``, with the norm of each output's row.

    The gradient treats the norm as a constant (section 4.3 of the paper). The norm is computed as ``||W||`` times its
    growth by the update. The growth is exactly 1 while B is zero, so that step 0 equals the base on any device. Dropout
    is only on the input of ``B A``; in the authors' code it is also on the input of W, once m has moved.

    Shapes: lora_magnitude_vector (out,), of convolutions (1, out, 1, ...); norm (out,).
    """

    extras: ClassVar[tuple[str, ...]] = (*LoraLayer.extras, "lora_magnitude_vector", "norm")

    lora_magnitude_vector: nn.Parameter
    norm: Tensor

    @classmethod
    def upgrade_(cls, layer: nn.Module, **settings: Any) -> Self:
        dora = super().upgrade_(layer, **settings)
        matrix = dora.as_matrix(dora.weight.detach()).to(dora.lora_A.dtype)
        # not saved: it follows from the frozen weight, and PEFT's files have no place for it
        dora.register_buffer("norm", torch.linalg.vector_norm(matrix, dim=1).clamp_min(_LEAST), persistent=False)
        dora.lora_magnitude_vector = nn.Parameter(dora.as_output(dora.norm.clone()))
        return dora

    def adapted_forward(self, x: Tensor) -> Tensor:
        y = super().adapted_forward(x)
        scale = self.as_output(self.scale())
        scale = scale.view(scale.shape[-y.ndim :])  # an input of a convolution may have no batch
        bias = self._parameters.get("bias")  # an embedding has none
        scaled = y * scale if bias is None else y * scale + (1 - scale) * bias.view_as(scale)
        return scaled.to(y.dtype)

    def scale(self) -> Tensor:
        """``m / ||W + scaling B A||``, (out,)."""
        return self.lora_magnitude_vector.flatten() / (self.norm * self.growth())

    @torch.no_grad()
    def growth(self) -> Tensor:
        """``||W + scaling B A|| / ||W||``, (out,), without forming a matrix of W's size.

        It uses ``||w + s b A||^2 = ||w||^2 + 2 s b A w + s^2 b A A^T b^T`` for the rows w of W and b of B.
        """
        a, b = self.update_factors()
        with torch.autocast(a.device.type, enabled=False):
            across = self.as_matrix(self.weight).to(a.dtype) @ a.T  # (out, rank)
            added = (b * (2 * self.scaling * across + self.scaling**2 * (b @ (a @ a.T)))).sum(1)
        return (1 + added / self.norm.square()).clamp_min(_LEAST**2).sqrt()

    def merged(self, dtype: torch.dtype) -> Tensor:
        matrix = self.as_matrix(super().merged(dtype))
        return self.as_weight(matrix * self.scale().to(dtype)[:, None])


class DoraLinear(DoraLayer, LoraLinear):
    """See `DoraLayer`."""

    has_peft_form = True


class DoraConv1D(DoraLayer, LoraConv1D):
    """See `DoraLayer`."""

    has_peft_form = True


class DoraConv1d(DoraLayer, LoraConv1d):
    """See `DoraLayer`."""

    has_peft_form = True


class DoraConv2d(DoraLayer, LoraConv2d):
    """See `DoraLayer`."""

    has_peft_form = True


class DoraConv3d(DoraLayer, LoraConv3d):
    """See `DoraLayer`."""

    has_peft_form = True


class DoraEmbedding(DoraLayer, LoraEmbedding):
    """See `DoraLayer`; an output is a column of the embeddings, so that a magnitude also changes unseen tokens."""

    has_peft_form = True


class DoraQuantisedLinear(DoraLayer, LoraQuantisedLinear):
    """See `DoraLayer`; the weight is unpacked once more in each pass, for the norm."""

    has_peft_form = True


DORA_LAYERS: dict[type[nn.Module], type[DoraLayer]] = {
    layer.plain: layer
    for layer in (DoraLinear, DoraConv1D, DoraConv1d, DoraConv2d, DoraConv3d, DoraEmbedding, DoraQuantisedLinear)
}
"""The DoRA class of each class of layer."""
