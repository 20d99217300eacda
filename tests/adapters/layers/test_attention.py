"""LoRA on PyTorch's attention computes what the plain layer with W + (alpha / rank) B A would, on every path."""

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from loralight.adapters import Lora, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers.attention import LoraAttention
from loralight.errors import InputError

HALF = {torch.float16: 3e-3, torch.bfloat16: 2e-2}
many = pytest.mark.parametrize("num_specs", [60, pytest.param(500, marks=pytest.mark.slow)])


def draw_attention(draw: random.Random) -> tuple[nn.MultiheadAttention, list[Tensor], dict[str, Any]]:
    """A layer, its query, key and value, and the other arguments of its forward."""
    heads, batch, length = draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 5)
    width = heads * draw.randint(1, 6)
    itself = draw.random() < 0.5
    batch_first = draw.random() < 0.5
    other = {} if itself or draw.random() < 0.5 else {"kdim": draw.randint(1, 9), "vdim": draw.randint(1, 9)}
    layer = nn.MultiheadAttention(
        width,
        heads,
        bias=draw.random() < 0.7,
        add_bias_kv=draw.random() < 0.2,
        add_zero_attn=draw.random() < 0.2,
        batch_first=batch_first,
        **other,
    )
    keys = length if itself else draw.randint(1, 5)

    def sequence(length: int, width: int) -> Tensor:
        return torch.randn(*((batch, length) if batch_first else (length, batch)), width)

    query = sequence(length, width)
    key, value = (sequence(keys, other.get(name, width)) for name in ("kdim", "vdim"))
    arguments: dict[str, Any] = {"need_weights": draw.random() < 0.5}
    if draw.random() < 0.4:
        arguments["key_padding_mask"] = torch.arange(keys) >= torch.randint(1, keys + 1, (batch, 1))
    elif draw.random() < 0.4:
        arguments["attn_mask"] = torch.ones(length, keys).triu(1).bool()
    return layer, [query] * 3 if itself else [query, key, value], arguments


def disturbed(layer: nn.Module, slices: str, rank: int = 2, alpha: float = 1.5) -> LoraAttention:
    adapted = LoraAttention.upgrade_(layer.requires_grad_(False), rank=rank, alpha=alpha, slices=slices)
    for parameter in trainable(adapted).values():
        nn.init.normal_(parameter)
    return adapted


