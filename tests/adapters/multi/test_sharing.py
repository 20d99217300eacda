"""Adapted models that share the frozen tensors of one base."""

import copy

import pytest
import torch
from torch import nn

from loralight.adapters import FullFineTuning, LinearProbe, Lora, inject
from loralight.adapters.base import trainable
from loralight.adapters.multi.sharing import share_
from loralight.errors import InputError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 16, 6))
        self.tied = nn.Linear(64, 6, bias=False)
        self.tied.weight = self.body[3].weight
        self.head = nn.Linear(6, 2)
        self.register_buffer("steps", torch.arange(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.fixture
def base() -> nn.Module:
    torch.manual_seed(0)
    return Net().requires_grad_(False).eval()


def adapted(base: nn.Module, targets: str = "body.0") -> nn.Module:
    model = copy.deepcopy(base)
    inject(model, Lora(targets=targets, rank=2), head=[model.head])
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    return model


def test_what_is_frozen_is_one_tensor_and_what_learns_is_each_models_own(base: nn.Module) -> None:
    models = [adapted(base) for _ in range(3)]
    x = torch.randn(2, 3, 6, 6)
    before = [model(x) for model in models]
    for model in models:
        share_(model, base)
    assert all(torch.equal(model(x), found) for model, found in zip(models, before, strict=True))
    held = {id(tensor) for model in (base, *models) for tensor in (*model.parameters(), *model.buffers())}
    own = sum(len(trainable(model)) for model in models)
    assert len(held) == own + len([*base.parameters(), *base.buffers()])
    for model in models:
        assert model.tied.weight is model.body[3].weight is base.tied.weight
        assert model.body[0].weight is base.body[0].weight and model.steps is base.steps
        assert model.head.weight is not base.head.weight


def test_sharing_twice_changes_nothing(base: nn.Module) -> None:
    model = adapted(base)
    share_(model, base)
    before = dict(model.named_parameters())
    share_(model, base)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_statistics_that_changed_stay_the_models_own(base: nn.Module) -> None:
    model = adapted(base)
    model.body[1].running_mean.add_(1)
    with pytest.raises(InputError, match=r"^E-BASE: run a: body\.1\.running_mean has other values"):
        share_(model, base, origin="run a")
    share_(model, base, learns=[f"body.1.{name}" for name, _ in model.body[1].named_buffers()])
    assert not torch.equal(model.body[1].running_mean, base.body[1].running_mean)


@pytest.mark.parametrize("name", ["body.0.weight", "body.3.bias"])
def test_another_base_is_refused_be_it_by_one_value(base: nn.Module, name: str) -> None:
    model = adapted(base)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] += 1e-6
    with pytest.raises(InputError, match=r"^E-BASE: "):
        share_(model, base)


def test_a_base_of_other_shapes_or_of_another_precision_is_refused(base: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^E-BASE: "):
        share_(adapted(base.double()), Net().requires_grad_(False))
    wider = adapted(base)
    wider.body[3].bias = nn.Parameter(torch.zeros(7), requires_grad=False)
    with pytest.raises(InputError, match=r"^E-BASE: "):
        share_(wider, base)


def test_a_model_that_has_nothing_in_common_is_refused(base: nn.Module) -> None:
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    inject(other, LinearProbe(), head=[other[1]])
    with pytest.raises(InputError, match=r"^E-BASE: .* no tensor in common"):
        share_(other, base)


def test_a_model_of_which_everything_learns_keeps_everything(base: nn.Module) -> None:
    model = copy.deepcopy(base)
    inject(model, FullFineTuning())
    model.body[0].weight.data.add_(1)
    share_(model, base)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in base.parameters()}
