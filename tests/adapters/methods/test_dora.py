import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters import Dora, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers.dora import DORA_LAYERS, DoraLayer
from loralight.artifacts.peft_format import peft_adapter
from loralight.errors import InputError
from loralight.models.quantisation import QuantisedLinear

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (nn.Linear(7, 9), (2, 3, 7)),
    "linear without bias": (nn.Linear(7, 9, bias=False), (5, 7)),
    "of GPT-2": (Conv1D(9, 7), (2, 3, 7)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 8)),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8)),
    "conv2d without bias": (nn.Conv2d(4, 6, (1, 3), bias=False), (2, 4, 8, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
    "without a batch": (nn.Conv2d(4, 6, 3), (4, 8, 8)),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "embedding": (nn.Embedding(12, 6), (2, 5)),
    "embedding with padding": (nn.Embedding(12, 6, padding_idx=1), (2, 5)),
}
PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")
OF_PEFT = [name for name in LAYERS if name not in ("grouped", "without a batch")]


def dora(name: str, **settings: Any) -> tuple[nn.Sequential, Dora, Tensor]:
    plain, shape = LAYERS[name]
    model, adapter = nn.Sequential(copy.deepcopy(plain)).double(), Dora(targets="0", rank=3, alpha=5.0, **settings)
    inject(model, adapter)
    is_embedding = isinstance(plain, nn.Embedding)
    return model, adapter, torch.randint(12, shape) if is_embedding else torch.randn(shape, dtype=torch.float64)


def _split(name: str) -> tuple[str, str]:
    """Where PEFT puts the adapter's name: after that of the tensor, before ``.weight``."""
    part, _, rest = name.partition(".")
    return part, f".{rest}" if rest else ""


def disturb(model: nn.Module) -> None:
    for parameter in trainable(model).values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)


def test_every_kind_of_layer_is_put_to_these_tests() -> None:
    quantised = {QuantisedLinear}  # in tests/test_quantisation.py
    assert {type(plain) for plain, _ in LAYERS.values()} == DORA_LAYERS.keys() - quantised


@pytest.mark.parametrize("name", OF_PEFT)
def test_outputs_and_gradients_are_those_of_peft(name: str) -> None:
    ours, adapter, x = dora(name)
    disturb(ours)
    fields = adapter.peft_config(ours)
    assert fields is not None and fields.pop("peft_type") == "LORA" and fields["use_dora"] is True
    plain: Any = nn.Sequential(copy.deepcopy(LAYERS[name][0])).double()
    theirs = peft.get_peft_model(plain, peft.LoraConfig(**fields)).double()
    renamed = {f"0.{part}": adapter.peft_names(ours).get(f"0.{part}", f"0.{part}.weight") for part in PARTS}
    names = {name: ".default".join(_split(theirs.removeprefix("0."))) for name, theirs in renamed.items()}
    pairs = [(ours.get_parameter(n), theirs.get_parameter(f"base_model.model.0.{t}")) for n, t in names.items()]
    for our, their in pairs:
        assert our.shape == their.shape
        their.data.copy_(our)
    inputs = [x.requires_grad_()] if x.is_floating_point() else []
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, [*inputs, *(our for our, _ in pairs)], upstream)
    wanted = torch.autograd.grad(expected, [*inputs, *(their for _, their in pairs)], upstream)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "embedding"])
