import copy
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loralight.adapters import Lora, LoraLinear, inject, merge
from loralight.adapters.base import trainable
from loralight.errors import InputError
from loralight.training.optim import parameter_groups

HALF = {torch.float16: 3e-3, torch.bfloat16: 2e-2}


class Blocks(nn.Module):
    """Two blocks of two layers, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(6, 9), "down": nn.Linear(9, 6)}) for _ in range(2))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["down"](F.gelu(block["up"](x)))
        return x


def with_random_factors(model: nn.Module) -> nn.Module:
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    return model


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize(
    "settings",
    [
        {"targets": "all-linear", "rank": 3},
        {"targets": ["up"], "rank": 2, "alpha": 5.0},
        {"targets": "all-linear", "exclude": ["blocks.1.down"]},
        {"targets": "all-linear", "rank": 2, "rank_pattern": {"*.0.*": 4}, "alpha_pattern": {"*.up": 3, "*.1.up": 7.0}},
        {"targets": "all-linear", "rank": 2, "alpha": 1.0, "rank_pattern": {"*": 4, "blocks.1.up": 1}},
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_peft(settings: dict[str, Any]) -> None:
    base = Blocks()
    adapter = Lora(**settings)
    ours, x = copy.deepcopy(base), torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    inject(ours, adapter)
    with_random_factors(ours)
    fields = adapter.peft_config(ours)
    assert fields.pop("peft_type") == "LORA"
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**fields)).double()
    names = {f"base_model.model.{name}.default.weight": name for name in trainable(ours)}
    assert set(names) == set(trainable(theirs))
    for theirs_name, name in names.items():
        theirs.get_parameter(theirs_name).data.copy_(ours.get_parameter(name))

    y, expected, direction = ours(x), theirs(x), torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(y, [x, *(ours.get_parameter(n) for n in names.values())], direction)
    wanted = torch.autograd.grad(expected, [x, *(theirs.get_parameter(n) for n in names)], direction)
    torch.testing.assert_close(gradients, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("seed", range(100))
def test_a_layer_of_any_shape_computes_the_dense_formula_merged_or_not(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    fan_in, fan_out, rank = torch.randint(1, 40, (3,), generator=random).tolist()
    batch = torch.randint(0, 5, (seed % 4,), generator=random).tolist()
    plain = nn.Linear(fan_in, fan_out, bias=seed % 2 == 0).double()
    layer = LoraLinear.upgrade_(copy.deepcopy(plain), rank=rank, alpha=1.5 * rank)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(*batch, fan_in, dtype=torch.float64)
    expected = F.linear(x, plain.weight + 1.5 * layer.lora_B @ layer.lora_A, plain.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    layer.merge_()
    assert type(layer) is nn.Linear and vars(layer).keys() == vars(plain).keys()
    assert layer.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", HALF)
def test_a_layer_in_half_precision_keeps_its_factors_in_single_and_agrees_with_its_merged_self(
    dtype: torch.dtype,
) -> None:
    model = nn.Sequential(nn.Linear(64, 64)).to(dtype)
    inject(model, Lora(targets="0", rank=4))
    nn.init.normal_(model[0].lora_B, std=0.05)
    x = torch.randn(32, 64, dtype=dtype)
    adapted = model(x)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    assert adapted.dtype == dtype
    merge(model)
    assert model[0].weight.dtype == dtype
    assert relative_error(model(x), adapted) < HALF[dtype]


def test_merging_rounds_to_half_precision_once() -> None:
    layer = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    LoraLinear.upgrade_(layer, rank=4, alpha=4)
    nn.init.normal_(layer.lora_B)
    exact = layer.weight.double() + layer.lora_B.double() @ layer.lora_A.double()
    layer.merge_()
    assert ((layer.weight - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("trained", [False, True])
def test_float16_activations_near_the_largest_number_make_no_nan(trained: bool) -> None:
    base = nn.Sequential(nn.Linear(256, 64, dtype=torch.float16))
    model = copy.deepcopy(base)
    inject(model, Lora(targets="0"))
    if trained:
        nn.init.normal_(model[0].lora_B)
    x = ((torch.rand(50, 256) * 2 - 1) * 6e4).half()
    x[0] = 6e4
    finite = base(x).isfinite()
    assert finite.any() and not model(x)[finite].isnan().any()
    if not trained:
        assert torch.equal(model(x), base(x))


def test_dropout_acts_on_the_low_rank_path_alone_and_in_training_alone() -> None:
    plain = nn.Linear(50, 50)
    layer = LoraLinear.upgrade_(copy.deepcopy(plain), rank=50, alpha=50, dropout=0.25)
    x = torch.randn(200, 50)
    assert torch.equal(layer(x), plain(x)), "B is zero: whatever is dropped, the base's output stays"
    with torch.no_grad():
        layer.lora_A.copy_(torch.eye(50))
        layer.lora_B.copy_(torch.eye(50))
    path = layer(x) - plain(x)  # the dropped x itself
    dropped = path.abs() < 1e-5
    torch.testing.assert_close(path[~dropped], x[~dropped] / 0.75, rtol=1e-4, atol=1e-5)
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(layer.eval()(x) - plain(x), x)


@pytest.mark.parametrize(
    "settings, scaling, ranks",
    [
        ({}, {2.0}, {8}),
        ({"rank": 3}, {2.0}, {3}),
        ({"rank": 3, "rank_pattern": {"up": 5}}, {2.0}, {3, 5}),
        ({"rank": 4, "alpha": 4}, {1.0}, {4}),
        ({"rank": 4, "alpha_pattern": {"*.0.up": 2}}, {0.5, 2.0}, {4}),
    ],
    ids=str,
)
def test_alpha_is_twice_the_rank_of_each_layer_unless_told(
    settings: dict[str, Any], scaling: set[float], ranks: set[int]
) -> None:
    model = Blocks()
    inject(model, Lora(targets="all-linear", **settings))
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert {layer.scaling for layer in layers} == scaling
    assert {layer.lora_A.shape[0] for layer in layers} == {layer.lora_B.shape[1] for layer in layers} == ranks


def test_the_last_pattern_that_matches_a_layer_gives_its_rank() -> None:
    model = Blocks()
    inject(model, Lora(targets="all-linear", rank_pattern={"*": 2, "*.up": 3, "blocks.1.*": 4}))
    ranks = {name: layer.rank for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}
    assert ranks == {"blocks.0.up": 3, "blocks.0.down": 2, "blocks.1.up": 4, "blocks.1.down": 4}


def test_factors_start_as_the_paper_says_a_as_pytorch_starts_a_linear_layer_and_b_zero() -> None:
    torch.manual_seed(0)
    layer = LoraLinear.upgrade_(nn.Linear(300, 10), rank=40, alpha=1)
    torch.manual_seed(0)
    nn.Linear(300, 10)
    expected = nn.Linear(300, 40).weight
    assert torch.equal(layer.lora_A, expected) and not layer.lora_B.any()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 0}, "E-RANK: adapter.rank is 0"),
        ({"rank": -4}, "E-RANK: adapter.rank is -4"),
        ({"rank": 2.5}, "E-RANK: adapter.rank is 2.5"),
        ({"rank": True}, "E-RANK: adapter.rank is True"),
        ({"rank": "8"}, "E-RANK: adapter.rank is '8'"),
        ({"rank_pattern": {"*.up": 0}}, r"E-RANK: adapter.rank_pattern\[\*.up\] is 0"),
        ({"alpha": 0}, "E-ALPHA: adapter.alpha is 0"),
        ({"alpha": -1.0}, "E-ALPHA: adapter.alpha is -1.0"),
        ({"alpha": float("nan")}, "E-ALPHA: adapter.alpha is nan"),
        ({"alpha": float("inf")}, "E-ALPHA: adapter.alpha is inf"),
        ({"alpha": "16"}, "E-ALPHA: adapter.alpha is '16'"),
        ({"alpha": True}, "E-ALPHA: adapter.alpha is True"),
        ({"alpha_pattern": {"up": -2}}, r"E-ALPHA: adapter.alpha_pattern\[up\] is -2"),
        ({"dropout": 1.0}, "E-DROPOUT: adapter.dropout is 1.0"),
        ({"dropout": -0.1}, "E-DROPOUT: adapter.dropout is -0.1"),
        ({"dropout": float("nan")}, "E-DROPOUT: adapter.dropout is nan"),
        ({"lr_ratio_B": 0.0}, "E-LR-RATIO: adapter.lr_ratio_B is 0.0"),
        ({"lr_ratio_B": float("inf")}, "E-LR-RATIO: adapter.lr_ratio_B is inf"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Lora(targets="all-linear", **settings)


def test_the_factors_and_the_head_learn_and_nothing_else() -> None:
    model = Blocks()
    inject(model, Lora(targets="blocks.0.*"), head=[model.blocks[1]["down"]])
    factors = {f"blocks.0.{layer}.{factor}" for layer in ("up", "down") for factor in ("lora_A", "lora_B")}
    assert set(trainable(model)) == factors | {"blocks.1.down.weight", "blocks.1.down.bias"}


def test_lora_plus_trains_every_b_faster_than_its_a() -> None:
    model, adapter = Blocks(), Lora(targets="all-linear", lr_ratio_B=16)
    inject(model, adapter)
    rates = {
        name.rpartition(".")[2]: group["lr"]
        for group in parameter_groups(model, adapter, lr=0.01)
        for name, _ in group["params"]
    }
    assert rates == {"lora_A": 0.01, "lora_B": pytest.approx(0.16)}


def test_an_adapted_layer_is_still_a_linear_layer_with_its_own_weight_and_shows_its_rank() -> None:
    model = Blocks()
    layer = model.blocks[0]["up"]
    weight, keys = layer.weight, set(model.state_dict())
    inject(model, Lora(targets="all-linear", rank=3))
    assert model.blocks[0]["up"] is layer and isinstance(layer, nn.Linear) and layer.weight is weight
    assert keys < set(model.state_dict())
    assert "in_features=6, out_features=9, bias=True, rank=3, alpha=6" in repr(model)


def test_peft_adapts_the_layers_we_adapt_and_none_whose_name_only_ends_alike() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"fc": nn.Linear(4, 4), "block": nn.ModuleDict({"fc": nn.Linear(4, 4)})})

    model = build()
    adapter = Lora(targets="fc", exclude="block.fc", rank=2, rank_pattern={"fc": 3})
    inject(model, adapter)
    config = {key: value for key, value in adapter.peft_config(model).items() if key != "peft_type"}
    theirs = peft.inject_adapter_in_model(peft.LoraConfig(**config), build())
    ranks = {name: dict(module.r)["default"] for name, module in theirs.named_modules() if hasattr(module, "r")}
    assert ranks == {"fc": 3}


@pytest.mark.parametrize(
    ("settings", "scaling"), [({}, 16 / 2), ({"rank": 16}, 16 / 4), ({"alpha": 3.0}, 3 / 2)], ids=str
)
def test_rank_stabilised_scaling_is_that_of_peft(settings: dict[str, Any], scaling: float) -> None:
    model, adapter = (
        nn.Sequential(nn.Linear(20, 20)),
        Lora(**{"targets": "0", "rank": 4, "use_rslora": True, **settings}),
    )
    inject(model, adapter)
    fields = adapter.peft_config(model)
    assert fields is not None and fields.pop("peft_type") == "LORA" and fields["use_rslora"] is True
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(20, 20)), peft.LoraConfig(**fields))  # type: ignore[arg-type]
    assert model[0].scaling == theirs.get_submodule("base_model.model.0").scaling["default"] == scaling


@pytest.mark.parametrize("plain", [nn.Linear(6, 9), nn.Conv2d(6, 9, 1), nn.Conv2d(6, 9, 1, groups=3)], ids=str)
def test_rank_dropout_drops_whole_ranks_in_training_and_keeps_the_expectation(plain: nn.Module) -> None:
    model = nn.Sequential(copy.deepcopy(plain)).double()
    inject(model, Lora(targets="0", rank=5, alpha=5, rank_dropout=0.4))
    layer = with_random_factors(model)[0]
    x = torch.randn(3, 6, *(1,) * (plain.weight.ndim - 2), dtype=torch.float64)
    model.eval()
    whole, base = model(x), F.linear if isinstance(plain, nn.Linear) else layer._conv_forward
    base = base(x, layer.weight, layer.bias)
    parts = []
    for rank in range(5):  # what each rank alone adds
        others = [other for other in range(5) if other != rank]
        kept = layer.lora_B.detach().clone()
        layer.lora_B.data[:, others] = 0.0
        parts.append(model(x) - base)
        layer.lora_B.data.copy_(kept)
    torch.testing.assert_close(base + sum(parts), whole)
    model.train()
    counts = torch.zeros(5)
    for _ in range(400):
        weights = torch.linalg.lstsq(torch.stack([p.flatten() for p in parts], 1), (model(x) - base).flatten()).solution
        ranks = weights.round(decimals=6)
        assert set(ranks.tolist()) <= {0.0, round(1 / 0.6, 6)}
        counts += (ranks > 0).float()
    assert ((counts / 400 - 0.6).abs() < 0.1).all()


def test_what_rank_dropout_drops_gets_no_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9)).double()
    inject(model, Lora(targets="0", rank=8, rank_dropout=0.5))
    with_random_factors(model)(torch.randn(3, 6, dtype=torch.float64)).sum().backward()
    of_a, of_b = model[0].lora_A.grad.any(dim=1), model[0].lora_B.grad.any(dim=0)
    assert torch.equal(of_a, of_b) and 0 < of_a.sum() < 8


@pytest.mark.parametrize("value", [1.0, -0.1, float("nan")])
def test_a_rank_dropout_that_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"E-DROPOUT: adapter\.rank_dropout"):
        Lora(targets="0", rank_dropout=value)
