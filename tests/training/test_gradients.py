from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from loralight.errors import InputError
from loralight.training.gradients import GradientWatch, SeenStep, layer_of

STEP = SeenStep(1.0, lambda: "step 1", dict)


def seen(gradients: Sequence[Tensor | None], *, from_the_start: bool = True) -> GradientWatch:
    watch = GradientWatch()
    if from_the_start:
        watch.begin()
    watch.look_(gradients, STEP, scaled=False)
    return watch


@pytest.mark.parametrize(
    "value", [float("inf"), -float("inf"), float("nan"), 1e30], ids=["inf", "-inf", "nan", "its square is inf"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_value_that_is_not_finite_clears_every_gradient(value: float, dtype: torch.dtype) -> None:
    gradients = [torch.ones(3, 2), None, torch.ones(4, dtype=dtype), torch.ones(2, dtype=torch.float64)]
    assert gradients[2] is not None
    gradients[2][1] = value
    seen(gradients)
    assert not any(gradient.any() for gradient in gradients if gradient is not None)


def test_finite_gradients_are_left_as_they_are_bit_for_bit() -> None:
    gradients = [torch.randn(3, 2), torch.randn(4).bfloat16(), torch.tensor(1e15), torch.tensor(1e-38)]
    before = [gradient.clone() for gradient in gradients]
    seen(gradients)
    assert all(torch.equal(gradient, old) for gradient, old in zip(gradients, before, strict=True))


def test_a_layer_counts_as_a_whole_and_one_without_any_gradient_is_named() -> None:
    watch = seen([torch.zeros(2), torch.ones(2), None, torch.zeros(2)])
    with pytest.raises(InputError, match=r"^E-UNREACHED: the gradient of second was 0 in each of the first 1 steps"):
        watch.refuse_dead_layers(["first", "first", "second", "second"], now=True)
    watch.refuse_dead_layers(["first", "first", "second", "second"], now=True)  # it is asked once


def test_nothing_is_called_dead_before_an_epoch_ends_or_where_a_run_goes_on() -> None:
    seen([torch.zeros(2)]).refuse_dead_layers(["first"], now=False)
    seen([torch.zeros(2)], from_the_start=False).refuse_dead_layers(["first"], now=True)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("a.b.lora_A", "a.b"), ("a.b.down.weight", "a.b"), ("a.bc.weight", "a.bc"), ("a.b.c.x.bias", "a.b.c"), ("w", "w")],
)
def test_a_parameter_belongs_to_the_innermost_layer_around_it(name: str, layer: str) -> None:
    assert layer_of(name, ["a.b", "a.b.c"]) == layer