def test_peft_writes_and_reads_these_tensors_under_these_names(name: str) -> None:
    ours, adapter, _ = dora(name)
    fields = {key: value for key, value in (adapter.peft_config(ours) or {}).items() if key != "peft_type"}
    plain: Any = nn.Sequential(copy.deepcopy(LAYERS[name][0]))
    theirs = peft.get_peft_model(plain, peft.LoraConfig(**fields))
    renamed = adapter.peft_names(ours)
    ours_by_their_names = {f"base_model.model.{renamed.get(name, name)}" for name in trainable(ours)}
    assert ours_by_their_names == set(peft.get_peft_model_state_dict(theirs))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_with_the_rescaled_weight_and_merges_to_it(name: str) -> None:
    model, _, x = dora(name)
    plain = copy.deepcopy(LAYERS[name][0]).double()
    # bit for bit in float32, as the contract has it; a BLAS may sum half of a convolution's outputs in another order
    torch.testing.assert_close(model(x), plain(x), rtol=1e-14, atol=1e-14)
    disturb(model)
    layer: Any = model[0]
    update = (5.0 / 3) * layer.lora_B.flatten(1) @ layer.lora_A.flatten(1)
    transposed = isinstance(plain, Conv1D | nn.Embedding)
    weight = plain.weight + (update.T if transposed else update.view(plain.weight.shape))
    norm = weight.norm(dim=0) if transposed else weight.flatten(1).norm(dim=1)
    scale = layer.lora_magnitude_vector.flatten() / norm
    weight = weight * (scale if transposed else scale.view(-1, *(1,) * (weight.ndim - 1)))
    plain.weight = nn.Parameter(weight.detach())
    torch.testing.assert_close(model(x), plain(x), rtol=1e-11, atol=1e-11)
    merge(model)
    assert type(layer) is type(plain) and vars(layer).keys() == vars(plain).keys()
    assert not layer._non_persistent_buffers_set
    torch.testing.assert_close(layer.weight, plain.weight, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_moved_or_rescaled_after_it_was_adapted_still_starts_at_the_base(dtype: torch.dtype) -> None:
    """The norm that is kept need not be the one that another device would compute."""
    plain = nn.Linear(500, 70).to(dtype)
    layer = DORA_LAYERS[nn.Linear].upgrade_(copy.deepcopy(plain), rank=4, alpha=8)
    for tensor in (layer.norm, layer.lora_magnitude_vector.data):
        tensor.mul_(1 + 3e-7)
    x = torch.randn(20, 500, dtype=dtype)
    assert torch.equal(layer(x), plain(x))
    assert layer(x).dtype is dtype


def test_the_norm_is_a_constant_to_the_gradient() -> None:
    model, _, x = dora("linear")
    disturb(model)
    layer = model[0]
    assert isinstance(layer, DoraLayer)
    norm = (layer.weight + layer.scaling * layer.lora_B @ layer.lora_A).norm(dim=1).detach()
    frozen = x @ (layer.weight + layer.scaling * layer.lora_B @ layer.lora_A).T * (layer.lora_magnitude_vector / norm)
    for found, expected in zip(
        torch.autograd.grad(layer(x).square().sum(), [layer.lora_A, layer.lora_B]),
        torch.autograd.grad((frozen + layer.bias).square().sum(), [layer.lora_A, layer.lora_B]),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_an_output_whose_weights_are_all_zero_computes_its_bias_and_can_learn() -> None:
    plain = nn.Linear(6, 4)
    plain.weight.data[2] = 0.0
    layer = DORA_LAYERS[nn.Linear].upgrade_(copy.deepcopy(plain), rank=2, alpha=4)
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), plain(x))
    nn.init.normal_(layer.lora_B)
    layer(x).square().sum().backward()
    assert layer(x).isfinite().all() and layer.lora_magnitude_vector.grad.isfinite().all()
    assert layer.lora_magnitude_vector.grad[2] != 0


def test_under_autocast_the_norm_is_as_exact_as_without() -> None:
    layer = DORA_LAYERS[nn.Linear].upgrade_(nn.Linear(60, 40), rank=4, alpha=8)
    nn.init.normal_(layer.lora_B)
    expected = layer.growth()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.growth(), expected)
        assert layer(torch.randn(3, 60)).dtype is torch.bfloat16


def test_peft_loads_an_embedding_and_what_peft_saved_of_one_comes_back(
    load_in_peft: Callable[..., nn.Module], tmp_path: Path
) -> None:
    base = nn.Sequential(nn.Embedding(12, 6, padding_idx=1), nn.Linear(6, 4))
    model, adapter = copy.deepcopy(base), Dora(targets=["0", "1"], rank=3, rank_pattern={"0": 2})
    inject(model, adapter)
    disturb(model)
    theirs, ids = load_in_peft(adapter, model, copy.deepcopy(base)), torch.randint(12, (4, 5))
    torch.testing.assert_close(model(ids), theirs(ids), rtol=1e-4, atol=1e-5)
    theirs.save_pretrained(str(tmp_path / "theirs"))  # type: ignore[operator]
    name, read = peft_adapter(tmp_path / "theirs")
    again = copy.deepcopy(base)
    inject(again, read)
    assert name == "dora" and isinstance(read, Dora)
    names = {f"base_model.model.{read.peft_names(again).get(name, name)}": name for name in trainable(again)}
    tensors = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    again.load_state_dict({names[name]: tensor for name, tensor in tensors.items()}, strict=False)
    assert torch.equal(again(ids), model(ids))


def test_an_embedding_that_shares_its_weight_or_rescales_it_is_refused() -> None:
    tied: Any = nn.Sequential(nn.Embedding(12, 6), nn.Linear(6, 12, bias=False))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match=r"^E-TIED: 0 shares its weight with 1"):
        inject(tied, Dora(targets="embedding"))
    with pytest.raises(InputError, match=r"^E-MAX-NORM: 1 has max_norm=1.0"):
        inject(model := nn.Sequential(nn.Linear(3, 3), nn.Embedding(6, 3, max_norm=1.0)), Dora(targets=["0", "1"]))
    assert type(model[0]) is nn.Linear, "a refused model is not half adapted"
