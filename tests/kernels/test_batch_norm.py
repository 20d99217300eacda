"""Frozen BatchNorm in training: the same outputs and gradients without its input, where nobody would see it."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loralight.acceleration.batch_norm_folding import link_
from loralight.adapters import Lora, inject, merge
from loralight.adapters.base import trainable
from loralight.kernels.freezing import freeze_, frozen_kinds, thaw_

CONVOLUTIONS: list[tuple[nn.Module, nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), (2, 6, 9, 8)),
    (nn.Conv2d(6, 8, 3, padding=2, dilation=2), BatchNormAct2d(8), (2, 6, 9, 8)),
    (nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), (2, 6, 4, 5)),
    (nn.Conv2d(6, 8, 1, stride=2), BatchNormAct2d(8, act_layer=nn.SiLU), (2, 6, 5, 5)),
    (nn.Conv2d(6, 8, (1, 3), padding=(0, 1)), nn.BatchNorm2d(8), (2, 6, 4, 5)),
    (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), (2, 1, 5, 5)),
    (nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), (2, 6, 5, 5)),
    (nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), (2, 6, 9)),
    (nn.Conv3d(3, 8, 2), nn.BatchNorm3d(8), (2, 3, 4, 5, 4)),
]


def lived_in(model: nn.Module) -> nn.Module:
    """In float64, with weights, statistics and factors as training leaves them, BatchNorm frozen."""
    torch.manual_seed(0)
    for module in model.double().train().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor.data, 0.5, 1.5)
            module.eval()
    for name, parameter in trainable(model).items():
        if name.endswith(("lora_A", "lora_B")):
            nn.init.normal_(parameter, std=0.2)
    return model


def adapted(*parts: nn.Module) -> nn.Sequential:
    model = nn.Sequential(*copy.deepcopy(parts))
    inject(model, Lora(lr=1e-3, targets="all", rank=3))
    lived_in(model)
    return model


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def fixed(model: nn.Module) -> nn.Module:
    """The same model in the form it has in training."""
    link_(model)
    freeze_(norms(model))
    return model


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    learning = trainable(model)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    found = torch.autograd.grad(y, [x, *learning.values()], upstream)
    return {"output": y.detach(), **dict(zip(["input", *learning], found, strict=True))}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        largest = max(float(wanted[name].abs().max()), 1.0)
        torch.testing.assert_close(tensor, wanted[name], rtol=0.0, atol=1e-10 * largest)


def kept(model: nn.Module, x: Tensor) -> int:
    """Elements that are kept for the backward pass beside the weights and the input."""
    known = {tensor.data_ptr() for tensor in (*model.state_dict().values(), x)}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = model(x)
    assert y.requires_grad
    return sum(size for size in sizes.values() if size >= 100)  # not the gains


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("convolution", "norm", "shape"), CONVOLUTIONS, ids=lambda value: str(value)[:50])
def test_outputs_and_gradients_are_those_of_pytorchs_layers(
    convolution: nn.Module, norm: nn.Module, shape: tuple[int, ...], channels_last: bool
) -> None:
    model, x = adapted(convolution, norm), torch.randn(shape, dtype=torch.float64)
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = results(model, x)
    assert_same(results(fixed(model), x), wanted)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), BatchNormAct2d(8, act_layer=nn.SiLU)], ids=["plain", "SiLU"])
@pytest.mark.parametrize("size", [1, 3])
def test_in_autocast_the_convolution_does_the_norms_work_as_near_to_the_exact_one(
    size: int, norm: nn.Module, channels_last: bool
) -> None:
    exact = adapted(nn.Conv2d(6, 8, size, bias=False), norm)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 6, 9, 8).contiguous(memory_format=layout)
    model, wanted = copy.deepcopy(exact).float(), results(exact, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        plain, before = results(model, x), kept(model, x.clone().requires_grad_())
        ours, after = results(fixed(model), x), kept(model, x.clone().requires_grad_())
    assert after < before
    assert {name: tensor.dtype for name, tensor in ours.items()} == {name: t.dtype for name, t in plain.items()}
    for name, truth in wanted.items():
        error, other = (ours[name] - truth).norm(), (plain[name] - truth).norm()
        assert error <= 1.5 * other + 2e-3 * truth.norm(), name


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), BatchNormAct2d(8)], ids=["plain", "with an activation"])
def test_neither_the_output_of_the_convolution_nor_the_norms_input_is_kept(norm: nn.Module) -> None:
    model, x = adapted(nn.Conv2d(6, 8, 3, padding=1), norm), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    x.requires_grad_()
    size = 2 * 8 * 9 * 8
    after = size if isinstance(norm, BatchNormAct2d) else 0  # what the activation itself keeps
    assert kept(model, x) == size + after
    assert kept(fixed(model), x) == after


def test_a_norm_that_follows_no_adapted_convolution_keeps_no_input_either() -> None:
    model = adapted(nn.Conv2d(6, 8, 1), nn.ZeroPad2d(1), nn.BatchNorm2d(8))
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    wanted = results(model, x)
    assert kept(model, x) == wanted["output"].numel()
    assert_same(results(fixed(model), x), wanted)
    assert kept(model, x) == 0


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet18"])
def test_a_whole_model_computes_the_same_and_is_the_same_again_after_training(name: str) -> None:
    model = timm.create_model(name, num_classes=5)
    inject(model, Lora(lr=1e-3, targets="all", rank=3), head=[model.get_classifier()])
    lived_in(model)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    kinds, wanted = {n: type(module) for n, module in model.named_modules()}, results(model, x)
    plain = kept(model, x)
    assert_same(results(fixed(copy.deepcopy(model)), x), wanted)
    copied = copy.deepcopy(fixed(model))
    assert_same(results(copied, x), wanted)
    assert kept(copied, x) < 0.7 * plain
    assert not [norm for norm in norms(model) if type(norm) in frozen_kinds()]
    thaw_(norms(model))
    assert {n: type(module) for n, module in model.named_modules()} == kinds
    again = results(model, x)
    assert all(torch.equal(again[key], wanted[key]) for key in wanted)


class _Unprovable(nn.Module):
    """A convolution that others read too, one that is called twice, one norm for two, and a path that no trace sees."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.first = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.left, self.right, self.shared = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.read(x)
        y = y + self.first(y)
        y = self.second(self.twice(y)) + self.twice(-y)
        z: Tensor = self.shared(self.left(y)) * self.shared(self.right(y))
        return z


