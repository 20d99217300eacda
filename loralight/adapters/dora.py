"""DoRA: Liu et al., 2024, https://arxiv.org/abs/2402.09353."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from loralight.adapters.dora_layers import DORA_LAYERS
from loralight.adapters.lora_layers import LoraLayer
from loralight.adapters.low_rank import LowRankAdapter


@dataclass(frozen=True, kw_only=True)
class Dora(LowRankAdapter):
    """Low-rank updates of the directions of frozen weights, whose magnitudes learn beside them.

    Merged, it costs nothing; in training a layer keeps one more activation than LoRA's, its output.
    """

    layers: ClassVar[Mapping[type[nn.Module], type[LoraLayer]]] = DORA_LAYERS

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        config = super().peft_config(model)
        return None if config is None else {**config, "use_dora": True}
