"""A trained update cut to lower ranks."""

import pytest
import torch
from torch import nn

from loralight.adapters import Lora, inject
from loralight.adapters.layers.lora import LoraLayer
from loralight.adapters.rank_cut import alike, by_energy, cut_to, energy_kept
from loralight.adapters.spectrum import spectrum


@pytest.fixture
def model() -> nn.Sequential:
    """A linear layer whose update is ten times a convolution's."""
    made = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 4 * 4, 7))
    inject(made, Lora(targets="all", rank=4))
    for scale, layer in zip((0.1, 1.0), layers(made).values(), strict=True):
        nn.init.normal_(layer.lora_B, std=scale)
    return made


def layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_what_is_left_is_the_nearest_update_of_that_rank(model: nn.Sequential, rank: int) -> None:
    before = {name: layer.product(torch.float64).flatten(1) for name, layer in layers(model).items()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with cut_to(layers(model), alike(spectrum(model), rank)):
        for name, layer in layers(model).items():
            u, values, v = torch.linalg.svd(before[name], full_matrices=False)
            nearest = u[:, :rank] @ torch.diag(values[:rank]) @ v[:rank]
            torch.testing.assert_close(layer.product(torch.float64).flatten(1), nearest, atol=1e-6, rtol=1e-5)
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in state.items())


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_by_energy_keeps_as_many_directions_and_at_least_as_much(model: nn.Sequential, rank: int) -> None:
    spectra = spectrum(model)
    one, other = alike(spectra, rank), by_energy(spectra, rank)
    assert sum(one.values()) == sum(other.values())
    assert energy_kept(spectra, other) >= energy_kept(spectra, one)
    assert other["2"] >= other["0"]


def test_the_energy_that_is_left_is_that_of_the_updates(model: nn.Sequential) -> None:
    spectra, ranks = spectrum(model), {"0": 0, "2": 2}
    whole = sum(layer.product(torch.float64).square().sum() for layer in layers(model).values())
    with cut_to(layers(model), ranks):
        left = sum(layer.product(torch.float64).square().sum() for layer in layers(model).values()).clone()
    assert energy_kept(spectra, ranks) == pytest.approx(float((left / whole).detach()), rel=1e-5)
    assert energy_kept(spectra, alike(spectra, 4)) == pytest.approx(1.0)
