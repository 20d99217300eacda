"""Learning rates and gradual unfreezing by depth, for fine-tuning of whole layers."""

from dataclasses import dataclass

from torch import nn

from loralight.adapters.base import Adapter
from loralight.errors import InputError
from loralight.models.blocks import depths


@dataclass(frozen=True, kw_only=True)
class LayerWise(Adapter):
    """A method that trains whole layers; lower layers can have lower learning rates or start later.

    Args:
        layer_decay: ratio of a block's learning rate to that of the block above it: ULMFiT (Howard and Ruder, 2018,
            https://arxiv.org/abs/1801.06146) uses 1/2.6, ELECTRA (Clark et al., 2020,
            https://arxiv.org/abs/2003.10555) 0.8 to 0.9, BEiT (Bao et al., 2021, https://arxiv.org/abs/2106.08254)
            0.65 to 0.85. Layers after the blocks have the full rate, the embeddings the lowest.
        gradual: fraction of the run after which all layers are trained; they start one after the other from the top
            (gradual unfreezing, Howard and Ruder, 2018). Before its start a layer has learning rate 0, but it has
            gradients, which fill the optimizer's moments: no time is saved.
    """

    layer_decay: float = 1.0
    gradual: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise InputError(
                "E-LAYER-DECAY",
                f"adapter.layer_decay is {self.layer_decay!r}; give a number above 0, and up to 1, such as 0.9",
            )
        if not 0 <= self.gradual < 1:
            raise InputError(
                "E-GRADUAL", f"adapter.gradual is {self.gradual!r}; give a fraction of the run: 0 or more, below 1"
            )

    def lr_factors(self, model: nn.Module) -> dict[nn.Parameter, float]:
        if self.layer_decay == 1:
            return {}
        depth_of, top = depths(model)
        return {parameter: self.layer_decay ** (top - depth) for parameter, depth in depth_of.items()}

    def starts(self, model: nn.Module) -> dict[nn.Parameter, float]:
        if self.gradual == 0:
            return {}
        depth_of = {parameter: depth for parameter, depth in depths(model)[0].items() if parameter.requires_grad}
        turns = {depth: turn for turn, depth in enumerate(sorted(set(depth_of.values()), reverse=True))}
        return {parameter: self.gradual * turns[depth] / max(turns.values()) for parameter, depth in depth_of.items()}
