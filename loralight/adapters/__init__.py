"""Adapters: the few parameters that learn beside a frozen model."""

from loralight.adapters.base import Adapter
from loralight.adapters.inject import inject, merge
from loralight.adapters.layers.lora import LoraLayer, LoraLinear
from loralight.adapters.methods.adalora import AdaLora
from loralight.adapters.methods.dora import Dora
from loralight.adapters.methods.full import FullFineTuning
from loralight.adapters.methods.linear_probe import LinearProbe
from loralight.adapters.methods.lora import Lora
from loralight.adapters.methods.lora_fa import LoraFA
from loralight.adapters.methods.peft import PeftMethod
from loralight.adapters.methods.vera import Vera

__all__ = [
    "AdaLora",
    "Adapter",
    "Dora",
    "FullFineTuning",
    "LinearProbe",
    "Lora",
    "LoraFA",
    "LoraLayer",
    "LoraLinear",
    "PeftMethod",
    "Vera",
    "inject",
    "merge",
]
