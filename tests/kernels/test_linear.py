"""Each fast path computes what the plain formula does: outputs and gradients."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters import LoraLayer
from loralight.adapters.layers import lora as lora_layers
from loralight.adapters.layers.lora import LAYERS
from loralight.kernels import convolution
from loralight.kernels import linear as kernels

SHAPES = [
    (nn.Linear(20, 11), (3, 7, 20)),
    (nn.Linear(5, 9, bias=False), (4, 5)),
    (nn.Linear(5, 9), (5,)),
    (Conv1D(9, 5), (2, 3, 5)),
]
CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    (nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False), (2, 6, 9, 8)),
    (nn.Conv2d(6, 5, (1, 3), padding=(0, 2), dilation=(1, 2)), (2, 6, 9, 8)),
    (nn.Conv2d(6, 5, 1), (2, 6, 4, 4)),
    (nn.Conv3d(3, 4, 2, stride=(1, 2, 1)), (2, 3, 4, 5, 4)),
    (nn.Conv2d(6, 5, 3, padding=1), (1, 6, 3, 3)),  # a weight larger than its input: by halves of its outputs
    (nn.Conv2d(6, 1, 3, padding=1), (1, 6, 2, 2)),
    *(
        SMALL := [  # maps of fewer pixels than channels: products of patches
            (nn.Conv2d(3, 40, 3, stride=2, padding=1, bias=False), (2, 3, 7, 8)),
            (nn.Conv2d(3, 40, (1, 3), padding=(0, 2), dilation=(1, 2)), (2, 3, 4, 5)),
            (nn.Conv2d(3, 40, 1), (2, 3, 4, 5)),
            (nn.Conv2d(3, 40, 1, stride=2), (2, 3, 8, 9)),
        ]
    ),
]


@pytest.fixture(params=["processor", "accelerator"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The fast path of linear layers that a test runs with: that of GPUs computes the same anywhere."""
    if request.param == "accelerator":
        monkeypatch.setattr(kernels, "_PROCESSORS", ())
    chosen: str = request.param
    return chosen


def adapted(layer: nn.Module, dropout: float = 0.0) -> LoraLayer:
    base = copy.deepcopy(layer).double().requires_grad_(False)
    upgraded = LAYERS[type(layer)].upgrade_(base, rank=3, alpha=6, dropout=dropout)
    for factor in (upgraded.lora_A, upgraded.lora_B):
        nn.init.normal_(factor)
    return upgraded


def gradients(layer: LoraLayer, x: Tensor, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    y = layer(x)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, [x, layer.lora_A, layer.lora_B], upstream)]


