"""Products by oneDNN, with weights as they are and packed: the same, and packs never older than their weight."""

import copy
import gc
import os
import pickle
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel
from transformers.pytorch_utils import Conv1D

from loralight.acceleration import Facts, FrozenProducts, frozen_linear
from loralight.acceleration.frozen_linear import FrozenConv1D, FrozenLinear, multiply_by_onednn_, prepack_
from loralight.adapters import Lora, inject, merge
from loralight.adapters.base import trainable
from loralight.errors import InputError
from loralight.kernels import onednn


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor of these tests oneDNN is faster, whatever the matrix."""

    def gains(values: Tensor, *, packed: bool = False) -> bool:
        return values.dtype is torch.float32 and onednn.can_multiply(torch.float32)

    monkeypatch.setattr(onednn, "gains", gains)
    monkeypatch.setattr(frozen_linear, "gains", onednn.gains)


class Net(nn.Module):
    """An adapted and a frozen layer of each kind, and two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.adapted = nn.ModuleList([nn.Linear(24, 36), Conv1D(20, 36)])
        self.frozen = nn.ModuleList([nn.Linear(20, 30, bias=False), Conv1D(24, 30)])
        self.embedding, self.output = nn.Embedding(15, 24), nn.Linear(24, 15, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in (*self.adapted, *self.frozen):
            x = layer(x).tanh()
        return self.output(x)


def adapted(**settings: Any) -> nn.Module:
    model = Net()
    inject(model, Lora(targets=["adapted.*", "embedding"], rank=3, **settings))
    for parameter in trainable(model).values():
        nn.init.normal_(parameter, std=0.3)  # larger ones saturate tanh, whose slope then has few digits left
    return model


def gradients(model: nn.Module, num_rows: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    y = model(torch.arange(15).repeat(num_rows).view(-1, 5)[:num_rows])
    return [y.detach(), *torch.autograd.grad(y.sum(), list(trainable(model).values()))]


@pytest.fixture(scope="module")
def has_onednn() -> None:
    """PyTorch has oneDNN here, and so multiplies in float32 by it: what follows is no test elsewhere."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch was built without oneDNN")
    assert onednn.can_multiply(torch.float32)  # tried on a small matrix


@pytest.fixture
def bf16_by_onednn(has_onednn: None) -> None:
    """The processor has what oneDNN's products in bf16 need: AVX-512 or AVX-NE-CONVERT on x86, say."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no products in bf16 on this processor")
    assert onednn.can_multiply(torch.bfloat16)


@pytest.fixture
def packed(has_onednn: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the matrices that are multiplied packed."""
    shapes: list[tuple[int, ...]] = []
    plain = onednn.PackedMatrix.linear

    def linear(self: onednn.PackedMatrix, x: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(tuple(self.values.shape))
        return plain(self, x, bias)

    monkeypatch.setattr(onednn.PackedMatrix, "linear", linear)
    return shapes


@pytest.fixture
def by_onednn(has_onednn: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs that oneDNN multiplies."""
    shapes: list[tuple[int, ...]] = []
    plain = onednn._linear

    def linear(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(tuple(x.shape))
        return plain(x, matrix, bias)

    monkeypatch.setattr(onednn, "_linear", linear)
    return shapes


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_training_by_onednn_computes_what_it_does_without(
    dropout: float, by_onednn: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(dropout=dropout)
    multiply_by_onednn_(model)
    assert [type(layer) for layer in model.frozen] == [FrozenLinear, FrozenConv1D]
    found = gradients(model, 16)
    assert by_onednn == [(80, n) for n in (24, 36, 20, 30, 24, 15, 24, 30, 20, 36)], "forwards, then backwards"
    by_onednn.clear()
    monkeypatch.setattr(onednn, "can_multiply", lambda dtype: False)
    for ours, theirs in zip(found, gradients(model, 16), strict=True):
        assert (ours - theirs).norm() <= 2e-6 * theirs.norm()
    assert not by_onednn


def test_few_rows_and_other_dtypes_are_multiplied_as_ever(by_onednn: list[tuple[int, ...]]) -> None:
    few, wide = adapted(), adapted().double()
    for model, num_rows in ((few, 12), (wide, 16)):
        multiply_by_onednn_(model)
        gradients(model, num_rows)
    with torch.autocast("cpu", torch.bfloat16):
        gradients(few, 16)
    assert not by_onednn


def test_evaluation_is_not_by_onednn(by_onednn: list[tuple[int, ...]]) -> None:
    model, ids = adapted(), torch.arange(15).repeat(8)
    twin = copy.deepcopy(model)
    multiply_by_onednn_(model)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids), twin.eval()(ids))
    assert not by_onednn


def test_a_frozen_layer_is_the_plain_one_in_all_else(by_onednn: list[tuple[int, ...]]) -> None:
    layer = nn.Linear(6, 4).requires_grad_(False)
    twin = copy.deepcopy(layer)
    multiply_by_onednn_(layer)
    assert layer(torch.randn(0, 6)).shape == (0, 4)
    with pytest.raises(RuntimeError, match="dtype"):
        layer(torch.randn(100, 6, dtype=torch.float64))
    assert not by_onednn
    x = torch.randn(100, 6, requires_grad=True)
    second = []
    for one in (layer, twin):
        (first,) = torch.autograd.grad(one(x).pow(3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert by_onednn
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_training_with_packed_weights_computes_what_it_does_without(
    dropout: float, packed: list[tuple[int, ...]]
) -> None:
    model = adapted(dropout=dropout)
    twin = copy.deepcopy(model)
    prepack_(model)
    assert [type(layer) for layer in model.frozen] == [FrozenLinear, FrozenConv1D]
    for ours, theirs in zip(gradients(model), gradients(twin), strict=True):
        assert (ours - theirs).norm() <= 2e-6 * theirs.norm()
    there = [(36, 24), (20, 36), (30, 20), (24, 30), (15, 24)]
    assert packed == there + [shape[::-1] for shape in reversed(there)], "forwards, then backwards transposed"


def test_under_autocast_weights_are_packed_in_its_dtype_once(
    bf16_by_onednn: None, packed: list[tuple[int, ...]]
) -> None:
    model = adapted()
    twin = copy.deepcopy(model)
    prepack_(model)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = gradients(model), gradients(twin)
    assert len(packed) == 10
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype is theirs.dtype and (ours - theirs).norm() <= 0.02 * theirs.norm()
    entry = onednn._entries[model.adapted[0].weight]
    assert list(entry.matrices.weight.packed) == list(entry.matrices.transposed.packed) == [torch.bfloat16]


def test_evaluation_is_that_without_packs_bit_for_bit(packed: list[tuple[int, ...]]) -> None:
    model, ids = adapted(), torch.arange(15)
    twin = copy.deepcopy(model)
    prepack_(model)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids), twin.eval()(ids))
    assert not packed


def test_nothing_is_packed_before_it_is_used() -> None:
    model = adapted()
    prepack_(model)
    assert onednn._entries[model.adapted[0].weight] is None
    model.adapted[0](torch.randn(2, 24))
    entry = onednn._entries[model.adapted[0].weight]
    assert entry.matrices.weight.packed and not entry.matrices.transposed.packed, "the backward pass has not been"


def test_what_is_saved_copied_or_pickled_has_no_packs(packed: list[tuple[int, ...]]) -> None:
    model = adapted()
    keys = model.state_dict().keys()
    prepack_(model)
    gradients(model)
    assert model.state_dict().keys() == keys
    packed.clear()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        gradients(twin)
        assert twin.adapted[0].weight not in onednn._entries and not packed
        prepack_(twin)
        gradients(twin)
        assert packed
        packed.clear()


@pytest.mark.parametrize("change", ["in place", "other numbers", "loaded", "cast and back"])
def test_packs_are_made_anew_when_their_weight_changes(change: str) -> None:
    model = adapted()
    prepack_(model)
    gradients(model)
    layers = (model.adapted[0], model.frozen[1])
    for layer in layers:
        if change == "in place":
            with torch.no_grad():
                layer.weight.mul_(2)
        elif change == "other numbers":
            layer.weight.data = layer.weight.data * 2
        elif change == "loaded":
            layer.load_state_dict({**layer.state_dict(), "weight": layer.weight * 3})
        else:
            layer.to(torch.bfloat16).to(torch.float32)
    twin = copy.deepcopy(model)
    for ours, theirs in zip(gradients(model), gradients(twin), strict=True):
        assert (ours - theirs).norm() <= 2e-6 * theirs.norm()


def test_packs_go_with_their_weight() -> None:
    model = adapted()
    prepack_(model)
    gradients(model)
    gone = weakref.ref(onednn._entries[model.adapted[0].weight].data)
    del model
    gc.collect()
    assert gone() is None


def test_a_merged_model_is_the_plain_model_again(packed: list[tuple[int, ...]]) -> None:
    model = adapted()
    prepack_(model)
    gradients(model)
    before = len(packed)
    weights = [layer.weight for layer in (*model.adapted, *model.frozen, model.output)]
    merge(model)
    assert not any(weight in onednn._entries for weight in weights)
    assert [type(layer) for layer in model.frozen] == [nn.Linear, Conv1D]
    model(torch.arange(4))
    assert len(packed) == before


def test_a_weight_that_learns_after_all_gets_its_gradient() -> None:
    model = adapted()
    prepack_(model)
    for layer in (*model.adapted, *model.frozen):
        layer.weight.requires_grad_()
    model(torch.arange(4)).sum().backward()
    assert all(layer.weight.grad is not None for layer in (*model.adapted, *model.frozen))


def test_slices_of_a_fused_projection_read_its_packs(packed: list[tuple[int, ...]]) -> None:
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=15, n_positions=8, **ends)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    model = GPT2LMHeadModel(config)
    inject(model, Lora(targets=["*.c_attn"], slices={"*.c_attn": "qv"}, rank=2))
    nn.init.normal_(model.transformer.h[0].attn.c_attn.lora_B)
    twin = copy.deepcopy(model)
    prepack_(model)
    results = []
    for one in (model, twin):
        y = one(torch.arange(6)[None]).logits
        results.append([y, *torch.autograd.grad(y.square().sum(), list(trainable(one).values()))])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 2e-6 * theirs.norm()
    assert packed[0] == (48, 16) and len(packed) == 4 + 3, "no vocabulary, and nothing below the adapter goes backwards"


@pytest.mark.parametrize("prepack", [False, True])
def test_where_f_linear_is_as_fast_layers_stay_plain_and_the_report_says_so(
    prepack: bool, by_onednn: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "gains", lambda values, packed=False: False)
    monkeypatch.setattr(frozen_linear, "gains", onednn.gains)
    model = adapted()
    reason = FrozenProducts(prepack=prepack).start_(Facts(model=model))
    assert reason == "F.linear is as fast for these layers on this processor, by a trial"
    assert [type(layer) for layer in model.frozen] == [nn.Linear, Conv1D]
    gradients(model, 16)
    assert not by_onednn


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["in rows", "in columns"])
def test_the_trial_s_ways_compute_the_same(
    packed: bool, order: str, has_onednn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    asked: list[tuple[object, ...]] = []

    def is_faster(*question: object, ways: Any) -> bool:
        asked.append(question)
        torch.testing.assert_close(*(way() for way in ways()), rtol=1e-4, atol=1e-4)
        return True

    monkeypatch.setattr(onednn, "is_faster", is_faster)
    values = torch.randn(192, 128) if order == "in rows" else torch.randn(128, 192).T
    assert onednn.gains(values, packed=packed)
    assert asked == [("oneDNN, packed" if packed else "oneDNN", 192, 128, order)]
    assert not onednn.gains(values.double()) and not onednn.gains(values[:16, :16]) and len(asked) == 1


@pytest.mark.parametrize("case", ["no layer", "elsewhere", "double"])
def test_what_cannot_be_packed_is_refused(case: str) -> None:
    model: nn.Module = nn.Sequential(nn.Conv2d(3, 3, 1)) if case == "no layer" else Net().requires_grad_(False)
    model.to(**{"no layer": {}, "elsewhere": {"device": "meta"}, "double": {"dtype": torch.float64}}[case])
    said = {"no layer": "no frozen linear layer", "elsewhere": "float32 weights on meta", "double": "float64"}[case]
    with pytest.raises(InputError, match=rf"E-PREPACK.*{said}"):
        prepack_(model)
    assert not any(isinstance(layer, FrozenLinear | FrozenConv1D) for layer in model.modules())


@pytest.mark.parametrize(("kind", "kept"), [("bert", False), ("vit", True)])
def test_a_model_of_texts_keeps_the_code_of_few_lengths(
    kind: str, kept: bool, tiny_bert: str, tmp_path: Path, run_command: Callable[..., CompletedProcess[str]]
) -> None:
    """Code kept for each of 1,024 lengths lies between tensors, so that malloc cannot return what these leave."""
    if not onednn.can_multiply(torch.float32):
        pytest.skip("this PyTorch does not multiply by oneDNN here")
    folder = tiny_bert
    if kind == "vit":
        folder = str(tmp_path / "vit")
        ViTModel(
            ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
        ).save_pretrained(folder)
    lines = f"""
from transformers import AutoModel
from loralight.kernels import onednn
from loralight.models import load_model
load_model(AutoModel, {folder!r})
import torch
for length in [*range(1, 100), 1]:
    onednn._linear(torch.ones(length, 8), torch.ones(4, 8), None)
"""
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    told = run_command([sys.executable, "-c", lines], env={**environment, "ONEDNN_VERBOSE": "profile_create"}).stdout
    of_length_1 = [line for line in told.splitlines() if "mb1ic8oc4" in line]
    assert ["create:cache_hit" in line for line in of_length_1] == [False, kept]
