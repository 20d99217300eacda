"""Adapters: the few parameters that learn beside a frozen model."""

from loralight.adapters.base import Adapter, inject, merge
from loralight.adapters.full import FullFineTuning
from loralight.adapters.linear_probe import LinearProbe
from loralight.adapters.lora import Lora
from loralight.adapters.lora_layers import LoraLayer, LoraLinear
from loralight.adapters.peft import PeftMethod

__all__ = [
    "Adapter",
    "FullFineTuning",
    "LinearProbe",
    "Lora",
    "LoraLayer",
    "LoraLinear",
    "PeftMethod",
    "inject",
    "merge",
]
