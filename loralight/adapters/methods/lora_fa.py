"""LoRA-FA: Zhang et al., 2023, https://arxiv.org/abs/2308.03303."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from loralight.adapters.layers.lora import LAYERS, LoraLayer
from loralight.adapters.layers.quantised import LoraQuantisedLinear
from loralight.adapters.methods.low_rank import LowRankAdapter
from loralight.models.quantisation import QuantisedLinear


@dataclass(frozen=True, kw_only=True)
class LoraFA(LowRankAdapter):
    """LoRA with A frozen at its random start: for the backward pass a linear layer keeps ``A x``, not its input.

    A is saved with B, so the saved adapter is an ordinary LoRA adapter.
    """

    layers: ClassVar[Mapping[type[nn.Module], type[LoraLayer]]] = {**LAYERS, QuantisedLinear: LoraQuantisedLinear}

    def adapt_(self, layer: nn.Module, *, rank: int, alpha: float) -> LoraLayer:
        adapted = super().adapt_(layer, rank=rank, alpha=alpha)
        drawn = adapted.lora_A.detach()
        del adapted.lora_A
        adapted.register_buffer("lora_A", drawn)
        return adapted
