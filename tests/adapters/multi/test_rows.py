"""A batch in which each row has its own adapter gives what separate runs give."""

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from loralight.adapters import Lora, LoraLayer, inject
from loralight.adapters.layers.lora import LAYERS
from loralight.adapters.multi.parts import Parts, parts_of
from loralight.adapters.multi.rows import by_rows
from loralight.errors import InputError

# quantised layers are put to it in tests/test_quantisation.py
KINDS = [plain for plain, kind in LAYERS.items() if kind.is_additive]
ROWS = ["a", None, "b", "a", "c", "b"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def layer_of(kind: type[nn.Module], draw: random.Random) -> tuple[nn.Module, Tensor]:
    """A random layer, and a batch for it."""
    if kind in (nn.Linear, Conv1D):
        width, out = draw.randint(2, 20), draw.randint(2, 20)
        layer = nn.Linear(width, out) if kind is nn.Linear else Conv1D(out, width)
        return layer, torch.randn(len(ROWS), *[3] * draw.randint(0, 2), width)
    dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[kind]
    groups = draw.choice([1, 2])
    layer = kind(
        4, 6, draw.randint(1, 3), groups=groups, stride=draw.randint(1, 2), padding=1, dilation=draw.randint(1, 2)
    )
    return layer, torch.randn(len(ROWS), 4, *[7] * dimensions)


def adapted(base: nn.Module, rank: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = copy.deepcopy(base)
    inject(model, Lora(targets="all", rank=rank, alpha=3.0 * rank))
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            nn.init.normal_(layer.lora_A, std=0.3)
            nn.init.normal_(layer.lora_B, std=0.3)
    return model


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_each_row_is_computed_with_its_own_adapter(kind: type[nn.Module], dtype: torch.dtype) -> None:
    draw = random.Random(kind.__name__)
    torch.manual_seed(0)
    for _ in range(10):
        layer, x = layer_of(kind, draw)
        base, x = nn.Sequential(layer).to(dtype), x.to(dtype)
        models = {name: adapted(base, draw.randint(1, 5)) for name in "abc"}
        plain = base(x)
        with by_rows(base, {name: parts_of(model, ()) for name, model in models.items()}, ROWS) as mixed:
            found = mixed(x)
        for number, name in enumerate(ROWS):
            wanted = (base if name is None else models[name])(x[number : number + 1])
            assert relative(found[number : number + 1], wanted) <= TOLERANCE[dtype], (layer, name)
        assert torch.equal(base(x), plain), "after it the base is the base again, bit for bit"


@torch.no_grad()
def test_rows_compute_the_dense_formula() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(7, 5)).double()
    models = {name: adapted(base, rank) for name, rank in {"a": 1, "b": 4, "c": 2}.items()}
    x = torch.randn(len(ROWS), 3, 7, dtype=torch.float64)
    with by_rows(base, {name: parts_of(model, ()) for name, model in models.items()}, ROWS) as mixed:
        found = mixed(x)
    for row, name, y in zip(x, ROWS, found, strict=True):
        weight = base[0].weight
        if name is not None:
            layer: Any = models[name][0]
            weight = weight + layer.alpha / layer.rank * (layer.lora_B @ layer.lora_A)
        assert relative(y, row @ weight.T + base[0].bias) <= 1e-12


class Classifier(nn.Module):
    """A layer, a norm and a head, of which adapters have their own."""

    def __init__(self, labels: int = 2) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 4, 1)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.second(self.first(x))).mean(-1))


def classifier(base: nn.Module, labels: int, targets: Sequence[str]) -> tuple[nn.Module, Parts]:
    model: Any = copy.deepcopy(base)
    model.head = nn.Linear(4, labels, dtype=torch.float64)
    inject(model, Lora(targets=targets, rank=2), head=[model.head])
    nn.init.normal_(model.get_parameter(f"{targets[0]}.lora_B"))
    nn.init.normal_(model.norm.running_mean)
    return model, parts_of(model, ["head", "norm"])


