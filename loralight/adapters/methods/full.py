"""Full fine-tuning: all parameters are trainable. It is the baseline for adapters."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from loralight.adapters.methods.layer_wise import LayerWise
from loralight.models.blocks import blocks


@dataclass(frozen=True, kw_only=True)
class FullFineTuning(LayerWise):
    """Train all parameters of the model.

    Args:
        lr: learning rate per step; BERT's authors searched 2e-5 to 5e-5 (Devlin et al., 2019,
            https://arxiv.org/abs/1810.04805).
    """

    lr: float = 5e-5

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        if self.layer_decay != 1 or self.gradual:
            blocks(candidates)  # a model without blocks fails here, not after the data has been read
        model.requires_grad_(True)
        return {
            "(all)": [name for name, module in candidates.items() if next(module.parameters(False), None) is not None]
        }
