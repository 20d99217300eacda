"""LoRA on linear layers whose frozen weights are quantised (QLoRA: Dettmers et al., 2023, https://arxiv.org/abs/2305.14314)."""

import torch
from torch import Tensor

from loralight.adapters.layers.lora import LoraLayer, LoraLinear, wide
from loralight.models.quantisation import QuantisedLinear


class LoraQuantisedLinear(LoraLinear, QuantisedLinear):
    """``y = W' x + b + (alpha / rank) B A dropout(x)``, W' unpacked from few bits, A and B as in `LoraLinear`.

    Merging makes it a plain layer: the sum would not fit into the few bits.
    """

    plain = QuantisedLinear
    is_additive = has_peft_form = True

    def adapted_forward(self, x: Tensor) -> Tensor:
        return LoraLayer.adapted_forward(self, x)  # the fast path would keep the unpacked weight

    @torch.no_grad()
    def merge_(self) -> None:
        weight = self.merged(wide(self.weight_dtype)).to(self.weight_dtype)
        self.strip_()
        self.become_plain_(weight)
