"""BitFit: Ben-Zaken et al., 2022, https://arxiv.org/abs/2106.10199."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters.base import Adapter
from loralight.errors import InputError
from loralight.models.blocks import norms

_LAYERS = (nn.Linear, Conv1D, nn.modules.conv._ConvNd)


@dataclass(frozen=True, kw_only=True)
class BitFit(Adapter):
    """Train the biases of all linear layers, convolutions and norms.

    Args:
        lr: learning rate per step; the paper searched 1e-4 to 1e-3.
    """

    lr: float = 1e-3

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        normalising = norms(candidates)
        biases = {
            name: bias
            for name, module in candidates.items()
            if (name in normalising or isinstance(module, _LAYERS))
            and isinstance(bias := getattr(module, "bias", None), nn.Parameter)
        }
        if not biases:
            raise InputError(
                "E-BIAS", f"{type(model).__name__} has no biases outside its head; choose another adapter than bitfit"
            )
        for bias in biases.values():
            bias.requires_grad_(True)
        return {"(biases)": list(biases)}