def test_where_it_is_not_sure_who_reads_a_convolution_it_keeps_its_own_output() -> None:
    model = _Unprovable()
    inject(model, Lora(lr=1e-3, targets="all", rank=2))
    lived_in(model)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    wanted = results(model, x)
    assert_same(results(fixed(model), x), wanted)
    assert all(layer.follower is None for layer in (model.read, model.twice, model.left, model.right))


def _watch(model: nn.Sequential, seen: list[Tensor]) -> None:
    model[0].register_forward_hook(lambda module, given, y: seen.append(y.detach().clone()))


def _watch_norm(model: nn.Sequential, seen: list[Tensor]) -> None:
    model[1].register_forward_pre_hook(lambda module, given: seen.append(given[0].detach().clone()))


@pytest.mark.parametrize("watch", [_watch, _watch_norm])
def test_a_hook_sees_what_it_would_see_without(watch: Any) -> None:
    model, x = adapted(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    expected = model[0](x).detach()
    fixed(model)
    seen: list[Tensor] = []
    watch(model, seen)
    model(x)
    torch.testing.assert_close(seen[0], expected, rtol=1e-10, atol=1e-10)


class Copying(nn.Module):
    """Passes on a copy of a layer's output, and keeps the output itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.layer(x)
        return self.seen.clone()


def _wrapped(model: nn.Sequential, x: Tensor) -> Tensor:
    wrapped = nn.Sequential(Copying(model[0]), *model[1:])
    y = wrapped(x)
    return y + wrapped[0].seen.mean()


def _wrapped_in_place(model: nn.Sequential, x: Tensor) -> Tensor:
    plain, model[0] = model[0], Copying(model[0])
    try:
        y: Tensor = model(x)
        return y + model[0].seen.mean()
    finally:
        model[0] = plain


def _read_by_a_second(model: nn.Sequential, x: Tensor) -> Tensor:
    before = model[0](x)
    y: Tensor = model[2](model[1](before))
    return y + before.sum()


def _read_first_by_a_second(model: nn.Sequential, x: Tensor) -> Tensor:
    before = model[0](x)
    with torch.no_grad():
        size = before.abs().mean()
    y: Tensor = model[2](model[1](before))
    return y * size


def _changed_in_place(model: nn.Sequential, x: Tensor) -> Tensor:
    before = model[0](x)
    before *= 2
    y: Tensor = model[2](model[1](before))
    return y


def _alone(model: nn.Sequential, x: Tensor) -> Tensor:
    first = model[0](x)  # its output never reaches the norm
    return model(x) + first[:, :4, :1, :1] ** 2


def _the_norm_alone(model: nn.Sequential, x: Tensor) -> Tensor:
    model[0](x)
    y: Tensor = model[1](x.mean(1, keepdim=True) * torch.ones(8, 1, 1, dtype=x.dtype))
    return y


def _into_the_next_convolution(model: nn.Sequential, x: Tensor) -> Tensor:
    y: Tensor = model[2](model[0](x))
    return y


def _in_another_mode(model: nn.Sequential, x: Tensor) -> Tensor:
    before = model[0](x)
    with torch.no_grad():
        constant = model[1](before)
    assert not constant.requires_grad
    return before * constant


def _in_checkpoints(model: nn.Sequential, x: Tensor) -> Tensor:
    for part in model:
        x = checkpoint(part, x, use_reentrant=False)
    return x


ELSEWHERE = [
    *(_wrapped, _wrapped_in_place, _read_by_a_second, _read_first_by_a_second, _changed_in_place, _alone),
    *(_the_norm_alone, _into_the_next_convolution, _in_another_mode, _in_checkpoints),
]


@pytest.mark.parametrize("compute", ELSEWHERE)
def test_a_convolution_s_output_that_goes_elsewhere_is_what_it_is_without_the_norm(compute: Any) -> None:
    model = adapted(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)

    def computed(model: nn.Sequential) -> dict[str, Tensor]:
        given = x.clone().requires_grad_()
        y = compute(model, given)
        learning = trainable(model)
        found = torch.autograd.grad(y.square().sum(), [given, *learning.values()], allow_unused=True)
        gradients = {name: one for name, one in zip(["x", *learning], found, strict=True) if one is not None}
        return {"output": y.detach(), **gradients}

    wanted, whole = computed(model), results(model, x)
    fixed(model)
    assert_same(computed(model), wanted)
    assert_same(results(model, x), whole)  # the next pass knows nothing of it


def test_in_autocast_an_output_that_is_read_later_is_computed_as_where_the_convolution_was_called() -> None:
    model = adapted(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)).float()
    x = torch.randn(2, 6, 9, 8)
    fixed(model)
    with torch.autocast("cpu", torch.bfloat16):
        y = model[0](x)
    assert y.dtype == torch.bfloat16 and y.requires_grad


def test_a_norm_works_in_the_output_of_no_convolution_that_something_is_around() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.norm(self.stem(x)))
            return y

    class Keeping(Copying):
        def forward(self, x: Tensor) -> Tensor:
            self.seen: Tensor = self.layer(x)
            return self.seen

    model = Stem()
    inject(model, Lora(lr=1e-3, targets="last", rank=2))
    lived_in(model)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    wanted = model.stem(x)
    fixed(model)
    model.stem = Keeping(model.stem)
    model(x)
    assert torch.equal(model.stem.seen, wanted)


@pytest.mark.parametrize("case", ["statistics", "affine", "bias", "evaluation", "replaced", "without gradients"])
def test_a_norm_that_is_not_fixed_computes_as_pytorchs_does(case: str) -> None:
    model, x = adapted(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    changes: dict[str, Any] = {
        "statistics": lambda one: one[1].train(),
        "affine": lambda one: one[1].weight.requires_grad_(),
        "bias": lambda one: one[0].bias.requires_grad_(),
        "evaluation": lambda one: one.eval(),
        "replaced": lambda one: one.__setitem__(1, copy.deepcopy(one[1])),
        "without gradients": lambda one: None,
    }
    other = fixed(copy.deepcopy(model))
    for one in (model, other):
        changes[case](one)
    if case == "replaced":
        thaw_(norms(other))
    if case == "without gradients":
        with torch.no_grad():
            assert torch.equal(other(x), model(x))
        return
    assert_same(results(other, x), results(model, x))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor)


def test_the_first_norm_works_in_its_input_only_where_nobody_else_reads_that() -> None:
    class Stem(nn.Module):
        def __init__(self, *, both: bool) -> None:
            super().__init__()
            self.stem, self.norm, self.last, self.both = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), both

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y: Tensor = self.last(self.norm(x) + x) if self.both else self.last(self.norm(x))
            return y

    for both in (False, True):
        model = Stem(both=both)
        inject(model, Lora(lr=1e-3, targets="last", rank=2))
        lived_in(model)
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        wanted = model(x).detach()
        fixed(model)
        assert (model.norm.source is None) is both
        torch.testing.assert_close(model(x).detach(), wanted, rtol=1e-10, atol=1e-10)


def test_a_merged_layer_does_no_others_work() -> None:
    model, x = adapted(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    wanted = model(x).detach()
    merge(fixed(model))
    assert "follower" not in vars(model[0]) and type(model[0]) is nn.Conv2d
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-10)
