import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters import Lora, LoraLayer, inject
from loralight.adapters.base import trainable
from loralight.adapters.layers.eva import deal
from loralight.errors import InputError


def inputs(count: int) -> list[Tensor]:
    """Batches of inputs that vary in three directions, and a little in all."""
    random = torch.Generator().manual_seed(0)
    wide = torch.tensor([9.0, 6.0, 4.0, *[0.02] * 17])
    turned = torch.linalg.qr(torch.randn(20, 20, generator=random)).Q
    return [(torch.randn(8, 5, 20, generator=random) * wide) @ turned for _ in range(count)]


def started(**settings: Any) -> tuple[nn.Sequential, nn.Sequential, Lora, list[Tensor]]:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(20, 16), nn.Linear(16, 12), nn.Tanh(), Conv1D(6, 12))
    model, adapter = copy.deepcopy(plain), Lora(**{"targets": "all", "rank": 3, "init": "eva", **settings})
    inject(model, adapter)
    batches = inputs(adapter.eva_batches)
    with torch.no_grad():
        kept = adapter.initialise_(model, lambda count: [model(x) for x in batches[:count]] and None)
    assert isinstance(kept, Lora)
    return plain, model, kept, batches


def layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def test_a_starts_at_the_singular_directions_of_all_inputs_and_the_model_computes_what_the_base_does() -> None:
    plain, model, _, batches = started(eva_spread=1.0)
    x = torch.cat(batches).flatten(0, -2)
    for name, layer in layers(model).items():
        seen = plain[: int(name)](x).detach()
        exact = torch.linalg.svd(seen.double()).Vh[:3]
        found = layer.lora_A.double()
        torch.testing.assert_close(found @ found.T, torch.eye(3).double(), rtol=1e-4, atol=1e-4)
        assert torch.linalg.svdvals(found @ exact.T).min() > 0.999, "the same three directions"
        assert layer.rank == 3
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    assert not model[0]._forward_pre_hooks


def test_ranks_go_to_the_layers_whose_inputs_vary_most_and_their_sum_and_scaling_stay() -> None:
    _, model, kept, _ = started(rank=4)
    ranks = {name: layer.rank for name, layer in layers(model).items()}
    assert sum(ranks.values()) == 12 and min(ranks.values()) >= 1 and len(set(ranks.values())) > 1
    assert {layer.scaling for layer in layers(model).values()} == {2.0}
    assert kept.rank_pattern == ranks and kept.init == "eva"
    rebuilt = started()[0]
    inject(rebuilt, kept)
    rebuilt.load_state_dict(model.state_dict())
    assert trainable(rebuilt).keys() == trainable(model).keys()


def test_ranks_are_dealt_one_to_each_layer_and_then_by_share() -> None:
    shares = {"even": [0.4, 0.3, 0.2], "steep": [0.9, 0.05, 0.01], "flat": [0.1, 0.1, 0.1]}
    assert deal(shares, 3) == {"even": 1, "steep": 1, "flat": 1}
    assert deal(shares, 5) == {"even": 3, "steep": 1, "flat": 1}
    assert deal(shares, 9) == {"even": 3, "steep": 3, "flat": 3}
    assert deal(shares, 1) == {"even": 1, "steep": 1, "flat": 1}


def test_what_eva_cannot_look_at_is_refused() -> None:
    model, adapter = nn.Sequential(nn.Conv2d(3, 4, 3)), Lora(targets="0", init="eva")
    inject(model, adapter)
    with pytest.raises(InputError, match=r"E-INIT: init=eva looks at inputs of linear layers; leave out 0"):
        adapter.initialise_(model, lambda count: None)
    model = nn.Sequential(nn.Linear(3, 4))
    inject(model, adapter)
    with pytest.raises(InputError, match=r"E-UNREACHED: init=eva: no batch reaches 0"):
        adapter.initialise_(model, lambda count: None)
    with pytest.raises(InputError, match=r"E-INIT: adapter\.eva_spread is 0\.5"):
        Lora(targets="0", eva_spread=0.5)


def test_other_initialisations_look_at_no_data() -> None:
    adapter = Lora(targets="0")
    assert adapter.initialise_(nn.Sequential(), lambda count: pytest.fail("not asked for")) is adapter
