import copy
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters import Vera, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers.vera import VeraLayer


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 7)).double()


def adapted(**settings: Any) -> tuple[nn.Sequential, Vera]:
    model, adapter = build(), Vera(**{"targets": "all-linear", "rank": 5, **settings})
    inject(model, adapter)
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    return model, adapter


def layers(model: nn.Module) -> list[VeraLayer]:
    return [layer for layer in model.modules() if isinstance(layer, VeraLayer)]


def test_outputs_and_gradients_are_those_of_peft() -> None:
    ours, _ = adapted()
    config = peft.VeraConfig(r=5, target_modules=["0", "2", "4"])
    plain: Any = build()
    theirs = peft.get_peft_model(plain, config).double()
    first = layers(ours)[0]
    theirs.base_model.vera_A["default"].copy_(first.vera_A)
    theirs.base_model.vera_B["default"].copy_(first.vera_B)
    pairs = []
    for name, our in trainable(ours).items():
        their = theirs.get_parameter(f"base_model.model.{name}.default")
        their.data.copy_(our)
        pairs.append((our, their))
    assert len(pairs) == len(trainable(theirs))
    x = torch.randn(3, 6, dtype=torch.float64)
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, [our for our, _ in pairs], upstream)
    wanted = torch.autograd.grad(expected, [their for _, their in pairs], upstream)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_the_random_matrices_are_kept_once_and_as_large_as_the_largest_layers_need() -> None:
    model, _ = adapted()
    assert sorted(name for name, _ in model.named_buffers()) == ["0.vera_A", "0.vera_B"]
    assert (model[0].vera_A.shape, model[0].vera_B.shape) == ((5, 9), (9, 5))
    assert sum(parameter.numel() for parameter in trainable(model).values()) == 3 * 5 + 9 + 4 + 7


def test_layers_still_share_after_a_move_and_a_copy() -> None:
    model, _ = adapted()
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = model(x)
    twin = copy.deepcopy(model)
    assert layers(twin)[2].family[0] is twin[0]
    twin.float().double()
    model[0].vera_A.zero_()
    torch.testing.assert_close(twin(x), expected, rtol=1e-5, atol=1e-5)


def test_a_part_can_be_merged_while_the_others_stay() -> None:
    model, _ = adapted()
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = model(x)
    for index in (0, 4, 2):
        merge(model[index])
        assert type(model[index]) is nn.Linear
        torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)
    assert model.state_dict().keys() == build().state_dict().keys()


def test_the_layer_of_gpt2_computes_what_a_linear_layer_does() -> None:
    model, linear = nn.Sequential(Conv1D(5, 3)), nn.Sequential(nn.Linear(3, 5))
    linear[0].weight.data, linear[0].bias.data = model[0].weight.data.T.contiguous(), model[0].bias.data
    outputs: list[Tensor] = []
    for each in (model, linear):
        inject(each, Vera(targets="0", rank=4))
        layer = each[0]
        layer.vera_A.copy_(torch.arange(12.0).view(4, 3) - 5)
        layer.vera_B.copy_(torch.arange(20.0).view(5, 4) - 9)
        nn.init.ones_(layer.vera_lambda_b)
        outputs.append(each(torch.ones(2, 3)))
        merge(each)
        torch.testing.assert_close(each(torch.ones(2, 3)), outputs[-1])
    torch.testing.assert_close(*outputs)
