"""Layers whose class extends PyTorch's own compute what its code does with W + (alpha / rank) B A, and merge to it."""

import copy
import importlib
import logging
import pickle
import random
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import FalconConfig, FalconModel

from loralight.adapters import Dora, Lora, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers.extended import EXTENDED, LoraStandardised
from loralight.adapters.layers.kinds import kind_of
from loralight.errors import InputError

CLASSES = pytest.mark.parametrize("name", EXTENDED, ids=lambda name: name.rpartition(".")[2])


def draw_layer(name: str, draw: random.Random) -> tuple[nn.Module, Tensor]:
    """A layer of a class and its input, in double precision."""
    module, _, own = name.rpartition(".")
    kind: Any = getattr(importlib.import_module(module), own)
    if issubclass(kind, nn.Linear):
        width = draw.randint(1, 20)
        layer, x = kind(width, draw.randint(1, 20), bias=draw.random() < 0.5), torch.randn(2, 3, width)
    else:
        groups = draw.choice([1, 1, 2, 3])
        channels, kernel = groups * draw.randint(2, 4), draw.choice([1, 2, 3, 5])
        settings = {"stride": draw.randint(1, 3), "dilation": draw.randint(1, 2), "bias": draw.random() < 0.5}
        if "bit" in module:
            settings["padding"] = draw.choice(["SAME", None])
        layer = kind(channels, groups * draw.randint(2, 4), kernel, groups=groups, **settings)
        x = torch.randn(2, channels, *[draw.randint(10, 13) for _ in range(2)])
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.double(), x.double().requires_grad_()


def adapted_copy(plain: nn.Module, **settings: Any) -> Any:
    return kind_of(plain, None).upgrade_(copy.deepcopy(plain).requires_grad_(False), **settings)


def factors(adapted: nn.Module) -> list[nn.Parameter]:
    """A and B."""
    found = trainable(adapted)
    return [parameter for end in ("lora_A", "lora_B") for name, parameter in found.items() if name.endswith(end)]


def by_definition(plain: Any, a: Tensor, b: Tensor, scaling: float, x: Tensor) -> Tensor:
    """The output of the class's own code with the weight W + scaling B A."""
    weight = plain.weight + scaling * (b.flatten(1) @ a.flatten(1)).view_as(plain.weight)
    output: Tensor = torch.func.functional_call(plain, {"weight": weight}, x)
    return output


@CLASSES
def test_the_output_and_its_gradients_are_those_of_the_class_with_the_updated_weight(name: str) -> None:
    draw = random.Random(name)
    for _ in range(20):
        plain, x = draw_layer(name, draw)
        adapted = adapted_copy(plain, rank=draw.randint(1, 4), alpha=2.0)
        assert torch.equal(adapted(x), plain(x)), "at step 0 it is the plain layer, bit for bit"
        for factor in factors(adapted):
            nn.init.normal_(factor)
        learning = factors(adapted)
        scaling = 2.0 / len(learning[0])
        alike = [factor.detach().clone().requires_grad_() for factor in learning]
        expected = by_definition(plain, alike[0], alike[1], scaling, x)
        found = adapted(x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        upstream = torch.randn_like(found)
        for given, wanted in zip(
            torch.autograd.grad((found * upstream).sum(), [*learning, x]),
            torch.autograd.grad((expected * upstream).sum(), [*alike, x]),
            strict=True,
        ):
            torch.testing.assert_close(given, wanted, rtol=1e-9, atol=1e-9)


@CLASSES
def test_merged_it_is_a_plain_layer_of_its_class_that_computes_the_same(name: str) -> None:
    draw = random.Random(name)
    for _ in range(20):
        plain, x = draw_layer(name, draw)
        adapted = adapted_copy(plain, rank=2, alpha=3.0)
        for factor in factors(adapted):
            nn.init.normal_(factor)
        expected = adapted(x)
        adapted.merge_()
        assert type(adapted) is type(plain) and adapted.state_dict().keys() == plain.state_dict().keys()
        torch.testing.assert_close(adapted(x), expected, rtol=1e-9, atol=1e-9)


@CLASSES
def test_it_can_be_copied_and_pickled(name: str) -> None:
    plain, x = draw_layer(name, random.Random(0))
    plain.pad = None  # transformers' own, which computes a padding, cannot be pickled
    adapted = adapted_copy(plain, rank=2, alpha=3.0)
    for twin in (copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))):
        assert type(twin) is type(adapted)
        assert torch.equal(twin(x), adapted(x))


@CLASSES
def test_dropout_falls_on_the_update_or_is_refused(name: str) -> None:
    plain, x = draw_layer(name, random.Random(3))
    model = nn.Sequential(plain)
    if isinstance(adapted_copy(plain, rank=1, alpha=1.0), LoraStandardised):
        with pytest.raises(InputError, match=r"^E-LAYER: 0 is adapted in its weights alone.*adapter.exclude=\[0\]"):
            inject(model, Lora(targets="all", dropout=0.5))
        return
    inject(model, Lora(targets="all", dropout=0.5))
    for factor in factors(model):
        nn.init.ones_(factor)
    assert not torch.equal(model.train()(x), model.eval()(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("architecture", ["test_nfnet", "test_efficientnet"])
def test_models_with_such_layers_are_adapted_in_all_of_them(architecture: str) -> None:
    model = timm.create_model(architecture)
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}
    hits = inject(model, Lora(targets="all-conv", rank=1))
    assert set(hits["all-conv"]) == convolutions


def test_falcon_is_adapted_in_all_its_layers_and_has_a_form_in_peft() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    model = FalconModel(FalconConfig(**sizes))
    adapter = Lora(targets="all-linear", rank=2)
    hits = inject(model, adapter)
    assert len(hits["all-linear"]) == 4
    assert adapter.peft_config(model) is not None
    merge(model)
    assert {type(module).__name__ for module in model.modules() if isinstance(module, nn.Linear)} == {"FalconLinear"}


class Halved(nn.Linear):
    """A class that nobody knows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def test_layers_of_other_classes_are_counted_by_class_and_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), Halved(4, 4), Halved(4, 4), nn.MultiheadAttention(4, 1))

    with caplog.at_level(logging.INFO, logger="loralight"):
        assert inject(model(), Lora(targets="all-linear", rank=2)) == {"all-linear": ["0"]}
    assert [record.getMessage() for record in caplog.records] == [
        "passed over: 2 Halved, such as 1, which may compute more than a plain layer"
    ]
    with pytest.raises(InputError, match=r"^E-TARGET-NONE: adapter.targets: '1' means 1, a Halved, which extends"):
        inject(model(), Lora(targets="1"))


def test_a_method_that_knows_plain_layers_alone_counts_these_too(caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model("test_nfnet")
    with caplog.at_level(logging.INFO, logger="loralight"):
        inject(model, Dora(targets="all", rank=1))
    assert "passed over" in caplog.text and "ScaledStdConv2d" in caplog.text