def count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Counts the calls of a fast path, so that no test compares the plain formula with itself."""
    calls: list[int] = []
    fast: Callable[..., Tensor] = getattr(lora_layers, name)

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return fast(*arguments)

    monkeypatch.setattr(lora_layers, name, counted)
    return calls


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in ("can_be_fused", "linear_can_be_fused"):
        monkeypatch.setattr(lora_layers, asked, lambda *_: False)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(("plain", "shape"), SHAPES + CONVOLUTIONS, ids=lambda value: str(value)[:60])
def test_outputs_and_gradients_are_those_of_the_plain_formula(
    plain: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = adapted(plain), torch.randn(shape, dtype=torch.float64)
    calls = count(monkeypatch, "lora_linear" if isinstance(plain, nn.Linear | Conv1D) else "lora_convolution")
    found = gradients(layer, x)
    assert calls
    plainly(monkeypatch)
    torch.testing.assert_close(found, gradients(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("plain", "shape"), CONVOLUTIONS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["usual", "channels last"])
def test_small_maps_are_a_product_of_patches(
    plain: nn.Module, shape: tuple[int, ...], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = adapted(plain), torch.randn(shape, dtype=torch.float64)
    if x.ndim != 4 and layout is torch.channels_last:
        pytest.skip("the layout is that of images alone")
    x = x.contiguous(memory_format=layout)
    products: list[Tensor] = []
    patches = convolution._patches
    monkeypatch.setattr(convolution, "_patches", lambda *given: products.append(patches(*given)) or products[-1])
    found = gradients(layer, x)
    is_small = any(plain is one for one, _ in SMALL)
    num_pixels = len(x) * found[0].shape[2:].numel()
    assert is_small == (x.ndim == 4 and num_pixels <= plain.weight.shape[0])
    assert [len(rows) for rows in products] == ([num_pixels] * 2 if is_small else [])  # kept from neither pass
    plainly(monkeypatch)
    torch.testing.assert_close(found, gradients(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("order")
def test_the_gradients_with_dropout_are_those_of_the_mask_that_was_drawn() -> None:
    layer, x = adapted(nn.Linear(40, 11), dropout=0.3), torch.randn(6, 40, dtype=torch.float64)
    y, g_x, g_A, g_B = gradients(layer, x, seed=5)
    torch.manual_seed(5)
    mask, keep = kernels.keep_mask(x, 0.3)
    x = x.clone().requires_grad_()
    low = F.linear(F.linear(x.masked_fill(mask == 0, 0.0) * keep, layer.lora_A), layer.lora_B)
    expected = F.linear(x, layer.weight, layer.bias) + 2.0 * low
    torch.testing.assert_close(y, expected)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    for ours, theirs in zip(
        [g_x, g_A, g_B], torch.autograd.grad(expected, [x, layer.lora_A, layer.lora_B], upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_a_mask_drops_its_share_and_keeps_the_expectation(probability: float) -> None:
    torch.manual_seed(0)
    mask, keep = kernels.keep_mask(torch.empty(500, 2001), probability)
    dropped = float((mask == 0).double().mean())
    assert (
        set(mask.unique().tolist()) == {0, 1}
        and abs(dropped - probability) < 4 * (probability * (1 - probability) / mask.numel()) ** 0.5 + 2**-16
    )
    assert keep * (1 - probability) == pytest.approx(1, rel=1e-3)
    neighbours = torch.stack([mask[:, :-1].flatten(), mask[:, 1:].flatten()])
    correlation = torch.corrcoef(neighbours.double())
    assert abs(float(correlation[0, 1])) < 0.005, "though neighbours come from one random word"


def test_no_dropout_mask_is_drawn_in_evaluation() -> None:
    layer, x = adapted(nn.Linear(8, 8), dropout=0.5).eval(), torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(layer(x), layer(x))


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(("plain", "shape"), [SHAPES[0], CONVOLUTIONS[1]], ids=["linear", "convolution"])
def test_one_activation_is_kept_for_the_backward_pass(plain: nn.Module, shape: tuple[int, ...]) -> None:
    layer = adapted(plain, dropout=0.1 if isinstance(plain, nn.Linear) else 0.0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weights = {tensor.data_ptr() for tensor in (*layer.parameters(), x)}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    others = [tensor for tensor in kept if tensor.data_ptr() not in weights and tensor.numel() >= x.numel()]
    assert all(tensor.dtype is torch.uint8 for tensor in others), "beside the input only a mask is as large"
    assert len(others) <= 1


@pytest.mark.usefixtures("order")
def test_a_layer_whose_input_needs_no_gradient_computes_none() -> None:
    layer = adapted(nn.Linear(20, 11))
    y = layer(torch.randn(4, 20, dtype=torch.float64))
    y.sum().backward()
    assert layer.lora_B.grad is not None and layer.weight.grad is None


@pytest.mark.parametrize("case", ["trained weight", "vmap"])
def test_what_the_fast_paths_were_not_written_for_takes_the_plain_formula(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count(monkeypatch, "lora_linear")
    layer = adapted(nn.Linear(20, 11)).float()
    x = torch.randn(4, 20)
    if case == "trained weight":
        layer.weight.requires_grad_()
        layer(x).sum().backward()
        assert layer.weight.grad is not None
    else:
        torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
        calls.pop()
    assert not calls


HALVES = [("autocast", torch.float32), ("autocast", torch.bfloat16), ("half", torch.bfloat16)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("plain", [nn.Linear(40, 24), Conv1D(24, 40)], ids=["linear", "conv1d"])
@pytest.mark.parametrize(("case", "base"), HALVES, ids=["autocast", "autocast of a half base", "half"])
def test_half_precision_is_as_near_to_the_exact_formula_as_the_plain_one_is(
    case: str, base: torch.dtype, plain: nn.Module, dropout: float, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of a half base the plain formula makes the low-rank products in float32; a GPU makes all in half precision
    slack = 2.0 if (case, order) == ("half", "accelerator") else 1.1
    exact = adapted(plain, dropout)
    for tensor in (exact.weight, exact.bias):
        tensor.data = tensor.data.bfloat16().double()
    layer = copy.deepcopy(exact).float()
    for tensor in (layer.weight, layer.bias):
        tensor.data = tensor.data.to(base)
    x = torch.randn(5, 40).bfloat16()
    mask = torch.rand(5, 40) < dropout
    monkeypatch.setattr(kernels, "keep_mask", lambda *_: ((~mask).view(torch.uint8), 1 / (1 - dropout)))
    monkeypatch.setattr(F, "dropout", lambda x, *_: x.masked_fill(mask, 0.0) / (1 - dropout) if dropout else x)
    calls = count(monkeypatch, "lora_linear")

    def found(one: LoraLayer, x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast" and x.dtype is not torch.float64):
            return gradients(one, x)

    given = x if case == "half" else x.float()
    ours = found(layer, given)
    assert calls and ours[0].dtype is torch.bfloat16
    assert [gradient.dtype for gradient in ours[1:]] == [given.dtype, torch.float32, torch.float32]
    plainly(monkeypatch)
    theirs, expected = found(layer, given), found(exact, x.double())
    for one, other, truth in zip(ours, theirs, expected, strict=True):
        assert one.dtype is other.dtype
        assert (one - truth).norm() <= slack * (other - truth).norm() + 1e-3 * truth.norm()
        assert (one - truth).norm() <= 0.02 * truth.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["usual", "channels last"])
@pytest.mark.parametrize(("plain", "shape"), CONVOLUTIONS, ids=lambda value: str(value)[:60])
def test_convolutions_in_autocast_are_as_near_to_the_exact_formula_as_the_plain_one_is(
    plain: nn.Module, shape: tuple[int, ...], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    exact, x = adapted(plain), torch.randn(shape)
    if x.ndim == 4:
        x = x.contiguous(memory_format=layout)
    layer = copy.deepcopy(exact).float()
    calls = count(monkeypatch, "lora_convolution")

    def found(one: LoraLayer, x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype is not torch.float64):
            return gradients(one, x)

    ours = found(layer, x)
    assert calls and [tensor.dtype for tensor in ours] == [torch.bfloat16, *[torch.float32] * 3]
    plainly(monkeypatch)
    theirs, expected = found(layer, x), found(exact, x.double())
    for one, other, truth in zip(ours, theirs, expected, strict=True):
        assert one.dtype is other.dtype and one.shape == truth.shape
        assert (one - truth).norm() <= 1.5 * (other - truth).norm() + 2e-3 * truth.norm()


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("case", ["autocast", "half"])
def test_half_precision_keeps_no_second_copy_of_weight_or_input(case: str) -> None:
    layer = adapted(nn.Linear(64, 64)).float()
    dtype = torch.bfloat16
    if case == "half":
        layer.weight.data, layer.bias.data = layer.weight.data.to(dtype), layer.bias.data.to(dtype)
    x = torch.randn(64, 64, dtype=dtype, requires_grad=True)
    owned = {tensor.data_ptr() for tensor in (*layer.parameters(), x)}
    kept: list[Tensor] = []
    keeping = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda one: one)
    with keeping, torch.autocast("cpu", dtype, enabled=case == "autocast"):
        layer(x)
    assert not [tensor for tensor in kept if tensor.data_ptr() not in owned and tensor.numel() >= x.numel()]


@pytest.mark.usefixtures("order")
def test_bias_learns_where_it_is_to() -> None:
    layer, x = adapted(nn.Linear(20, 11)), torch.randn(4, 20, dtype=torch.float64)
    layer.bias.requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((11,), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_what_a_compiler_sees_of_a_half_base_on_a_gpu_is_in_half_precision(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = kind(20, 20)
    layer = adapted(plain).bfloat16()
    layer.lora_A.data, layer.lora_B.data = layer.lora_A.data.float(), layer.lora_B.data.float()
    x = torch.randn(6, 20, dtype=torch.bfloat16)
    expected = gradients(layer, x)
    monkeypatch.setattr(kernels, "_PROCESSORS", ())
    monkeypatch.setattr(lora_layers, "linear_can_be_fused", lambda *_: False)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda one: one):
        found = gradients(layer, x)
    assert {one.dtype for one in kept} == {torch.bfloat16}
    assert [one.dtype for one in found] == [one.dtype for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()


def test_layers_that_read_one_input_under_autocast_keep_one_cast_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_PROCESSORS", ())
    query, key = (adapted(nn.Linear(64, 64)).float() for _ in range(2))
    x = torch.randn(8, 64, requires_grad=True)
    kept: list[Tensor] = []
    keeping = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda one: one)

    def casts() -> int:
        kept.clear()
        with keeping, torch.autocast("cpu", torch.bfloat16):
            y, z = query(x), key(x)
        assert len({one.data_ptr() for one in (y, z)}) == 2
        return len({one.data_ptr() for one in kept if one.shape == x.shape})

    assert casts() == 1
    first = next(one for one in kept if one.shape == x.shape).clone()
    with torch.no_grad():
        x.mul_(2)
    assert casts() == 1
    torch.testing.assert_close(next(one for one in kept if one.shape == x.shape), first * 2)
