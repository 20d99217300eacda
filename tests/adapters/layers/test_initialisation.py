import copy
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters import Lora, LoraLayer, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers.initialisation import INITIALISATIONS
from loralight.errors import InputError

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (nn.Linear(20, 14), (5, 20)),
    "of GPT-2": (Conv1D(14, 20), (5, 20)),
    "conv2d": (nn.Conv2d(6, 8, 3, padding=1), (2, 6, 5, 5)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (2, 6, 5, 5)),
}
WITH_START = ("pissa", "olora")


def adapted(name: str, init: Any, **settings: Any) -> tuple[nn.Sequential, Lora, torch.Tensor]:
    plain, shape = LAYERS[name]
    model, adapter = nn.Sequential(copy.deepcopy(plain)), Lora(**{"targets": "0", "rank": 4, "init": init, **settings})
    inject(model, adapter)
    return model, adapter, torch.randn(shape)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("init", [init for init in INITIALISATIONS if init != "loftq"])
@pytest.mark.parametrize("rank_dropout", [0.0, 0.5])
def test_a_layer_starts_at_the_base_and_learns(name: str, init: str, rank_dropout: float) -> None:
    model, _, x = adapted(name, init, rank_dropout=rank_dropout)
    plain = LAYERS[name][0]
    torch.manual_seed(0)  # not all ranks are dropped
    y = model(x)
    assert torch.equal(y, plain(x)), "in training too"
    assert torch.equal(model[0].weight, plain.weight), "the base's weight is never changed"
    y.square().sum().backward()
    assert model[0].lora_B.grad.any()


@pytest.mark.parametrize("init", WITH_START)
@pytest.mark.parametrize("settings", [{}, {"alpha": 4}, {"use_rslora": True}], ids=str)
def test_the_factors_are_those_of_peft_and_so_is_what_training_makes_of_them(
    init: str, settings: dict[str, Any]
) -> None:
    ours, adapter, x = adapted("linear", init, **settings)
    fields = Lora(**{**vars(adapter), "init": "kaiming"})
    config = fields.peft_config(nn.Sequential()) or {}
    plain: Any = nn.Sequential(copy.deepcopy(LAYERS["linear"][0]))
    wanted = {key: config[key] for key in ("r", "lora_alpha", "use_rslora")}
    theirs = peft.get_peft_model(plain, peft.LoraConfig(target_modules=["0"], init_lora_weights=init, **wanted))
    pairs = []
    for part in ("lora_A", "lora_B"):
        our = ours.get_parameter(f"0.{part}")
        their = theirs.get_parameter(f"base_model.model.0.{part}.default.weight")
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)
        step = torch.randn_like(our) * 0.1
        our.data.add_(step)
        their.data.add_(step)
        pairs.append((our, their))
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, [our for our, _ in pairs], upstream)
    gradients = torch.autograd.grad(expected, [their for _, their in pairs], upstream)
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("init", WITH_START)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_layer_with_a_start_is_kept_as_plain_lora_of_twice_the_rank_and_merges_to_what_it_computes(
    name: str, init: str, use_rslora: bool
) -> None:
    model, adapter, x = adapted(name, init, use_rslora=use_rslora)
    model.double()
    for parameter in trainable(model).values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    expected = model(x.double())
    assert adapter.peft_config(model) is None, "PEFT knows no start"
    kept, merged = adapter.finish_(model), copy.deepcopy(model)
    layer = model[0]
    assert isinstance(kept, Lora) and isinstance(layer, LoraLayer)
    assert kept.init == "kaiming" and layer.rank == 8 and layer.start is None and not list(model.buffers())
    torch.testing.assert_close(model(x.double()), expected, rtol=1e-10, atol=1e-10)
    rebuilt, _, _ = adapted(name, "kaiming")
    rebuilt = nn.Sequential(copy.deepcopy(LAYERS[name][0])).double()
    inject(rebuilt, kept)
    rebuilt.load_state_dict(model.state_dict())
    torch.testing.assert_close(rebuilt(x.double()), expected, rtol=1e-10, atol=1e-10)
    merge(merged)
    torch.testing.assert_close(merged(x.double()), expected, rtol=1e-10, atol=1e-10)


def test_a_layer_with_a_start_merges_to_what_it_computes_before_it_is_finished() -> None:
    model, _, x = adapted("linear", "pissa")
    model.double()
    nn.init.normal_(model[0].lora_B)
    expected = model(x.double())
    plain = LAYERS["linear"][0]
    merge(model)
    assert type(model[0]) is nn.Linear and vars(model[0]).keys() == vars(plain).keys()
    torch.testing.assert_close(model(x.double()), expected, rtol=1e-10, atol=1e-10)


def test_pissa_takes_the_best_approximation_of_its_rank() -> None:
    model, _, _ = adapted("conv2d", "pissa")
    layer = model[0]
    matrix = layer.weight.flatten(1)
    first = layer.scaling * layer.lora_B.flatten(1) @ layer.lora_A.flatten(1)
    left = torch.linalg.svdvals(matrix)[4:].square().sum().sqrt()
    torch.testing.assert_close((matrix - first).norm(), left)


def test_an_orthogonal_a_has_orthonormal_rows() -> None:
    model, _, _ = adapted("conv2d", "orthogonal")
    a = model[0].lora_A.flatten(1)
    torch.testing.assert_close(a @ a.T, torch.eye(4))


def test_a_gaussian_a_has_a_deviation_of_one_over_the_rank() -> None:
    layer = nn.Sequential(nn.Linear(4000, 3))
    inject(layer, Lora(targets="0", rank=5, init="gaussian"))
    assert layer[0].lora_A.std().item() == pytest.approx(0.2, rel=0.02)


def test_a_start_in_more_directions_than_the_weight_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"E-RANK: .*14 x 20 has no 15 directions.*lower the rank to 14"):
        adapted("linear", "pissa", rank=15)


def test_an_unknown_initialisation_is_refused() -> None:
    with pytest.raises(InputError, match=r"E-INIT: adapter\.init is 'pisa'; choose kaiming"):
        Lora(targets="0", init="pisa")  # type: ignore[arg-type]
