"""Adapters: the few parameters that learn beside a frozen model."""

from loralight.adapters.base import Adapter, inject, merge
from loralight.adapters.lora import Lora, LoraLinear

__all__ = ["Adapter", "Lora", "LoraLinear", "inject", "merge"]
