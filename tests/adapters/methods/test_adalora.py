import copy
import math
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters import AdaLora, Lora, LoraLayer, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers.adalora import ADALORA_LAYERS, AdaLoraLayer
from loralight.errors import InputError

NUM_STEPS = 40
PARTS = {"lora_P": "lora_B", "lora_Lambda": "lora_E", "lora_Q": "lora_A"}
KINDS: list[tuple[Any, tuple[int, ...]]] = [
    (nn.Linear(7, 9), (2, 3, 7)),
    (Conv1D(9, 7), (2, 7)),
    (nn.Conv1d(4, 6, 3), (2, 4, 8)),
    (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
    (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
]


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 5)).double()


def adapted(**settings: Any) -> tuple[nn.Sequential, AdaLora]:
    defaults = {"targets": "all-linear", "rank": 2, "initial_rank": 4, "initial": 0.1, "final": 0.25, "interval": 3}
    model, adapter = build(), AdaLora(**{**defaults, **settings})
    inject(model, adapter)
    return model, adapter


def layers(model: nn.Module) -> dict[str, AdaLoraLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, AdaLoraLayer)}


def train(model: nn.Module, adapter: AdaLora, first: int = 1, last: int = NUM_STEPS) -> None:
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.5)
    for step in range(first, last + 1):
        random = torch.Generator().manual_seed(step)
        x = torch.randn(16, 8, dtype=torch.float64, generator=random)
        optimizer.zero_grad()
        loss = (model(x) - x[:, :5].sin()).square().mean()
        (loss + (adapter.penalty(model) or 0.0)).backward()
        optimizer.step()
        adapter.after_step_(model, step=step, num_steps=NUM_STEPS)


def theirs_beside(ours: nn.Module) -> Any:
    """PEFT's AdaLoRA on the same base, with the schedule of `adapted`."""
    config = peft.AdaLoraConfig(
        target_modules=["0", "2", "4"],
        init_r=4,
        target_r=2,
        lora_alpha=8,
        tinit=4,
        tfinal=10,
        deltaT=3,
        total_step=NUM_STEPS,
    )
    plain: Any = build()
    theirs = peft.get_peft_model(plain, config).double()
    for name in layers(ours):
        theirs.get_parameter(f"base_model.model.{name}.ranknum.default").data.fill_(4 - 1e-5)  # theirs adds 1e-5
    return theirs


def copy_to(theirs: Any, ours: nn.Module) -> None:
    """Give PEFT's parameters our values and gradients."""
    for name, layer in layers(ours).items():
        for our, their in PARTS.items():
            source, target = layer.get_parameter(our), theirs.get_parameter(f"base_model.model.{name}.{their}.default")
            target.data.copy_(source.detach().view(target.shape))
            target.grad = None if source.grad is None else source.grad.clone().view(target.shape)


def test_ranks_are_given_to_layers_as_pefts_allocator_gives_them_at_the_same_gradients() -> None:
    ours, adapter = adapted()
    theirs, cuts = theirs_beside(ours), 0
    allocator = theirs.base_model.rankallocator
    torch.manual_seed(1)
    for step in range(1, NUM_STEPS - 10):
        for layer in layers(ours).values():
            for part in PARTS:
                parameter = layer.get_parameter(part)
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
                parameter.grad = torch.randn_like(parameter)
        copy_to(theirs, ours)
        _, pattern = allocator.update_and_allocate(theirs.base_model.model, step)
        adapter.after_step_(ours, step=step, num_steps=NUM_STEPS)
        for name, layer in layers(ours).items():
            their = theirs.get_parameter(f"base_model.model.{name}.lora_E.default").flatten()
            torch.testing.assert_close(layer.lora_Lambda, their)
            if pattern is not None:
                assert layer.chosen.tolist() == pattern[f"{name}.lora_E.default"]
                cuts += 1
    assert cuts == 3 * 8, "at steps 6, 9, ..., 27"


def test_outputs_gradients_and_penalty_are_those_of_peft() -> None:
    ours, adapter = adapted(orthogonality=0.5)
    theirs = theirs_beside(ours)
    for parameter in trainable(ours).values():
        nn.init.normal_(parameter)
    copy_to(theirs, ours)
    x = torch.randn(6, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
    strays = []
    for name, parameter in theirs.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            matrix = parameter if "lora_A" in name else parameter.T
            strays.append((matrix @ matrix.T - torch.eye(4, dtype=torch.float64)).norm())
    expected = 0.5 * sum(strays) / len(strays)
    penalty = adapter.penalty(ours)
    assert penalty is not None
    torch.testing.assert_close(penalty, expected)
    names = [
        (f"{n}.{our}", f"base_model.model.{n}.{their}.default") for n in layers(ours) for our, their in PARTS.items()
    ]
    found = torch.autograd.grad(ours(x).square().sum(), [ours.get_parameter(our) for our, _ in names])
    wanted = torch.autograd.grad(theirs(x).square().sum(), [theirs.get_parameter(their) for _, their in names])
    for gradient, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, want.view(gradient.shape), rtol=1e-9, atol=1e-9)


