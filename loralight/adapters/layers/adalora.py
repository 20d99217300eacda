"""Layers whose update has the form of a singular value decomposition; its triplets are scored and cut."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from loralight.adapters.layers.lora import (
    LAYERS,
    LoraConv1D,
    LoraConv1d,
    LoraConv2d,
    LoraConv3d,
    LoraLayer,
    LoraLinear,
    wide,
)

PARTS = ("lora_P", "lora_Lambda", "lora_Q")


class AdaLoraLayer(LoraLayer):
    """A frozen layer with the update ``scaling P Lambda Q``; a triplet is a column of P, a value, and a row of Q.

    Each part has two running means: of its elements' sensitivity ``|w dL/dw|``, and of the deviation of the sensitivity
    from its mean. They are buffers, so that a resumed run continues with them.

    Shapes: lora_P like B, lora_Lambda (rank,), lora_Q like A; chosen (rank,), the triplets that the last cut left.
    """

    extras: ClassVar[tuple[str, ...]] = (
        *PARTS,
        *(f"{mean}_{part}" for mean in ("sensitivity", "uncertainty") for part in PARTS),
        *("chosen", "rank", "alpha", "lora_dropout"),
    )

    lora_P: nn.Parameter
    lora_Lambda: nn.Parameter
    lora_Q: nn.Parameter
    chosen: Tensor

    @classmethod
    def upgrade_(cls, layer: nn.Module, *, rank: int, alpha: float, dropout: float = 0.0) -> Self:
        """Turn ``layer`` into a layer with an update: P and Q normal, as in the authors' code, and Lambda zero."""
        layer.__class__ = cls
        assert isinstance(layer, cls)
        layer.rank, layer.alpha, layer.lora_dropout = rank, alpha, dropout
        down, up = layer.factor_shapes(rank)
        like: Any = {"device": layer.weight.device, "dtype": wide(layer.weight.dtype)}
        for part, shape in zip(PARTS, (up, (rank,), down), strict=True):
            layer.register_parameter(part, nn.Parameter(torch.zeros(shape, **like)))
            for mean in ("sensitivity", "uncertainty"):
                layer.register_buffer(f"{mean}_{part}", torch.zeros(shape, **like))
        nn.init.normal_(layer.lora_P, std=0.02)
        nn.init.normal_(layer.lora_Q, std=0.02)
        layer.register_buffer("chosen", torch.ones(rank, dtype=torch.bool, device=layer.weight.device))
        return layer

    @property
    def lora_A(self) -> Tensor:  # type: ignore[override]  # computed, not kept
        return self.lora_Lambda.view(-1, *(1,) * (self.lora_Q.ndim - 1)) * self.lora_Q

    @property
    def lora_B(self) -> Tensor:  # type: ignore[override]
        return self.lora_P

    @torch.no_grad()
    def observe_(self, beta1: float, beta2: float) -> None:
        """Update the running means with the present gradients (eq. 9 and 10)."""
        for part in PARTS:
            parameter, mean, stray = self.get_parameter(part), *self._means(part)
            assert parameter.grad is not None
            sensitivity = (parameter * parameter.grad).abs()
            mean.lerp_(sensitivity, 1 - beta1)
            stray.lerp_((sensitivity - mean).abs(), 1 - beta2)

    def importance(self) -> Tensor:
        """Each triplet's importance: its value's, plus the means over its column and row (eq. 7 and 11), (rank,)."""
        up, values, down = (mean * stray for mean, stray in map(self._means, PARTS))
        return values + down.flatten(1).mean(1) + up.flatten(1).mean(0)

    @torch.no_grad()
    def cut_(self) -> None:
        """Set the values of the triplets that are not chosen to zero."""
        self.lora_Lambda.masked_fill_(~self.chosen, 0.0)

    def _means(self, part: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"sensitivity_{part}"), self.get_buffer(f"uncertainty_{part}")

    @torch.no_grad()
    def become_lora_(self) -> None:
        """Turn into a plain LoRA layer that computes the same; its rank is the number of nonzero values, at least 1."""
        left = self.lora_Lambda.nonzero().flatten()
        left = left if len(left) else left.new_zeros(1)
        lora_A, lora_B, dropout = self.lora_A[left], self.lora_B[:, left], self.lora_dropout
        kind, alpha = LAYERS[self.plain], self.scaling * len(left)
        self.strip_()
        lora = kind.upgrade_(self, rank=len(left), alpha=alpha, dropout=dropout)
        lora.lora_A.copy_(lora_A)
        lora.lora_B.copy_(lora_B)


class AdaLoraLinear(AdaLoraLayer, LoraLinear):
    """See `AdaLoraLayer`."""


class AdaLoraConv1D(AdaLoraLayer, LoraConv1D):
    """See `AdaLoraLayer`."""


class AdaLoraConv1d(AdaLoraLayer, LoraConv1d):
    """See `AdaLoraLayer`."""


class AdaLoraConv2d(AdaLoraLayer, LoraConv2d):
    """See `AdaLoraLayer`."""


class AdaLoraConv3d(AdaLoraLayer, LoraConv3d):
    """See `AdaLoraLayer`."""


ADALORA_LAYERS: dict[type[nn.Module], type[AdaLoraLayer]] = {
    layer.plain: layer for layer in (AdaLoraLinear, AdaLoraConv1D, AdaLoraConv1d, AdaLoraConv2d, AdaLoraConv3d)
}
"""The AdaLoRA class of each class of layer."""