@torch.no_grad()
def test_heads_of_other_widths_norms_and_layers_that_only_one_adapter_has_are_each_rows_own() -> None:
    torch.manual_seed(0)
    base = Classifier().double().eval().requires_grad_(False)
    made = {
        "a": classifier(base, 2, ["first"]),
        "b": classifier(base, 5, ["second"]),
        "c": classifier(base, 3, ["first", "second"]),
    }
    x = torch.randn(len(ROWS), 3, 8, dtype=torch.float64)
    with by_rows(base, {name: parts for name, (_, parts) in made.items()}, ROWS) as mixed:
        found = mixed(x)
    assert found.shape == (len(ROWS), 5)
    for number, name in enumerate(ROWS):
        wanted = (base if name is None else made[name][0])(x[number : number + 1])[0]
        assert relative(found[number, : len(wanted)], wanted) <= 1e-12
        assert (found[number, len(wanted) :] == -torch.inf).all(), "the probability of a label it has not is 0"
    with by_rows(base, {"a": made["a"][1]}, ["a"] * len(ROWS)) as mixed:
        torch.testing.assert_close(mixed(x), made["a"][0](x), rtol=1e-12, atol=1e-12)


def test_gradients_reach_each_adapter_from_its_rows_alone() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(5, 4)).double().requires_grad_(False)
    models = {name: adapted(base, 2) for name in "ab"}
    rows, x = ["a", "b", "b"], torch.randn(3, 5, dtype=torch.float64)
    with by_rows(base, {name: parts_of(model, ()) for name, model in models.items()}, rows) as mixed:
        mixed(x).square().sum().backward()
    for name, model in models.items():
        mine = x[[number for number, row in enumerate(rows) if row == name]]
        factors = [model[0].lora_A, model[0].lora_B]
        wanted = torch.autograd.grad(model(mine).square().sum(), factors)
        for factor, gradient in zip(factors, wanted, strict=True):
            torch.testing.assert_close(factor.grad, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks transformers for it
@torch.no_grad()
def test_peft_computes_the_same_with_adapter_names() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    base = BertForSequenceClassification(config).eval().requires_grad_(False)
    models = {}
    for name, rank in {"one": 2, "two": 5}.items():
        models[name] = copy.deepcopy(base)
        inject(models[name], Lora(targets=["query", "value"], rank=rank, alpha=7))
    theirs: Any = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, lora_alpha=7, target_modules=["query", "value"]), "one"
    )
    theirs.add_adapter("two", LoraConfig(r=5, lora_alpha=7, target_modules=["query", "value"]))
    for name, model in models.items():
        for layer, module in model.named_modules():
            if isinstance(module, LoraLayer):
                nn.init.normal_(module.lora_B, std=0.3)
                for part in ("lora_A", "lora_B"):
                    own = theirs.get_parameter(f"base_model.model.{layer}.{part}.{name}.weight")
                    own.copy_(getattr(module, part))
    rows = ["two", "one", None, "one", "two"]
    ids, mask = torch.randint(50, (5, 9)), (torch.arange(9) < torch.tensor([[9], [4], [7], [9], [2]])).long()
    wanted = theirs.eval()(
        input_ids=ids, attention_mask=mask, adapter_names=[name or "__base__" for name in rows]
    ).logits
    with by_rows(base, {name: parts_of(model, ()) for name, model in models.items()}, rows) as mixed:
        found = mixed(input_ids=ids, attention_mask=mask).logits
    assert relative(found, wanted) <= 2e-6
    assert relative(base(input_ids=ids, attention_mask=mask).logits, wanted) > 1e-3


@pytest.mark.parametrize("size", [1, 5, 12])
def test_a_batch_of_another_size_is_refused(size: int) -> None:
    base = nn.Sequential(nn.Linear(5, 4))
    model = adapted(base, 2)
    with (
        by_rows(base, {"a": parts_of(model, ())}, ["a"] * 6) as mixed,
        pytest.raises(InputError, match=f"^E-ROWS: 6 adapters .* 0 has to do with {size} rows"),
    ):
        mixed(torch.randn(size, 5))


def test_a_failure_leaves_the_base_as_it_was() -> None:
    base = nn.Sequential(nn.Linear(5, 4))
    x, model = torch.randn(2, 5), adapted(base, 2)
    plain = base(x)
    with pytest.raises(ZeroDivisionError), by_rows(base, {"a": parts_of(model, ())}, ["a", "a"]):
        raise ZeroDivisionError
    assert torch.equal(base(x), plain)


def test_what_is_no_low_rank_layer_is_refused_by_its_name_and_kind() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    inject(model, Lora(targets="0", rank=2))
    model[1].bias.requires_grad_(True)
    with pytest.raises(InputError, match=r"^E-KIND: 1 is a LayerNorm in which bias learn"):
        parts_of(model, ())
    assert parts_of(model, ["1"]).whole == {"1": model[1]}
    model[0].bias.requires_grad_(True)
    with pytest.raises(InputError, match=r"^E-KIND: 0 is a LoraLinear in which bias, lora_A, lora_B learn"):
        parts_of(model, ["1"])
