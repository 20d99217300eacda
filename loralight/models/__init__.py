"""Pretrained models: loading them, their structure, their number formats, packing them into few bits."""

from loralight.models.pretrained import (
    check_causal,
    check_length,
    check_vocabulary,
    load_model,
    load_tokenizer,
    new_head,
)
from loralight.models.shapes import without_weights

__all__ = [
    "check_causal",
    "check_length",
    "check_vocabulary",
    "load_model",
    "load_tokenizer",
    "new_head",
    "without_weights",
]
