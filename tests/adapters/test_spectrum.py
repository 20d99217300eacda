import math
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import nn

from loralight.adapters import Dora, Lora, LoraLayer, Vera, inject
from loralight.adapters.base import trainable
from loralight.adapters.spectrum import LayerSpectrum, proposed_overrides, spectrum


def model_with(adapter: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 5), nn.Linear(5, 14)).double()
    inject(model, adapter)
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    return model


def of(*values: float) -> LayerSpectrum:
    return LayerSpectrum("layer", torch.tensor(values, dtype=torch.float64), 10.0)


@pytest.mark.parametrize(
    "adapter",
    [
        Lora(targets="all", rank=4, alpha=6),
        Lora(targets="all", rank=4, use_rslora=True),
        Lora(targets="all", rank=4, init="pissa"),
        Lora(targets="all", rank=20),
        Dora(targets="all", rank=3),
        Vera(targets="all", rank=6),
    ],
    ids=["lora", "rslora", "pissa", "more ranks than the weight", "dora", "vera"],
)
def test_the_values_are_those_of_the_update_formed_in_full(adapter: Any) -> None:
    model = model_with(adapter)
    for found in spectrum(model):
        layer: Any = model.get_submodule(found.name)
        update = layer.scaling * layer.product(torch.float64).detach()
        expected = torch.linalg.svdvals(update)
        count = min(len(expected), len(found.values))
        torch.testing.assert_close(found.values[:count], expected[:count], rtol=1e-9, atol=1e-9)
        assert not found.values[count:].any() or found.values[count:].max() < 1e-9
        assert found.norm == pytest.approx(float(update.norm()))
        assert found.relative_norm == pytest.approx(float(update.norm() / layer.weight.norm()))


def test_the_values_of_a_convolution_are_those_of_its_kernel_as_a_matrix() -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 3, groups=2))
    inject(model, Lora(targets="0", rank=3))
    nn.init.normal_(model[0].lora_B)
    expected = torch.linalg.svdvals(2.0 * model[0].product(torch.float32).flatten(1))[:3]
    torch.testing.assert_close(spectrum(model)[0].values.float(), expected)


def test_no_update_has_rank_zero_and_needs_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    inject(model, Lora(targets="0", rank=3))
    found = spectrum(model)[0]
    assert (found.norm, found.effective_rank, found.rank_for(0.9)) == (0.0, 0.0, 1)


def test_the_effective_rank_counts_equal_values_and_weighs_others() -> None:
    assert of(2.0, 2.0, 2.0, 0.0).effective_rank == pytest.approx(3)
    assert of(5.0, 0.0).effective_rank == pytest.approx(1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert of(3.0, 1.0).effective_rank == pytest.approx(math.exp(entropy))


@pytest.mark.parametrize(
    ("energy", "rank"), [(0.5, 1), (16 / 21, 1), (0.8, 2), (20 / 21, 2), (0.99, 3), (1.0, 3)], ids=str
)
def test_the_rank_for_an_energy_keeps_at_least_this_share_of_the_squares(energy: float, rank: int) -> None:
    assert of(4.0, 2.0, 1.0, 0.0).rank_for(energy) == rank


def test_the_proposal_can_be_pasted_and_gives_every_layer_its_rank() -> None:
    names = ["fc", "block.fc", "block.0.out", "block.1.out", "block.2.out"]
    ranks = [3, 1, 1, 2, 1]
    layers = [LayerSpectrum(n, torch.tensor([1.0] * r + [0.0] * 2), 1.0) for n, r in zip(names, ranks, strict=True)]
    lines = proposed_overrides(layers, 0.99)
    assert lines == ["adapter.rank=1", "'adapter.rank_pattern={fc:3,block.fc:1,block.1.out:2}'"]
    parsed: Any = [OverridesParser.create().parse_override(line.strip("'")).value() for line in lines]
    block = nn.ModuleDict({"0": out(), "1": out(), "2": out(), "fc": nn.Linear(4, 4)})
    model = nn.ModuleDict({"fc": nn.Linear(4, 4), "block": block})
    inject(model, Lora(targets="all", rank=parsed[0], rank_pattern=parsed[1]))
    found = {name: layer.rank for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert found == dict(zip(names, ranks, strict=True))


def out() -> nn.ModuleDict:
    return nn.ModuleDict({"out": nn.Linear(4, 4)})


def test_a_proposal_of_one_rank_for_all_names_no_layer() -> None:
    assert proposed_overrides([of(1.0, 1.0), of(2.0, 2.0)], 0.99) == ["adapter.rank=2"]
