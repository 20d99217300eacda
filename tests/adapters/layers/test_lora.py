"""Layers with a low-rank update compute what the plain layer with the weight W + (alpha / rank) B A would."""

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters import Lora, LoraLayer, inject, merge
from loralight.adapters.layers.kinds import KINDS as LAYERS
from loralight.models.quantisation import QuantisedLinear

HALF = {torch.float16: 3e-3, torch.bfloat16: 2e-2}
many = pytest.mark.parametrize("num_specs", [60, pytest.param(500, marks=pytest.mark.slow)])


def linear(draw: random.Random) -> tuple[nn.Module, Tensor]:
    width = draw.randint(1, 40)
    shape = [draw.randint(1, 4) for _ in range(draw.randint(0, 3))]
    return nn.Linear(width, draw.randint(1, 40), bias=draw.random() < 0.5), torch.randn(*shape, width)


def conv1d_of_gpt2(draw: random.Random) -> tuple[nn.Module, Tensor]:
    width, out = draw.randint(1, 40), draw.randint(1, 40)
    layer = Conv1D(out, width)
    nn.init.normal_(layer.bias)
    return layer, torch.randn(*[draw.randint(1, 4) for _ in range(draw.randint(1, 3))], width)


def embedding(draw: random.Random) -> tuple[nn.Module, Tensor]:
    words = draw.randint(1, 40)
    padding = draw.choice([None, draw.randrange(words)])
    shape = [draw.randint(1, 4) for _ in range(draw.randint(0, 3))]
    return nn.Embedding(words, draw.randint(1, 40), padding_idx=padding), torch.randint(words, shape)


def convolution(dimensions: int) -> Callable[[random.Random], tuple[nn.Module, Tensor]]:
    plain: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]

    def build(draw: random.Random) -> tuple[nn.Module, Tensor]:
        groups = draw.choice([1, 1, 2, 3])
        channels = groups * draw.randint(1, 4)
        depthwise = draw.random() < 0.2
        same = draw.random() < 0.3
        # PyTorch warns of the copy that an even kernel needs with padding="same"
        kernel = [draw.choice([1, 3] if same else [1, 2, 3]) for _ in range(dimensions)]
        dilation = [draw.randint(1, 2) for _ in range(dimensions)]
        mode = draw.choice(["zeros", "reflect", "replicate", "circular"])
        stride = [1 if same else draw.randint(1, 3) for _ in range(dimensions)]
        layer = plain(
            channels,
            channels if depthwise else groups * draw.randint(1, 4),
            kernel,
            stride=stride,
            padding="same" if same else [draw.randint(0, 2) for _ in range(dimensions)],
            dilation=dilation,
            groups=channels if depthwise else groups,
            bias=draw.random() < 0.5,
            padding_mode=mode,
        )
        return layer, torch.randn(2, channels, *[draw.randint(6, 9) for _ in range(dimensions)])

    return build


KINDS = {
    nn.Linear: linear,
    Conv1D: conv1d_of_gpt2,
    nn.Embedding: embedding,
    nn.Conv1d: convolution(1),
    nn.Conv2d: convolution(2),
    nn.Conv3d: convolution(3),
}


def disturbed(layer: nn.Module, rank: int, alpha: float) -> LoraLayer:
    """``layer`` with an update as large as training could make it."""
    adapted = LAYERS[type(layer)].upgrade_(layer, rank=rank, alpha=alpha)
    nn.init.normal_(adapted.lora_A)
    nn.init.normal_(adapted.lora_B)
    return adapted


def as_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x  # token ids stay what they are


def size_of(x: Tensor) -> Tensor:
    return x.norm() if x.is_floating_point() else torch.zeros(())


def as_weight(update: Tensor, plain: Any) -> Tensor:
    return update.T if isinstance(plain, Conv1D | nn.Embedding) else update.reshape(plain.weight.shape)


def with_dense_update(plain: nn.Module, adapted: LoraLayer) -> nn.Module:
    """The plain layer with W + (alpha / rank) B A, formed by the definition."""
    dense: Any = copy.deepcopy(plain)
    b, a = adapted.lora_B.flatten(1).double(), adapted.lora_A.flatten(1).double()
    update = torch.einsum("or,ri->oi", b, a) * (adapted.alpha / adapted.rank)
    dense.weight = nn.Parameter(dense.weight.double() + as_weight(update, plain))
    return dense.double()


def test_every_kind_of_layer_is_put_to_these_tests() -> None:
    elsewhere = {nn.MultiheadAttention, QuantisedLinear}  # each in a file of its own
    assert KINDS.keys() | elsewhere == LAYERS.keys()


