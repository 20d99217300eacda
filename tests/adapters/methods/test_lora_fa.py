import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralight.adapters import Lora, LoraFA, inject
from loralight.adapters.base import trainable

LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (nn.Linear(20, 11), (3, 7, 20)),
    (nn.Conv2d(4, 6, 3), (2, 4, 8, 8)),
    (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
]


@pytest.mark.parametrize(("plain", "shape"), LAYERS, ids=["linear", "convolution", "grouped"])
def test_b_has_the_gradient_it_has_in_lora_and_a_none(plain: nn.Module, shape: tuple[int, ...]) -> None:
    frozen, free = (nn.Sequential(copy.deepcopy(plain)).double() for _ in range(2))
    inject(frozen, LoraFA(targets="0", rank=3))
    inject(free, Lora(targets="0", rank=3))
    nn.init.normal_(free[0].lora_B)
    frozen[0].lora_A.copy_(free[0].lora_A.detach())
    frozen[0].lora_B.data.copy_(free[0].lora_B)
    x = torch.randn(shape, dtype=torch.float64)
    outputs = [model(x.requires_grad_()) for model in (frozen, free)]
    torch.testing.assert_close(*outputs)
    upstream = torch.randn_like(outputs[0])
    gradients = [
        torch.autograd.grad(y, [x, model[0].lora_B], upstream) for y, model in zip(outputs, (frozen, free), strict=True)
    ]
    torch.testing.assert_close(*gradients)
    assert trainable(frozen).keys() == {"0.lora_B"}
    assert "0.lora_A" in frozen.state_dict()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_linear_layer_keeps_no_input_for_the_backward_pass(dropout: float) -> None:
    model = nn.Sequential(nn.Linear(200, 100))
    inject(model, LoraFA(targets="0", rank=4, dropout=dropout))
    x = torch.randn(50, 200, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        model(x)
    activations = [tensor for tensor in kept if tensor is not model[0].weight and tensor.dtype is not torch.uint8]
    assert max(tensor.numel() for tensor in activations if tensor.data_ptr() != model[0].weight.data_ptr()) <= 4 * 200
    assert not any(tensor.data_ptr() == x.data_ptr() for tensor in kept)


def test_peft_is_told_of_a_lora_adapter() -> None:
    model, adapter = nn.Sequential(nn.Linear(4, 3)), LoraFA(targets="0", rank=2)
    inject(model, adapter)
    config = adapter.peft_config(model)
    assert config is not None and (config["peft_type"], config["r"]) == ("LORA", 2)
    assert adapter.peft_names(model) == {"0.lora_A": "0.lora_A.weight", "0.lora_B": "0.lora_B.weight"}
