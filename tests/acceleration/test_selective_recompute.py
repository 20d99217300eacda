"""Selective recomputation changes no gradient, keeps less, and notices what it could not make again."""

import copy
import gc
from typing import Any
from weakref import ref

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
)

from loralight.acceleration.selective_recompute import selective_recompute
from loralight.adapters import Lora, inject
from loralight.adapters.base import trainable
from loralight.training.footprint import Memory

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
ENDS = {"bos_token_id": None, "eos_token_id": None}
SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
MODELS: dict[str, Any] = {
    "BERT": lambda: BertModel(BertConfig(**SIZES), add_pooling_layer=False),  # dropout 0.1
    "ModernBERT": lambda: ModernBertModel(ModernBertConfig(**SIZES, **SPECIAL)),
    "GPT-2": lambda: GPT2Model(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=50, **ENDS)),
    "Llama": lambda: LlamaModel(LlamaConfig(**SIZES)),
    "ViT": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=3, num_heads=2),
    "ConvNeXt": lambda: timm.create_model("test_convnext"),
    "EfficientNet": lambda: timm.create_model("test_efficientnet"),  # its activations work in place
    "ResNet": lambda: timm.create_model("test_resnet"),
}
LESS = {"BERT": 0.9, "ModernBERT": 0.93, "GPT-2": 0.93, "Llama": 0.8, "ViT": 0.96}  # small models keep much else


def adapted(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = MODELS[name]()
    inject(model, Lora(targets="all" if name in ("ResNet", "EfficientNet", "ConvNeXt") else "all-linear"))
    for parameter in trainable(model).values():
        nn.init.normal_(parameter, std=0.1)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def inputs_of(name: str) -> Tensor:
    torch.manual_seed(1)
    images = name in ("ViT", "ResNet", "ConvNeXt", "EfficientNet")
    return torch.randn(2, 3, 32, 32) if images else torch.randint(0, 50, (2, 30))


def loss_of(model: nn.Module, name: str) -> Tensor:
    arguments = {"use_cache": False} if name in ("GPT-2", "Llama") else {}
    y = model(inputs_of(name), **arguments)
    return (y if isinstance(y, Tensor) else y[0]).square().mean()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in trainable(model).items() if parameter.grad is not None}


@pytest.mark.parametrize("precision", ["float32", "autocast"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same_bit_for_bit(name: str, precision: str) -> None:
    model = adapted(name)
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        expected = loss_of(twin, name)
        with selective_recompute(model):
            found = loss_of(model, name)
    expected.backward()
    found.backward()
    assert torch.equal(found, expected)
    assert gradients(model).keys() == gradients(twin).keys() == trainable(model).keys()
    for of, gradient in gradients(model).items():
        assert torch.equal(gradient, gradients(twin)[of]), of


@pytest.mark.parametrize("name", LESS)
def test_less_is_kept(name: str) -> None:
    model = adapted(name)
    with Memory() as memory:
        loss = loss_of(model, name)
        plain = memory.bytes
    del loss
    with Memory() as memory, selective_recompute(model):
        loss = loss_of(model, name)
        selective = memory.bytes
    assert loss.requires_grad
    assert 0 < selective < LESS[name] * plain


def test_nothing_stays_on_the_model_or_in_memory() -> None:
    model = adapted("Llama")
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    gc.collect()
    gc.disable()
    try:
        seen: list[Any] = []
        handle = model.layers[1].mlp.act_fn.register_forward_hook(lambda *given: seen.append(ref(given[2])))
        with selective_recompute(model):
            loss_of(model, "Llama").backward()
        handle.remove()
        assert len(seen) == 1 and seen[0]() is None, "freed without a search for cycles"
    finally:
        gc.enable()
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_nothing_stays_where_a_part_of_the_model_is_not_read() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 8), "norm": nn.LayerNorm(8), "pooler": nn.Linear(8, 8)})
    gc.collect()
    gc.disable()
    try:
        with selective_recompute(model):
            hidden = model["norm"](model["body"](torch.randn(2, 4)))
            kept = ref(torch.tanh(model["pooler"](hidden)))  # keeps its result, and nobody reads it
            hidden.sum().backward()
        assert kept() is None
    finally:
        gc.enable()


def test_a_second_pass_backwards_gives_the_same() -> None:
    model = adapted("Llama")
    with selective_recompute(model):
        loss = loss_of(model, "Llama")
    first, second = (torch.autograd.grad(loss, list(trainable(model).values()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


class Gated(nn.Module):
    """Has the parts of a gated block, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).clamp(max=0.1))
        return y


class InPlace(nn.Module):
    """Writes to what its norm was given, or has made, before the product has used it."""

    def __init__(self, *, to_output: bool) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.to_output = to_output

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.norm(x)
        if self.to_output:
            y.mul_(2)
        z: Tensor = self.last(y)
        if not self.to_output:
            x.mul_(2)
        return z


@pytest.mark.parametrize("make", [Gated, lambda: InPlace(to_output=True)], ids=["gated", "in place"])
def test_what_only_looks_as_if_it_could_be_made_again_is_kept(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    x = torch.randn(3, 4)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with selective_recompute(model):
        loss = model(x).square().sum()
    assert all(map(torch.equal, torch.autograd.grad(loss, list(model.parameters())), expected))


def test_a_tensor_that_was_written_to_is_an_error_as_it_is_without() -> None:
    model = InPlace(to_output=False)
    with pytest.raises(RuntimeError, match="inplace operation"):
        model(torch.randn(3, 4)).sum().backward()
    with selective_recompute(model):
        loss = model(torch.randn(3, 4)).sum()
    with pytest.raises(RuntimeError, match=r"shape \(3, 4\).*written to in place"):
        loss.backward()


def test_a_compiled_model_is_left_alone() -> None:
    model = adapted("Llama")
    model.compile(backend="eager")
    with selective_recompute(model):
        assert not any(module._forward_hooks for module in model.modules())
