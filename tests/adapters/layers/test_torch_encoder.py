"""PyTorch's encoder layers use a fused kernel in evaluation that calls no submodule; adapters in them count still."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from loralight.adapters import Dora, Lora, LoraFA, Vera, inject, merge
from loralight.adapters.base import trainable

TARGETS = ["*.linear1", "*.linear2"]


@pytest.mark.parametrize("method", [Lora, LoraFA, Dora, Vera], ids=lambda method: method.__name__)
def test_an_encoder_layer_computes_in_evaluation_what_it_does_in_training(method: Any) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model, x = nn.Sequential(layer), torch.randn(2, 5, 16)
    inject(model, method(targets=TARGETS, rank=4))
    for parameter in trainable(model).values():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        before = model.eval()(x)
        expected = model.train()(x)
        twin = copy.deepcopy(model).eval()(x)
    merge(model)
    with torch.no_grad():
        merged = model.eval()(x)
    for found in (before, twin, merged):
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert not layer._forward_pre_hooks, "the fused kernel may be used again"
