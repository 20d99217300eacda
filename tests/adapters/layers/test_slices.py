"""LoRA on slices of fused projections computes what an update of each slice by itself would."""

import copy
import random
from typing import Any

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model
from transformers.pytorch_utils import Conv1D

from loralight.adapters import Lora, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers import lora as lora_layers
from loralight.adapters.layers.slices import SLICED, SlicedLayer
from loralight.errors import InputError
from loralight.kernels import linear as kernels

HALF = {torch.float16: 3e-3, torch.bfloat16: 2e-2}
many = pytest.mark.parametrize("num_specs", [60, pytest.param(500, marks=pytest.mark.slow)])
kinds = pytest.mark.parametrize("kind", SLICED, ids=lambda kind: kind.__name__)


def draw_layer(draw: random.Random, kind: type[nn.Module]) -> tuple[nn.Module, Tensor, str]:
    """A fused layer, an input, and the slices to adapt, in any order."""
    width = draw.randint(1, 16)
    layer = Conv1D(3 * width, width) if kind is Conv1D else nn.Linear(width, 3 * width, bias=draw.random() < 0.5)
    shape = [draw.randint(1, 4) for _ in range(draw.randint(1, 3))]
    return layer, torch.randn(*shape, width), "".join(draw.sample("qkv", draw.randint(1, 3)))


def disturbed(layer: nn.Module, slices: str, rank: int, alpha: float = 1.5) -> SlicedLayer:
    adapted = SLICED[type(layer)].upgrade_(layer.requires_grad_(False), slices=slices, rank=rank, alpha=alpha)
    nn.init.normal_(adapted.lora_A)
    nn.init.normal_(adapted.lora_B)
    return adapted


def dense_weight(plain: Any, slices: str, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The weight with each chosen slice's own B A, in the layout of ``plain``."""
    rows = list((plain.weight.T if isinstance(plain, Conv1D) else plain.weight).chunk(3))
    chosen = sorted(slices, key="qkv".index)
    for name, a_i, b_i in zip(chosen, a.chunk(len(chosen)), b.chunk(len(chosen)), strict=True):
        rows["qkv".index(name)] = rows["qkv".index(name)] + scaling * b_i @ a_i
    weight = torch.cat(rows)
    return weight.T if isinstance(plain, Conv1D) else weight


@many
@kinds
def test_random_layers_compute_what_the_definition_says_and_merge_to_it(kind: type[nn.Module], num_specs: int) -> None:
    draw = random.Random(kind.__name__)
    torch.manual_seed(0)
    for _ in range(num_specs):
        plain, x, slices = draw_layer(draw, kind)
        rank = draw.randint(1, 5)
        fresh = SLICED[kind].upgrade_(copy.deepcopy(plain), slices=slices, rank=rank, alpha=2.0 * rank)
        assert torch.equal(fresh(x), plain(x)), plain
        adapted = disturbed(copy.deepcopy(plain), slices, rank)
        assert adapted.lora_A.shape == (len(slices) * rank, x.shape[-1])
        exact = copy.deepcopy(plain).double()
        weight = dense_weight(exact, slices, adapted.lora_A.double(), adapted.lora_B.double(), 1.5 / rank)
        expected = torch.func.functional_call(exact, {"weight": weight}, x.double())
        scale = expected.norm() + x.norm()
        assert (adapted(x) - expected).norm() <= 2e-6 * scale, plain
        adapted.merge_()
        assert type(adapted) is kind and vars(adapted).keys() == vars(plain).keys()
        assert adapted.state_dict().keys() == plain.state_dict().keys()
        assert (adapted(x) - expected).norm() <= 2e-6 * scale, plain


@pytest.mark.parametrize("fast", [True, False])
@kinds
def test_gradients_are_those_of_the_dense_formula(
    kind: type[nn.Module], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(lora_layers, "linear_can_be_fused", lambda *_: False)
    draw = random.Random(1)
    torch.manual_seed(0)
    for _ in range(20):
        plain, x, slices = draw_layer(draw, kind)
        plain.double().requires_grad_(False)
        x = x.double().requires_grad_()
        adapted = disturbed(copy.deepcopy(plain), slices, 3)
        leaves = [adapted.lora_A, adapted.lora_B, x]
        weight = dense_weight(plain, slices, adapted.lora_A, adapted.lora_B, 0.5)
        expected, found = torch.func.functional_call(plain, {"weight": weight}, x), adapted(x)
        upstream = torch.randn_like(found)
        theirs, ours = (torch.autograd.grad(y, leaves, upstream) for y in (expected, found))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@kinds
def test_the_fast_path_is_taken(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fast = kernels.lora_linear
    monkeypatch.setattr(lora_layers, "lora_linear", lambda *a: (calls.append(1), fast(*a))[1])
    plain = nn.Linear(4, 12) if kind is nn.Linear else Conv1D(12, 4)
    disturbed(plain.requires_grad_(False), "qv", 2)(torch.randn(3, 4))
    assert calls


@pytest.mark.parametrize("dtype", HALF, ids=str)
@kinds
def test_layers_in_half_precision_agree_with_their_merged_selves(kind: type[nn.Module], dtype: torch.dtype) -> None:
    draw = random.Random(3)
    torch.manual_seed(0)
    for _ in range(20):
        plain, x, slices = draw_layer(draw, kind)
        plain, x = plain.to(dtype), x.to(dtype)
        base = plain(x).double()
        adapted = disturbed(copy.deepcopy(plain), slices, 2)
        before = adapted(x)
        assert before.dtype is dtype and adapted.lora_A.dtype is torch.float32
        adapted.merge_()
        assert (adapted(x).double() - before).norm() <= HALF[dtype] * (base.norm() + (before - base).norm()), plain


@kinds
def test_peft_computes_the_same_with_the_slices_as_blocks_of_one_update(kind: type[nn.Module]) -> None:
    draw = random.Random(4)
    for _ in range(10):
        plain, x, slices = draw_layer(draw, kind)
        model, adapter = nn.Sequential(copy.deepcopy(plain)), Lora(targets="0", slices={"0": slices}, rank=2, alpha=3)
        inject(model, adapter)
        layer: Any = model[0]
        nn.init.normal_(layer.lora_B)
        blocks = torch.zeros(3 * x.shape[-1], 2 * len(slices))
        for number, name in enumerate(sorted(slices, key="qkv".index)):
            place = "qkv".index(name) * x.shape[-1]
            rows = slice(place, place + x.shape[-1])
            blocks[rows, 2 * number : 2 * number + 2] = layer.lora_B.chunk(len(slices))[number]
        config = LoraConfig(
            r=2 * len(slices), lora_alpha=3 * len(slices), target_modules=["0"], fan_in_fan_out=kind is Conv1D
        )
        theirs = get_peft_model(nn.Sequential(copy.deepcopy(plain)), config)  # type: ignore[arg-type]
        for name, tensor in {"lora_A": layer.lora_A, "lora_B": blocks}.items():
            theirs.get_parameter(f"base_model.model.0.{name}.default.weight").data.copy_(tensor)
        torch.testing.assert_close(model(x), theirs(x), rtol=1e-4, atol=1e-4)
        assert adapter.peft_config(model) is None, "PEFT's B has another shape"


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=8, depth=2, num_heads=2, num_classes=3, pretrained=False
    ).eval()


def gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2, n_positions=16)).eval()


