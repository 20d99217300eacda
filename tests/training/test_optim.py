import copy
import functools
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from loralight.adapters import Lora, inject
from loralight.adapters.base import trainable
from loralight.errors import InputError
from loralight.training.optim import by_name, by_position, check_optimizer, parameter_groups, schedule


class Model(nn.Module):
    """Two layers to adapt, a norm, and a head with a matrix and vectors."""

    def __init__(self, order: tuple[str, ...] = ("first", "second")) -> None:
        super().__init__()
        self.body = nn.ModuleDict({name: nn.Linear(4, 4) for name in order})
        self.norm = nn.LayerNorm(4)
        self.head = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body["second"](self.body["first"](x))))


def adapted(adapter: Lora, order: tuple[str, ...] = ("first", "second")) -> Model:
    model = Model(order)
    inject(model, adapter, head=[model.head])
    return model


def settings_of(groups: list[dict[str, Any]], setting: str) -> dict[str, Any]:
    return {name: group.get(setting) for group in groups for name, _ in group["params"]}


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_every_parameter_that_learns_is_in_one_group_once(ratio: float) -> None:
    model, adapter = Model(), Lora(targets="all-linear", lr_ratio_B=ratio)
    inject(model, adapter, head=[model.head])
    groups = parameter_groups(model, adapter, lr=0.1, head=[model.head], head_lr=0.2)
    pairs = [(name, id(parameter)) for group in groups for name, parameter in group["params"]]
    assert sorted(pairs) == sorted((name, id(parameter)) for name, parameter in trainable(model).items())


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, {"lora_A": 0.1, "lora_B": 0.4, "head": 0.1}),
        ({"head_lr": 0.03}, {"lora_A": 0.1, "lora_B": 0.4, "head": 0.03}),
    ],
)
def test_b_learns_at_a_multiple_of_the_rate_and_the_head_at_its_own(
    settings: dict[str, float], expected: dict[str, float]
) -> None:
    adapter = Lora(targets=["first", "second"], lr_ratio_B=4)
    model = adapted(adapter)
    rates = settings_of(parameter_groups(model, adapter, lr=0.1, head=[model.head], **settings), "lr")
    for name, rate in rates.items():
        assert rate == pytest.approx(expected["head" if name.startswith("head") else name.rpartition(".")[2]]), name


def test_weight_decay_falls_on_matrices_alone() -> None:
    adapter = Lora(targets=["first", "second"])
    model = adapted(adapter)
    groups = parameter_groups(model, adapter, lr=0.1, head=[model.head], head_weight_decay=0.3)
    optimizer = AdamW(groups, weight_decay=0.01)
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert decays == {
        "body.first.lora_A": 0.01,
        "body.first.lora_B": 0.01,
        "body.second.lora_A": 0.01,
        "body.second.lora_B": 0.01,
        "head.0.weight": 0.0,
        "head.0.bias": 0.0,
        "head.1.weight": 0.3,
        "head.1.bias": 0.0,
    }


NUM_STEPS = 40
THEIRS = {
    "linear": transformers.get_linear_schedule_with_warmup,
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "polynomial": functools.partial(transformers.get_polynomial_decay_schedule_with_warmup, power=2.0),
}


def rates(make: Any, num_steps: int = NUM_STEPS) -> list[list[float]]:
    """The rates of two groups at each step of a run."""
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-3, 0.5)])
    scheduler = make(optimizer)
    found = []
    for _ in range(num_steps):
        found.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup, steps", [(0.0, 0), (0.25, 10), (0.06, 2), (1, 1), (7, 7), (39, 39)])
@pytest.mark.parametrize("name", THEIRS)
def test_a_schedule_is_that_of_transformers(name: str, warmup: float, steps: int) -> None:
    arguments = {"power": 2.0} if name == "polynomial" else None
    ours = rates(lambda optimizer: schedule(optimizer, NUM_STEPS, name=name, warmup=warmup, arguments=arguments))
    theirs = rates(lambda optimizer: THEIRS[name](optimizer, steps, NUM_STEPS))
    assert ours == theirs


@pytest.mark.parametrize("warmup", [0, 0.5, 3])
def test_a_constant_rate_is_that_of_transformers(warmup: float) -> None:
    steps = 20 if warmup == 0.5 else int(warmup)
    ours = rates(lambda optimizer: schedule(optimizer, NUM_STEPS, name="constant_with_warmup", warmup=warmup))
    assert ours == rates(lambda optimizer: transformers.get_constant_schedule_with_warmup(optimizer, steps))
    assert ours[steps:] == [[1e-3, 0.5]] * (NUM_STEPS - steps)


@pytest.mark.parametrize(
    "warmup, message",
    [
        (41, "scheduler.warmup is 41 steps, but the run has only 40"),
        (1e9, "the run has only 40"),
        (-0.1, "scheduler.warmup is -0.1"),
        (float("nan"), "scheduler.warmup is nan"),
        (float("inf"), "scheduler.warmup is inf"),
    ],
)
def test_a_warmup_that_does_not_fit_the_run_is_refused(warmup: float, message: str) -> None:
    with pytest.raises(InputError, match=f"^E-WARMUP: .*{message}"):
        rates(lambda optimizer: schedule(optimizer, NUM_STEPS, name="linear", warmup=warmup))


def optimizer_of(model: Model, adapter: Lora) -> AdamW:
    optimizer = AdamW(parameter_groups(model, adapter, lr=0.01, head=[model.head], head_lr=0.02))
    optimizer.register_load_state_dict_pre_hook(by_position)
    return optimizer


