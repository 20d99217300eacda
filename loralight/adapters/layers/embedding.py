"""LoRA on embeddings (Hu et al., 2021, https://arxiv.org/abs/2106.09685, in the authors' loralib)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from loralight.adapters.layers.lora import LoraLayer
from loralight.errors import InputError


class LoraEmbedding(LoraLayer, nn.Embedding):
    """An embedding whose row of token t is ``W[t] + (alpha / rank) B A[:, t]``.

    A starts at zero and B is normal, the reverse of a linear layer. So training B changes neither a token that was
    never seen nor the token of ``padding_idx``, which gets no gradient. Dropout drops the whole update of a token.
    ``scale_grad_by_freq`` applies to A; gradients are dense whatever ``sparse`` says, as most optimizers need them.

    Shapes: x (...) of token ids, lora_A (rank, num_embeddings), lora_B (dim, rank), y (..., dim).
    """

    plain = nn.Embedding
    has_peft_form = True
    peft_parts: ClassVar[Mapping[str, str]] = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}

    @classmethod
    def upgrade_(cls, layer: nn.Module, **settings: Any) -> Self:
        adapted = super().upgrade_(layer, **settings)
        nn.init.zeros_(adapted.lora_A)
        nn.init.normal_(adapted.lora_B)
        return adapted

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, self.num_embeddings), (self.embedding_dim, rank)

    def adapted_forward(self, x: Tensor) -> Tensor:
        y = nn.Embedding.forward(self, x)
        return y + (self.update(x) * self.scaling).to(y.dtype)

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        low = F.embedding(x, lora_A.T, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)
        kept = F.dropout(low.new_ones(*x.shape, 1), self.lora_dropout, self.training)
        return F.linear(low * kept, lora_B)

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.T

    def as_weight(self, matrix: Tensor) -> Tensor:
        return matrix.T


def refuse_rescaling(name: str, layer: Any) -> None:
    """Raise ``E-MAX-NORM`` for an embedding that rescales its rows."""
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        raise InputError(
            "E-MAX-NORM",
            f"{name} has max_norm={layer.max_norm}: it would rescale its frozen rows without their updates; leave it "
            f"out, as by adapter.exclude=[{name}]",
        )