@pytest.mark.parametrize(("build", "fused", "plain"), [(vit, "*.qkv", "*.fc1"), (gpt2, "*.c_attn", "*.c_fc")])
def test_in_a_model_the_keys_that_were_left_out_stay_what_they_were(build: Any, fused: str, plain: str) -> None:
    base = build()
    model, adapter = copy.deepcopy(base), Lora(targets=[fused, plain], slices={fused: "vq"}, rank=2, lr_ratio_B=4)
    inject(model, adapter)
    x = torch.randn(2, 3, 32, 32) if build is vit else torch.randint(50, (2, 7))

    def out(model: nn.Module) -> Tensor:
        y = model(x)
        return y if isinstance(y, Tensor) else y.last_hidden_state

    assert torch.equal(out(model), out(base))
    for parameter in trainable(model).values():
        nn.init.normal_(parameter, std=0.3)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SlicedLayer)}
    assert len(layers) == 2 and {layer.slices for layer in layers.values()} == {"qv"}
    assert len(adapter.lr_factors(model)) == 4
    before = out(model)
    assert torch.equal(out(copy.deepcopy(model)), before)
    merge(model)
    assert (out(model) - before).norm() <= 2e-6 * before.norm()
    for name in layers:
        axis = 0 if build is vit else 1
        old, new = (m.get_submodule(name).weight.chunk(3, axis) for m in (base, model))
        assert [torch.equal(*pair) for pair in zip(old, new, strict=True)] == [False, True, False]


def test_dropout_is_on_the_low_rank_path_alone() -> None:
    plain = nn.Linear(50, 150)
    layer = SLICED[nn.Linear].upgrade_(copy.deepcopy(plain), slices="k", rank=2, alpha=2, dropout=0.5)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(20, 50)
    changed = layer(x) - plain(x)
    assert not changed[:, :50].any() and not changed[:, 100:].any()
    assert not torch.equal(layer(x), layer(x)) and torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("chosen", ["", "x", "qq", "q,v", ["q"], None, 3])
def test_what_is_no_choice_of_slices_is_refused(chosen: Any) -> None:
    with pytest.raises(InputError, match=r"E-SLICES: adapter.slices\[\*.qkv\] is .*such as qv"):
        Lora(targets="all", slices={"*.qkv": chosen})


@pytest.mark.parametrize(
    ("layer", "slices", "message"),
    [
        (nn.Linear(8, 16), "qv", "E-SLICES: adapter.slices: 0 takes 8 numbers and gives 16"),
        (nn.Linear(8, 24), "qo", "E-SLICES: adapter.slices: 0 .*o only in nn.MultiheadAttention"),
        (nn.Linear(24, 8), "qv", "E-SLICES: adapter.slices: 0 takes 24 numbers and gives 8"),
        (nn.Conv1d(8, 24, 1), "qv", r"E-SLICES: adapter.slices: 0 \(Conv1d\) has no slices"),
    ],
    ids=str,
)
def test_a_layer_without_such_slices_is_refused(layer: nn.Module, slices: str, message: str) -> None:
    model = nn.Sequential(layer, nn.Linear(3, 3))
    with pytest.raises(InputError, match=message):
        inject(model, Lora(targets=["1", "0"], slices={"0": slices}))
    assert type(model[1]) is nn.Linear


def test_a_pattern_of_slices_that_matches_no_adapted_layer_is_refused() -> None:
    with pytest.raises(InputError, match=r"E-TARGET-NONE: adapter.slices: '\*.qvk'"):
        inject(vit(), Lora(targets="attention", slices={"*.qvk": "qv"}))