def dense_weights(plain: nn.MultiheadAttention, adapted: LoraAttention) -> dict[str, Tensor]:
    """The weights with their updates, formed by the definition, one slice after the other."""
    factors = dict(adapted.named_parameters())
    weights = {}
    for name, weight in plain.named_parameters():
        owner, _, last = name.rpartition(".")
        where = f"{owner}.lora.{last}" if owner else f"lora.{last}"
        if f"{where}.lora_A" not in factors:
            continue
        a, b = factors[f"{where}.lora_A"], factors[f"{where}.lora_B"]
        if name == "in_proj_weight":
            slices = [weight[number * len(weight) // 3 :][: len(weight) // 3] for number in range(3)]
            for number, letter in enumerate(adapted.lora["in_proj_weight"].slices):
                place = "qkv".index(letter)
                slices[place] = slices[place] + 0.75 * b[number] @ a[number]
            weights[name] = torch.cat(slices)
        else:
            weights[name] = weight + 0.75 * b @ a
    return weights


def results(output: tuple[Tensor, Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in output if tensor is not None]


def draw_slices(draw: random.Random) -> str:
    return "".join(draw.sample("qkvo", draw.randint(1, 4)))


@many
def test_random_layers_compute_what_the_definition_says_and_merge_to_it(num_specs: int) -> None:
    draw = random.Random(0)
    torch.manual_seed(0)
    for _ in range(num_specs):
        plain, inputs, arguments = draw_attention(draw)
        slices, training, grad = draw_slices(draw), draw.random() < 0.5, draw.random() < 0.5
        plain.train(training).requires_grad_(False)
        with torch.set_grad_enabled(grad):
            fresh = LoraAttention.upgrade_(copy.deepcopy(plain), rank=2, alpha=1.5, slices=slices)
            adapted = disturbed(copy.deepcopy(plain), slices)
            exact = copy.deepcopy(plain).double()
            weights = dense_weights(exact, copy.deepcopy(adapted).double())
            expected = torch.func.functional_call(exact, weights, tuple(x.double() for x in inputs), arguments)
            base = plain(*inputs, **arguments)
            with torch.no_grad():  # the kernel that the base takes, whose weights need no gradient
                started = fresh(*inputs, **arguments)
            found = adapted(*inputs, **arguments)
            adapted.merge_()
            merged = adapted(*inputs, **arguments)
        for tensors in zip(*map(results, (expected, base, started, found, merged)), strict=True):
            want, plainly, begun, ours, after = tensors
            scale = want.norm() + inputs[0].norm()
            assert torch.equal(begun, plainly), plain
            assert (ours - want).norm() <= 2e-6 * scale and (after - want).norm() <= 2e-6 * scale, plain
        assert type(adapted) is nn.MultiheadAttention and type(adapted.out_proj) is type(plain.out_proj)
        assert vars(adapted).keys() == vars(plain).keys()
        assert adapted.state_dict().keys() == plain.state_dict().keys()


def test_gradients_are_those_of_the_dense_formula() -> None:
    draw = random.Random(1)
    torch.manual_seed(0)
    for _ in range(30):
        plain, inputs, arguments = draw_attention(draw)
        plain.double().requires_grad_(False).train(draw.random() < 0.5)
        inputs = [x.double().requires_grad_() for x in inputs]
        adapted = disturbed(copy.deepcopy(plain), draw_slices(draw))
        expected = torch.func.functional_call(plain, dense_weights(plain, adapted), tuple(inputs), arguments)[0]
        found = adapted(*inputs, **arguments)[0]
        leaves = [inputs[0], *trainable(adapted).values()]
        upstream = torch.randn_like(found)
        theirs = torch.autograd.grad(expected, leaves, upstream, materialize_grads=True)
        ours = torch.autograd.grad(found, leaves, upstream, materialize_grads=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_layers_in_half_precision_agree_with_their_merged_selves(dtype: torch.dtype) -> None:
    draw = random.Random(3)
    torch.manual_seed(0)
    for _ in range(20):
        plain, inputs, arguments = draw_attention(draw)
        inputs = [x.to(dtype) for x in inputs]
        adapted = disturbed(plain.to(dtype), "qkvo")
        before = adapted(*inputs, **arguments)[0]
        assert before.dtype is dtype and {p.dtype for p in trainable(adapted).values()} == {torch.float32}
        adapted.merge_()
        error = (adapted(*inputs, **arguments)[0].double() - before).norm()
        assert error <= HALF[dtype] * before.double().norm()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(12, 3, batch_first=True)
        nn.init.normal_(self.attn.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


def test_peft_computes_the_same_with_the_slices_as_blocks_of_one_update() -> None:
    """PEFT has one pair for q, k and v: A below A, and B on the diagonal, of three times the rank.

    The output projection is left out: PEFT 0.21 adds its update twice.
    """
    base = Attention()
    model, adapter = copy.deepcopy(base), Lora(targets="attn", rank=2, alpha=3, slices={"attn": "qkv"})
    inject(model, adapter)
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    theirs = get_peft_model(copy.deepcopy(base), LoraConfig(r=6, lora_alpha=9, target_modules=["attn"]))
    packed = model.attn.lora["in_proj_weight"]
    for name, tensor in {"lora_A": packed.lora_A.flatten(0, 1), "lora_B": torch.block_diag(*packed.lora_B)}.items():
        theirs.get_parameter(f"base_model.model.attn.{name}.default.weight").data.copy_(tensor)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert adapter.peft_config(model) is None, "PEFT's tensors have other shapes"


def encoder(**settings: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **settings)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not settings.get("norm_first", False))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", [{}, {"norm_first": True}, {"activation": "gelu"}], ids=str)
@pytest.mark.parametrize("targets", ["attention", "mlp", "all", "layers.1.linear1"])
def test_a_transformer_in_evaluation_computes_with_the_updates_though_its_kernel_passes_the_layers_by(
    targets: str, settings: dict[str, Any], masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = encoder(**settings).eval()
    x = torch.randn(3, 5, 8)
    mask = torch.arange(5) >= torch.tensor([[5], [3], [1]]) if masked else None
    keep = torch.ones(3, 5).bool() if mask is None else ~mask
    model = copy.deepcopy(base)
    inject(model, Lora(targets=targets, rank=2))
    calls = []
    kernel = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a: (calls.append(1), kernel(*a))[1])
    with torch.no_grad():
        assert torch.equal(model(x, src_key_padding_mask=mask), base(x, src_key_padding_mask=mask))
        for parameter in trainable(model).values():
            nn.init.normal_(parameter, std=0.5)
        fast = model(x, src_key_padding_mask=mask)[keep]
        started = base(x, src_key_padding_mask=mask)[keep]
    assert len(calls) == 8, "two layers, each time"
    slow = copy.deepcopy(model)
    for layer in slow.layers:
        layer.activation_relu_or_gelu = 0  # no such kernel
    slow.use_nested_tensor = False
    step_by_step = slow(x, src_key_padding_mask=mask)[keep]
    slow.train()
    for module in slow.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    in_training = slow(x, src_key_padding_mask=mask)[keep]
    merge(model)
    with torch.no_grad():
        merged = model(x, src_key_padding_mask=mask)[keep]
    assert (fast - started).norm() > 0.01 * started.norm()
    for other in (step_by_step, in_training, merged):
        assert (fast - other).norm() <= 2e-6 * fast.norm()
    assert [type(module) for module in model.modules()] == [type(module) for module in base.modules()]


@pytest.mark.parametrize("targets", ["all", "mlp", "attention"])
@pytest.mark.parametrize("training", [[], ["linear1", "linear2"]], ids=str)
def test_a_transformer_in_evaluation_learns_where_gradients_are_on(targets: str, training: list[str]) -> None:
    """Also where only what learns is in training mode, so that frozen dropout is off."""
    model = encoder().eval()
    inject(model, Lora(targets=targets, rank=2))
    for name, module in model.named_modules():
        module.training = name.rpartition(".")[2] in training
    model(torch.randn(2, 3, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in trainable(model).values())


@pytest.mark.parametrize(
    ("slices", "names"),
    [
        ("qv", {"lora.in_proj_weight.lora_A", "lora.in_proj_weight.lora_B"}),
        ("o", {"out_proj.lora.weight.lora_A", "out_proj.lora.weight.lora_B"}),
    ],
)
def test_only_the_slices_that_were_asked_for_have_updates(slices: str, names: set[str]) -> None:
    model = Attention()
    inject(model, Lora(targets="attn", slices={"attn": slices}, rank=2))
    assert set(trainable(model.attn)) == names
    if slices == "qv":
        nn.init.normal_(model.attn.lora["in_proj_weight"].lora_B)
        changed = (model.attn.in_proj_weight - model.attn._parameters["in_proj_weight"]).view(3, 12, 12).any(-1).any(-1)
        assert changed.tolist() == [True, False, True]


def test_lora_plus_and_ranks_reach_all_projections() -> None:
    model, adapter = Attention(), Lora(targets="attn", rank=2, rank_pattern={"attn": 3}, lr_rank=None, lr_ratio_B=4)
    inject(model, adapter)
    assert {tuple(p.shape) for p in adapter.lr_factors(model)} == {(3, 12, 3), (12, 3)}
    assert set(adapter.lr_factors(model).values()) == {4}


def test_dropout_on_attention_is_refused() -> None:
    model = Attention()
    with pytest.raises(InputError, match=r"E-LAYER: attn is adapted in its weights alone.*dropout=0\.1"):
        inject(model, Lora(targets="attn", dropout=0.1))
    assert type(model.attn) is nn.MultiheadAttention


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("training", [False, True])
def test_an_adapted_transformer_can_be_copied(copied: Any, training: bool) -> None:
    model = encoder(dropout=0.0).train(training)
    inject(model, Lora(targets="all", rank=2))
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 8)
    before, twin = model(x), copied(model)
    assert torch.equal(twin(x), before)
    merge(twin)
    assert torch.equal(model(x), before), "the copy shares nothing with the original"


# torch's compiler reads the gradient of every tensor that it looks at, before 2.13 with this warning
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiling_changes_nothing() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    inject(model, Lora(targets="all", rank=2))
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), model(x), rtol=1e-5, atol=1e-5)