def test_ranks_fall_by_the_cubic_schedule_to_their_target_and_stay() -> None:
    model, adapter = adapted()
    left = []
    for step in range(1, NUM_STEPS + 1):
        train(model, adapter, step, step)
        left.append(sum(int(layer.chosen.sum()) for layer in layers(model).values()))
    assert left[:5] == [12] * 5, "nothing is cut before 0.1 of the run"
    expected = [int(6 + 6 * (1 - (step - 4) / 26) ** 3) for step in range(6, 30, 3)]
    assert left[5:29:3] == expected
    assert left[29:] == [6] * 11, "and the last cut is at 0.75 of it"
    nonzero = sum(int((layer.lora_Lambda != 0).sum()) for layer in layers(model).values())
    assert nonzero == 6


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    whole, adapter = adapted()
    train(whole, adapter)
    half, _ = adapted()
    train(half, adapter, last=17)
    saved = copy.deepcopy(half.state_dict())
    resumed, _ = adapted()
    resumed.load_state_dict(saved)
    train(resumed, adapter, first=18)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_trained_adapter_is_kept_as_plain_lora_with_ranks_of_its_own_which_peft_loads() -> None:
    model, adapter = adapted()
    train(model, adapter)
    layers(model)["2"].lora_Lambda.data.zero_()  # a layer that has lost all
    x = torch.randn(6, 8, dtype=torch.float64)
    expected = model(x)
    kept = adapter.finish_(model)
    assert isinstance(kept, Lora) and not list(model.buffers())
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    assert kept.rank_pattern["2"] == 1 and sum(kept.rank_pattern.values()) <= 7
    fields = kept.peft_config(model)
    assert fields is not None and fields.pop("peft_type") == "LORA"
    plain: Any = build()
    theirs = peft.get_peft_model(plain, peft.LoraConfig(**fields)).double()
    names = kept.peft_names(model)
    tensors = {f"base_model.model.{names[name]}": tensor for name, tensor in trainable(model).items()}
    result = peft.set_peft_model_state_dict(theirs, tensors)
    assert not result.unexpected_keys
    torch.testing.assert_close(theirs(x), expected, rtol=1e-10, atol=1e-10)
    merge(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("plain", "shape"), KINDS, ids=lambda value: str(value)[:20])
def test_every_kind_of_layer_computes_with_its_update_and_can_be_kept_and_merged(
    plain: nn.Module, shape: tuple[int, ...]
) -> None:
    model, adapter = nn.Sequential(copy.deepcopy(plain)).double(), AdaLora(targets="0", rank=2, initial_rank=3)
    inject(model, adapter)
    x = torch.randn(shape, dtype=torch.float64)
    # bit for bit in float32, as the contract has it; a BLAS may sum half of a convolution's outputs in another order
    torch.testing.assert_close(model(x), copy.deepcopy(plain).double()(x), rtol=1e-14, atol=1e-14)
    layer = model[0]
    assert isinstance(layer, AdaLoraLayer)
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    up, values, down = layer.lora_P.flatten(1), layer.lora_Lambda, layer.lora_Q.flatten(1)
    update = 2.0 * up @ values.diag() @ down
    dense: Any = copy.deepcopy(plain).double()
    dense.weight = nn.Parameter(dense.weight + layer.as_weight(update))
    expected = dense(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    merged = copy.deepcopy(model)
    merge(merged)
    torch.testing.assert_close(merged(x), expected, rtol=1e-10, atol=1e-10)
    assert vars(merged[0]).keys() == vars(plain).keys()
    adapter.finish_(model)
    assert isinstance(model[0], LoraLayer) and not isinstance(model[0], AdaLoraLayer)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_every_kind_of_layer_is_put_to_these_tests() -> None:
    assert {type(plain) for plain, _ in KINDS} == ADALORA_LAYERS.keys()


def test_without_gradients_of_importance_a_run_of_one_step_keeps_its_budget() -> None:
    model, adapter = adapted(orthogonality=0.0)
    assert adapter.penalty(model) is None
    for parameter in trainable(model).values():
        parameter.grad = torch.zeros_like(parameter)
    adapter.after_step_(model, step=1, num_steps=1)
    assert sum(int(layer.chosen.sum()) for layer in layers(model).values()) == 6


def test_a_run_without_an_end_has_no_schedule() -> None:
    model, adapter = adapted()
    with pytest.raises(InputError, match="E-STEPS: adalora"):
        adapter.after_step_(model, step=1, num_steps=math.inf)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 9, "initial_rank": 8}, "E-RANK: adapter.rank=9 is above adapter.initial_rank=8"),
        ({"initial_rank": 0}, "E-RANK: adapter.initial_rank is 0"),
        ({"interval": 0}, "E-RANK: adapter.interval is 0"),
        ({"initial": 0.5, "final": 0.5}, "E-SCHEDULE: adapter.initial=0.5 and adapter.final=0.5"),
        ({"initial": -0.1}, "E-SCHEDULE"),
        ({"beta1": 1.0}, "E-BETA: adapter.beta1"),
        ({"beta2": 0.0}, "E-BETA: adapter.beta2"),
        ({"orthogonality": -1.0}, "E-PENALTY"),
        ({"alpha": 0.0}, "E-ALPHA"),
        ({"dropout": 1.0}, "E-DROPOUT"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdaLora(targets="all-linear", **settings)
