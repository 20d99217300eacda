"""Layers whose low-rank update is a random pair of matrices, shared by all, scaled by two vectors of each layer."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters.layers.lora import LoraConv1D, LoraLayer, LoraLinear


class VeraLayer(LoraLayer):
    """``y = W x + diag(b) B diag(d) A x`` with A and B random, frozen and the same for every layer of the family.

    The first layer of the family holds A and B as buffers, as large as the largest layer needs. Each layer uses as many
    of the first rows and columns as it needs.

    Shapes: vera_A (rank, largest in), vera_B (largest out, rank), vera_lambda_d (rank,), vera_lambda_b (out,).
    """

    extras: ClassVar[tuple[str, ...]] = (
        *("vera_lambda_d", "vera_lambda_b", "vera_A", "vera_B", "family"),
        *("rank", "alpha", "lora_dropout"),
    )

    vera_lambda_d: nn.Parameter
    vera_lambda_b: nn.Parameter
    vera_A: Tensor
    vera_B: Tensor
    family: list["VeraLayer"]
    """All layers that share A and B, this one included."""

    @property
    def projections(self) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank) of this layer."""
        out, width = self.as_matrix(self.weight).shape
        return self.family[0].vera_A[:, :width], self.family[0].vera_B[:out]

    @property
    def lora_A(self) -> Tensor:  # type: ignore[override]  # computed, not kept
        return self.vera_lambda_d[:, None] * self.projections[0]

    @property
    def lora_B(self) -> Tensor:  # type: ignore[override]
        return self.vera_lambda_b[:, None] * self.projections[1]

    def adapted_forward(self, x: Tensor) -> Tensor:
        return LoraLayer.adapted_forward(self, x)  # the fast path would compute gradients of A and B

    def update(self, x: Tensor) -> Tensor:
        a, b = self.projections
        return self.vera_lambda_b * F.linear(self.vera_lambda_d * F.linear(x, a), b)

    def hold_(self, vera_A: Tensor, vera_B: Tensor) -> None:
        """Keep the family's A and B."""
        self.register_buffer("vera_A", vera_A)
        self.register_buffer("vera_B", vera_B)

    def merge_(self) -> None:
        family, held = self.family, (self.family[0].vera_A, self.family[0].vera_B)
        super().merge_()
        family.remove(self)
        if family:
            family[0].hold_(*held)  # the holder may be gone


class VeraLinear(VeraLayer, LoraLinear):
    """See `VeraLayer`."""


class VeraConv1D(VeraLayer, LoraConv1D):
    """See `VeraLayer`."""


VERA_LAYERS: dict[type[nn.Module], type[VeraLayer]] = {nn.Linear: VeraLinear, Conv1D: VeraConv1D}
"""The VeRA class of each class of layer."""


def upgrade_(layers: Sequence[nn.Module], *, rank: int, dropout: float, d_initial: float) -> None:
    """Turn ``layers`` into a family: A and B Kaiming-uniform, d as given, b zero, so that outputs start unchanged."""
    family: list[VeraLayer] = []
    for layer in layers:
        layer.__class__ = VERA_LAYERS[type(layer)]
        assert isinstance(layer, VeraLayer)
        like: Any = {"device": layer.weight.device, "dtype": torch.promote_types(layer.weight.dtype, torch.float32)}
        layer.vera_lambda_d = nn.Parameter(torch.full((rank,), d_initial, **like))
        layer.vera_lambda_b = nn.Parameter(torch.zeros(len(layer.as_matrix(layer.weight)), **like))
        layer.rank, layer.alpha, layer.lora_dropout, layer.family = rank, float(rank), dropout, family
        family.append(layer)
    shapes = [layer.as_matrix(layer.weight).shape for layer in family]
    vera_A = torch.empty(rank, max(width for _, width in shapes), **like)
    vera_B = torch.empty(max(out for out, _ in shapes), rank, **like)
    family[0].hold_(nn.init.kaiming_uniform_(vera_A), nn.init.kaiming_uniform_(vera_B))
