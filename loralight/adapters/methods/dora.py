"""DoRA: Liu et al., 2024, https://arxiv.org/abs/2402.09353."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from loralight.adapters.layers.dora import DORA_LAYERS
from loralight.adapters.layers.lora import LoraLayer
from loralight.adapters.methods.low_rank import LowRankAdapter
from loralight.adapters.peft.lora_arguments import lora_arguments


@dataclass(frozen=True, kw_only=True)
class Dora(LowRankAdapter):
    """Low-rank updates of the directions of frozen weights; the weights' magnitudes are trained too.

    After merging it costs nothing; in training a layer keeps one more activation than with LoRA, its output.

    Args:
        targets: patterns of the layers to adapt, one or several: presets (``all``, ``all-linear``, ``all-conv``,
            ``attention``, ``mlp``, ``embedding``), module names, or globs over dotted module names. Each must match.
    """

    layers: ClassVar[Mapping[type[nn.Module], type[LoraLayer]]] = DORA_LAYERS

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> "Dora | None":
        if config.get("peft_type") != "LORA" or not config.get("use_dora"):
            return None
        return cls(**lora_arguments(config, tensors))

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        config = super().peft_config(model)
        return None if config is None else {**config, "use_dora": True}
