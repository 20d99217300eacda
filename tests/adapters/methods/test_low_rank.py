"""One learning rate for every rank."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loralight.adapters import Dora, Lora, LoraFA, inject
from loralight.adapters.base import Adapter
from loralight.errors import InputError
from loralight.training.optim import parameter_groups

torch.manual_seed(0)
BASE = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))
X, Y = torch.randn(64, 24), torch.arange(64) % 3


def trained(adapter: Adapter, *, steps: int = 5) -> Tensor:
    """What a model computes after a few steps of Adam."""
    torch.manual_seed(1)
    model = copy.deepcopy(BASE)
    inject(model, adapter)
    optimizer = torch.optim.AdamW(parameter_groups(model, adapter, lr=1e-3), lr=1e-3, weight_decay=0.0, eps=1e-12)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    return model(X).detach()


@pytest.mark.parametrize("method", [Lora, LoraFA])
@pytest.mark.parametrize("rank", [2, 16])
def test_a_rate_does_what_it_does_with_a_fixed_alpha(method: Any, rank: int) -> None:
    """The reparametrisation is exact: twice the rank at 8 / rank of the rate, or 16 at all of it."""
    adapter = partial(method, targets="*", rank=rank, lr_rank=8)
    assert torch.allclose(trained(adapter()), trained(adapter(alpha=16)), atol=2e-6)
    assert not torch.allclose(trained(adapter(lr_rank=None)), trained(adapter(alpha=16)), atol=1e-4)


@pytest.mark.parametrize("method", [Lora, LoraFA, Dora])
def test_the_default_rank_and_a_given_alpha_learn_at_the_rate_itself(method: Any) -> None:
    for adapter in (
        method(targets="*"),
        method(targets="*", rank=16, alpha=8),
        method(targets="*", rank=4, lr_rank=None),
    ):
        inject(model := copy.deepcopy(BASE), adapter)
        assert set(adapter.lr_factors(model).values()) == {1.0}


def test_each_layer_goes_by_its_own_rank() -> None:
    adapter = Lora(targets="*", rank=4, rank_pattern={"2": 2}, lr_ratio_B=3, lr_rank=8)
    inject(model := copy.deepcopy(BASE), adapter)
    factors = adapter.lr_factors(model)
    assert factors == {model[0].lora_B: 3 * 8 / 4, model[2].lora_B: 3 * 8 / 2}


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"init": "pissa"}, {"init": "olora"}])
def test_what_scales_by_itself_is_left_alone(settings: dict[str, Any]) -> None:
    adapter = Lora(targets="*", rank=2, lr_rank=8, **settings)
    inject(model := copy.deepcopy(BASE), adapter)
    assert set(adapter.lr_factors(model).values()) == {1.0}


def test_a_rank_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="lr_rank"):
        Lora(targets="*", lr_rank=0)
