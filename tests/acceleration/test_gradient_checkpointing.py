"""Gradient checkpointing changes no gradient, reaches every adapter, keeps less, and is refused where it cannot be."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM

from loralight.acceleration.gradient_checkpointing import recompute_
from loralight.adapters import Lora, inject
from loralight.adapters.base import trainable
from loralight.errors import InputError

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
ENDS = {"bos_token_id": None, "eos_token_id": None}
MODELS: dict[str, Any] = {
    "BERT": lambda: BertModel(BertConfig(**SIZES), add_pooling_layer=False),  # dropout 0.1
    "GPT-2": lambda: GPT2Model(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=50, **ENDS)),
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "ViT": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=3, num_heads=2, proj_drop_rate=0.1
    ),
    "ResNet": lambda: timm.create_model("test_resnet"),
}


def adapted(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]()
    inject(model, Lora(targets="all" if name == "ResNet" else "all-linear", dropout=0.1))
    for parameter in trainable(model).values():
        nn.init.normal_(parameter, std=0.1)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def gradients(model: nn.Module, name: str) -> tuple[dict[str, Tensor], int]:
    """Gradients of what learns, and the bytes that were kept for them."""
    torch.manual_seed(1)
    given: Any = torch.randn(2, 3, 32, 32) if name in ("ViT", "ResNet") else torch.randint(0, 50, (2, 30))
    arguments = {"use_cache": False} if name in ("GPT-2", "Llama") else {}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = model(given, **arguments)
    (y if isinstance(y, Tensor) else y[0]).square().mean().backward()
    found = {name: parameter.grad for name, parameter in trainable(model).items() if parameter.grad is not None}
    return found, sum({t.data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same_bit_for_bit_and_reach_every_adapter_for_less_memory(name: str) -> None:
    model = adapted(name)
    twin = copy.deepcopy(model)
    recompute_(model, [])
    (expected, before), (found, after) = gradients(twin, name), gradients(model, name)
    assert found.keys() == expected.keys() == trainable(model).keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert after < 0.7 * before, "less is kept"


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Llama"])
def test_nothing_below_the_lowest_adapter_goes_backwards(name: str) -> None:
    model = adapted(name)
    recompute_(model, [])
    seen: list[Tensor] = []
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    embedding.register_forward_hook(lambda module, given, output: seen.append(output))
    gradients(model, name)
    assert seen and not seen[0].requires_grad


def test_a_model_of_no_library_is_refused_by_its_class() -> None:
    with pytest.raises(InputError, match=r"E-RECOMPUTE.*Sequential is no model of transformers or timm"):
        recompute_(nn.Sequential(nn.Linear(2, 2)), [])


def test_a_class_without_the_switch_is_refused_by_its_name() -> None:
    class Without(BertModel):
        supports_gradient_checkpointing = False

    with pytest.raises(InputError, match=r"E-RECOMPUTE.*Without does not recompute its blocks"):
        recompute_(Without(BertConfig(**SIZES)), [])


def test_what_would_silently_keep_everything_is_refused() -> None:
    model = adapted("BERT")
    with pytest.raises(InputError, match=r"E-RECOMPUTE.*task\.base_dropout=false"):
        recompute_(model, list(model.modules()))


def test_statistics_that_would_be_counted_twice_are_refused() -> None:
    model = adapted("ResNet").train()
    with pytest.raises(InputError, match=r"E-RECOMPUTE.*count each batch twice"):
        recompute_(model, [])