@many
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_random_layers_compute_what_the_definition_says_and_merge_to_it(kind: type[nn.Module], num_specs: int) -> None:
    draw = random.Random(kind.__name__)
    torch.manual_seed(0)
    for _ in range(num_specs):
        plain, x = KINDS[kind](draw)
        rank = draw.randint(1, 8)
        fresh = LAYERS[kind].upgrade_(copy.deepcopy(plain), rank=rank, alpha=2.0 * rank)
        assert torch.equal(fresh(x), plain(x)), plain
        adapted = disturbed(copy.deepcopy(plain), rank, 1.5)
        expected = with_dense_update(plain, adapted)(as_float(x, torch.float64))
        scale = expected.norm() + size_of(x)
        assert (adapted(x) - expected).norm() <= 2e-6 * scale, plain
        adapted.merge_()
        assert type(adapted) is kind and adapted.state_dict().keys() == plain.state_dict().keys()
        assert (adapted(x) - expected).norm() <= 2e-6 * scale, plain


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_gradients_are_those_of_the_dense_formula(kind: type[nn.Module]) -> None:
    draw = random.Random(1)
    torch.manual_seed(0)
    for _ in range(10):
        plain, x = KINDS[kind](draw)
        plain, x = plain.double(), as_float(x, torch.float64)
        inputs = [x.requires_grad_()] if x.is_floating_point() else []
        adapted = disturbed(copy.deepcopy(plain), 3, 6.0)
        if isinstance(plain, nn.Embedding) and plain.padding_idx is not None:
            nn.init.zeros_(adapted.lora_A[:, plain.padding_idx])  # where it starts, and no gradient goes
        b, a = adapted.lora_B.detach().clone().requires_grad_(), adapted.lora_A.detach().clone().requires_grad_()
        update = b.flatten(1) @ a.flatten(1) * 2.0
        weight = plain.weight + as_weight(update, plain)
        upstream = torch.randn_like(adapted(x))
        expected = torch.autograd.grad(
            (torch.func.functional_call(plain, {"weight": weight}, x) * upstream).sum(), [a, b, *inputs]
        )
        found = torch.autograd.grad((adapted(x) * upstream).sum(), [adapted.lora_A, adapted.lora_B, *inputs])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_layers_in_half_precision_agree_with_their_merged_selves(kind: type[nn.Module], dtype: torch.dtype) -> None:
    draw = random.Random(3)
    torch.manual_seed(0)
    for _ in range(20):
        plain, x = KINDS[kind](draw)
        plain, x = plain.to(dtype), as_float(x, dtype)
        base = plain(x).double()
        adapted = disturbed(copy.deepcopy(plain), 2, 1.0)
        before = adapted(x)
        assert before.dtype is dtype and adapted.lora_A.dtype is adapted.lora_B.dtype is torch.float32
        adapted.merge_()
        error = (adapted(x).double() - before).norm()
        assert error <= HALF[dtype] * (base.norm() + (before - base).norm()), plain


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv1d, Conv1D], ids=lambda kind: kind.__name__)
def test_peft_computes_the_same_with_these_tensors_where_we_say_so(kind: type[nn.Module]) -> None:
    draw = random.Random(2)
    compared = 0
    while compared < 10:
        plain, x = KINDS[kind](draw)
        model = nn.Sequential(copy.deepcopy(plain))
        inject(model, Lora(targets="0", rank=4, alpha=6))
        layer = model[0]
        assert isinstance(layer, LoraLayer)
        if not layer.is_known_to_peft:
            continue
        compared += 1
        nn.init.normal_(layer.lora_B)
        config = Lora(targets="0", rank=4, alpha=6).peft_config(model)
        assert config is not None and config["fan_in_fan_out"] is (kind is Conv1D)
        theirs = get_peft_model(
            nn.Sequential(copy.deepcopy(plain)),  # type: ignore[arg-type]
            LoraConfig(r=4, lora_alpha=6, target_modules=["0"], fan_in_fan_out=config["fan_in_fan_out"]),
        )
        for part, tensor in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            theirs.get_parameter(f"base_model.model.0.{part}.default.weight").data.copy_(tensor)
        torch.testing.assert_close(model(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect", "padding": 1}], ids=str)
def test_no_config_of_pefts_is_given_for_what_peft_computes_otherwise(wrong: dict[str, Any]) -> None:
    adapter = Lora(targets="0", rank=4)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, **wrong))
    inject(model, adapter)
    assert adapter.peft_config(model) is None


def test_layers_of_one_model_are_merged_together() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(6 * 16, 5))
    x = torch.randn(2, 3, 6, 6)
    inject(model, Lora(targets="all", rank=2))
    for layer in (model[0], model[2]):
        assert isinstance(layer, LoraLayer)
        nn.init.normal_(layer.lora_B)
    before = model(x)
    merge(model)
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.Flatten, nn.Linear]
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_a_convolution_takes_an_input_without_a_batch() -> None:
    plain = nn.Conv2d(3, 5, 3).double()
    layer = disturbed(copy.deepcopy(plain), 2, 4.0)
    x = torch.randn(3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer(x[None])[0], rtol=1e-12, atol=1e-12)