def train(model: Model, optimizer: AdamW, num_steps: int = 3) -> None:
    for number in range(num_steps):
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 20).view(5, 4) + number).square().sum().backward()
        optimizer.step()


def moments(optimizer: AdamW) -> dict[str, dict[str, Tensor]]:
    return {
        name: optimizer.state[parameter]
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_adams_moments_follow_their_parameters_whatever_the_order_of_layers(order: tuple[str, ...]) -> None:
    adapter = Lora(targets=["first", "second"], lr_ratio_B=4)
    model = adapted(adapter)
    optimizer = optimizer_of(model, adapter)
    train(model, optimizer)
    other = adapted(adapter, order)
    other.load_state_dict(model.state_dict())
    restored = optimizer_of(other, adapter)
    restored.load_state_dict(copy.deepcopy(by_name(optimizer.state_dict())))
    assert list(moments(restored)) == list(moments(optimizer)) or order[0] == "second"
    for name, state in moments(optimizer).items():
        assert all(torch.equal(moments(restored)[name][key], value) for key, value in state.items())

    train(model, optimizer)
    train(other, restored)
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_an_optimizer_that_has_not_stepped_can_be_saved_and_loaded() -> None:
    adapter = Lora(targets="first")
    optimizer = optimizer_of(adapted(adapter), adapter)
    optimizer_of(adapted(adapter), adapter).load_state_dict(by_name(optimizer.state_dict()))


@pytest.mark.parametrize(
    "saved, into",
    [
        (Lora(targets="first"), Lora(targets="second")),
        (Lora(targets="first"), Lora(targets=["first", "second"])),
        (Lora(targets=["first", "second"]), Lora(targets="first")),
        (Lora(targets="first"), Lora(targets="first", lr_ratio_B=4)),
    ],
    ids=["other", "more", "fewer", "split"],
)
def test_a_state_of_other_groups_is_refused(saved: Lora, into: Lora) -> None:
    state = by_name(optimizer_of(adapted(saved), saved).state_dict())
    with pytest.raises(InputError, match=r"^E-OPTIMIZER-STATE: "):
        optimizer_of(adapted(into), into).load_state_dict(state)


def test_a_state_with_a_group_too_many_is_refused() -> None:
    adapter = Lora(targets="first")
    model = adapted(adapter)
    state = by_name(optimizer_of(model, adapter).state_dict())
    without_head = AdamW(parameter_groups(model, adapter, lr=0.01, head=[model.head], head_lr=0.02)[:1])
    without_head.register_load_state_dict_pre_hook(by_position)
    with pytest.raises(InputError, match=r"^E-OPTIMIZER-STATE: "):
        without_head.load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lr": 0.0}, r"E-LR: optimizer\.lr is 0\.0; with that nothing is learned"),
        ({"lr": -1.0}, r"E-LR: optimizer\.lr is -1\.0"),
        ({"lr": float("nan")}, r"E-LR: optimizer\.lr is nan"),
        ({"lr": float("inf")}, r"E-LR: optimizer\.lr is inf"),
        ({"betas": [0.9, 1.5]}, r"E-OPTIMIZER: optimizer: Invalid beta parameter at index 1: 1\.5"),
        ({"betas": [float("nan"), 0.9]}, r"E-OPTIMIZER: optimizer: Invalid beta parameter at index 0: nan"),
        ({"betas": [0.9]}, r"E-OPTIMIZER: optimizer\.betas is \[0\.9\]; give 2 numbers"),
        ({"betas": [0.9, 0.99, 0.999]}, r"E-OPTIMIZER: optimizer\.betas is .*; give 2 numbers"),
        ({"weight_decay": -1.0}, r"E-OPTIMIZER: optimizer: Invalid weight_decay value: -1\.0"),
        ({"weight_decay": float("nan")}, r"E-OPTIMIZER: optimizer\.weight_decay is nan"),
        ({"weight_decay": float("inf")}, r"E-OPTIMIZER: optimizer\.weight_decay is inf"),
        ({"eps": -1e-8}, r"E-OPTIMIZER: optimizer: Invalid epsilon value"),
        ({"eps": 0.0}, r"E-OPTIMIZER: optimizer\.eps is 0"),
    ],
    ids=str,
)
def test_settings_with_which_an_optimizer_cannot_step_or_learns_nothing_are_refused(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=f"^{says}"):
        check_optimizer(partial(AdamW, **{"lr": 0.001, **settings}))


@pytest.mark.parametrize("made", [AdamW, partial(AdamW), partial(AdamW, eps=1e-8)])
def test_an_optimizer_without_a_rate_is_refused(made: Any) -> None:
    with pytest.raises(InputError, match=r"^E-OPTIMIZER: optimizer: give it _partial_: true and lr"):
        check_optimizer(made)


@pytest.mark.parametrize(
    "made",
    [
        partial(torch.optim.SGD, lr=0.1),
        partial(torch.optim.Adafactor, lr=0.01),
        partial(torch.optim.Muon, lr=0.01),
        partial(AdamW, lr=1e-3, betas=[0.9, 0.99], fused=True),
        partial(AdamW, lr=1e-3, capturable=True),
    ],
    ids=lambda made: f"{made.func.__name__} {sorted(made.keywords)}",
)
def test_every_optimizer_of_torch_that_can_be_made_passes(made: Any) -> None:
    check_optimizer(made)
