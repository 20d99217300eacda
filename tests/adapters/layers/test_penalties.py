from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralight.adapters import Lora, LoraLayer, inject
from loralight.adapters.base import trainable
from loralight.errors import InputError


def model_with(**settings: Any) -> tuple[nn.Sequential, Lora]:
    model = nn.Sequential(nn.Linear(7, 9), nn.Unflatten(1, (9, 1, 1)), nn.Conv2d(9, 6, 1, groups=3)).double()
    adapter = Lora(**{"targets": "all", "rank": 3, "alpha": 5.0, **settings})
    inject(model, adapter)
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    return model, adapter


def layers(model: nn.Module) -> list[LoraLayer]:
    return [layer for layer in model.modules() if isinstance(layer, LoraLayer)]


def factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    return layer.lora_A.flatten(1), layer.lora_B.flatten(1)


def check(found: Tensor | None, expected: Tensor, model: nn.Module) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters = list(trainable(model).values())
    for gradient, want in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(gradient, want, rtol=1e-11, atol=1e-11)


def dense(layer: LoraLayer) -> Tensor:
    """The change of the weight, formed by the definition; of a grouped convolution that of its kernel."""
    a, b = factors(layer)
    change = torch.einsum("or,ri->oi", b, a)
    if layer.start is not None:
        change = change - torch.einsum("or,ri->oi", layer.start_B.flatten(1), layer.start_A.flatten(1))
    return layer.scaling * change


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"init": "pissa", "rank": 2}], ids=str)
def test_the_norm_of_the_updates_is_that_of_the_dense_formula(settings: dict[str, Any]) -> None:
    model, adapter = model_with(frobenius=0.3, **settings)
    expected = 0.3 * sum((dense(layer).square().sum() for layer in layers(model)), torch.zeros(()).double())
    check(adapter.penalty(model), expected, model)


def test_ranks_that_overlap_are_penalised_by_their_inner_products() -> None:
    model, adapter = model_with(orthogonality=0.2)
    expected = torch.zeros(()).double()
    for layer in layers(model):
        a, b = factors(layer)
        for rows in (a, b.T):
            for i in range(3):
                expected = expected + sum((rows[i] @ rows[j]) ** 2 for j in range(3) if j != i)
    check(adapter.penalty(model), 0.2 * expected, model)


def test_orthogonal_factors_of_any_length_have_no_penalty() -> None:
    model, adapter = model_with(targets="0", orthogonality=1.0)
    nn.init.orthogonal_(model[0].lora_A, gain=3.0)
    nn.init.orthogonal_(model[0].lora_B, gain=0.1)
    found = adapter.penalty(model)
    assert found is not None and found.item() < 1e-20


def test_penalties_add_up_and_are_none_by_default() -> None:
    model, both = model_with(orthogonality=0.2, frobenius=0.3)
    parts = [Lora(targets="all", orthogonality=0.2).penalty(model), Lora(targets="all", frobenius=0.3).penalty(model)]
    assert parts[0] is not None and parts[1] is not None
    torch.testing.assert_close(both.penalty(model), parts[0] + parts[1])
    assert Lora(targets="all").penalty(model) is None


def test_no_matrix_as_large_as_the_weight_is_formed() -> None:
    model = nn.Sequential(nn.Linear(300, 400))
    inject(model, Lora(targets="0", rank=2))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        Lora(targets="0", frobenius=1.0, orthogonality=1.0).penalty(model)
    assert kept and max(kept) <= 2 * 400


@pytest.mark.parametrize("name", ["frobenius", "orthogonality"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_makes_no_sense_is_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"E-PENALTY: adapter.{name}"):
        Lora(targets="all", **{name: value})
