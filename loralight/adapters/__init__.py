"""Adapters: a few trainable parameters for a frozen model."""

from loralight.adapters.base import Adapter, Added, trainable
from loralight.adapters.disabled import Switchable, as_computed, disabled, is_off
from loralight.adapters.inject import inject, merge
from loralight.adapters.layers.lora import LoraLayer, LoraLinear
from loralight.adapters.methods.adalora import AdaLora
from loralight.adapters.methods.bitfit import BitFit
from loralight.adapters.methods.bottleneck import Houlsby, Parallel, Pfeiffer
from loralight.adapters.methods.dora import Dora
from loralight.adapters.methods.full import FullFineTuning
from loralight.adapters.methods.ia3 import IA3
from loralight.adapters.methods.last_layers import LastLayers
from loralight.adapters.methods.linear_probe import LinearProbe
from loralight.adapters.methods.lora import Lora
from loralight.adapters.methods.lora_fa import LoraFA
from loralight.adapters.methods.low_rank import choose
from loralight.adapters.methods.norm_tuning import NormTuning
from loralight.adapters.methods.peft import PeftMethod
from loralight.adapters.methods.prefix_tuning import PrefixTuning
from loralight.adapters.methods.prompt_tuning import PromptTuning
from loralight.adapters.methods.vera import Vera

__all__ = [
    "IA3",
    "AdaLora",
    "Adapter",
    "Added",
    "BitFit",
    "Dora",
    "FullFineTuning",
    "Houlsby",
    "LastLayers",
    "LinearProbe",
    "Lora",
    "LoraFA",
    "LoraLayer",
    "LoraLinear",
    "NormTuning",
    "Parallel",
    "PeftMethod",
    "Pfeiffer",
    "PrefixTuning",
    "PromptTuning",
    "Switchable",
    "Vera",
    "as_computed",
    "choose",
    "disabled",
    "inject",
    "is_off",
    "merge",
    "trainable",
]
