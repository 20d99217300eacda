"""BatchNorm goes into the convolution before it: nothing changes but the weights, and only where nobody else reads."""

import copy

import pytest
import timm
import torch
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn

from loralight.acceleration.base import Accelerations, Facts
from loralight.acceleration.batch_norm import FrozenBatchNorms
from loralight.acceleration.batch_norm_folding import fold_batch_norm_, refuse_without_batch_norm
from loralight.acceleration.dropout import DropoutMasks
from loralight.adapters import Lora, LoraLayer, inject
from loralight.adapters.base import trainable
from loralight.errors import InputError


def lived_in(model: nn.Module) -> nn.Module:
    """With weights, statistics and biases as training leaves them."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.rand(8, 3, 32, 32))
    return model.eval()


def folded(model: nn.Module) -> tuple[nn.Module, int]:
    """A copy whose outputs are those of ``model``, and how many layers were folded."""
    copied = copy.deepcopy(model)
    count = fold_batch_norm_(copied)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = model.double()(x.double()), copied.double()(x.double())
    assert float((found - wanted).norm() / wanted.norm()) < 2e-6
    return copied, count


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "tf_mobilenetv3_small_minimal_100"])
def test_every_batch_norm_of_a_model_of_timm_becomes_a_bias(name: str) -> None:
    model = lived_in(timm.create_model(name, num_classes=5))
    found, count = folded(model)
    norms = [module for module in found.modules() if isinstance(module, nn.BatchNorm2d)]
    assert count == len(norms) > 3
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        assert bool((norm.weight == 1).all()) and not norm.running_mean.any()
        torch.testing.assert_close(norm.running_var + norm.eps, torch.ones_like(norm.running_var))
    assert found.state_dict().keys() == model.state_dict().keys()


class _Net(nn.Module):
    """Convolutions whose output others read too, is read twice, or that standardise their weight; and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.first = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.twice, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.standard, self.third = StdConv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.bare, self.fourth = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)
        self.plain, self.fifth = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x)
        x = x + self.first(x)
        x = self.second(self.twice(x)) + self.twice(-x)
        x = self.fourth(self.bare(self.third(self.standard(x))))
        y: Tensor = self.fifth(self.plain(x))
        return y


def test_only_a_convolution_that_batch_norm_alone_reads_takes_it_up() -> None:
    model = lived_in(_Net())
    found, count = folded(model)
    assert count == 1
    changed = {n for n, t in found.float().state_dict().items() if not torch.equal(t, model.float().state_dict()[n])}
    assert changed == {
        *("plain.weight", "plain.bias", "fifth.weight", "fifth.bias", "fifth.running_mean", "fifth.running_var")
    }


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)) if x.sum() > 0 else x
        return y


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Branching(), "E-FOLD: torch.fx cannot trace _Branching"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), "E-FOLD: no BatchNorm follows a convolution"),
    ],
    ids=["branching", "before"],
)
def test_a_model_that_cannot_be_folded_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fold_batch_norm_(model.eval())


def test_a_model_without_batch_norm_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="E-FOLD: Sequential has no BatchNorm"):
        refuse_without_batch_norm(nn.Sequential(nn.Conv2d(3, 3, 1)))


@pytest.mark.parametrize("name", ["test_byobnet", "test_efficientnet", "densenet121"])
@pytest.mark.parametrize("order", [["dropout", "batch_norm"], ["batch_norm", "dropout"]], ids="-".join)
def test_models_with_dropout_and_padded_convolutions_are_linked_and_compute_the_same(
    name: str, order: list[str]
) -> None:
    """Cheap dropout, and an adapted convolution that pads, are layers of ours that torch.fx cannot look into."""
    model = timm.create_model(name, num_classes=3, drop_rate=0.2)
    inject(model, Lora(targets="all", rank=1), head=[model.get_classifier()])
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in model.train().modules():
        module.training = isinstance(module, nn.Dropout)
        if isinstance(module, LoraLayer):
            nn.init.normal_(module.lora_B, std=0.01)
    x = torch.rand(2, 3, 32, 32)

    def step() -> list[Tensor]:
        torch.manual_seed(0)
        loss = model(x).square().sum()
        return [loss.detach(), *torch.autograd.grad(loss, list(trainable(model).values()), allow_unused=False)]

    kinds = {"dropout": DropoutMasks(), "batch_norm": FrozenBatchNorms()}
    accelerations = Accelerations({name: kinds[name] for name in order})
    kinds["dropout"].attach_(Facts(model=model))
    kinds["dropout"].switch_(True)  # as where a model is built that has trained before
    expected = step()
    accelerations.attach_(Facts(model=model, still=norms, fixed=norms))
    accelerations.switch_(True)
    assert sum("follower" in vars(module) for module in model.modules()) > 3
    for found, wanted in zip(step(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.detach().abs().max()))
