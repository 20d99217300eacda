"""Adapters: the few parameters that learn beside a frozen model."""

from loralight.adapters.adalora import AdaLora
from loralight.adapters.base import Adapter, inject, merge
from loralight.adapters.dora import Dora
from loralight.adapters.full import FullFineTuning
from loralight.adapters.linear_probe import LinearProbe
from loralight.adapters.lora import Lora
from loralight.adapters.lora_fa import LoraFA
from loralight.adapters.lora_layers import LoraLayer, LoraLinear
from loralight.adapters.peft import PeftMethod
from loralight.adapters.vera import Vera

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
