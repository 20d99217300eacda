"""LoRA on experts' weights computes what a mixture with W + (alpha / rank) B A in every expert would."""

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from loralight.adapters import Lora, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers.experts import ExpertLowRank, LoraExperts
from loralight.errors import InputError

HALF = {torch.float16: 3e-3, torch.bfloat16: 2e-2}
many = pytest.mark.parametrize("num_specs", [60, pytest.param(500, marks=pytest.mark.slow)])


class Experts(nn.Module):
    """Experts whose weights lie as (experts, out, in), or with ``is_transposed`` as (experts, in, out)."""

    def __init__(self, experts: int, width: int, hidden: int, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        up, down = (experts, hidden, width), (experts, width, hidden)  # in a row in memory, as real weights are
        self.up = nn.Parameter(torch.randn(down if is_transposed else up))
        self.down = nn.Parameter(torch.randn(up if is_transposed else down))
        self.bias = nn.Parameter(torch.randn(experts, width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for expert in range(len(self.up)):
            up, down = self.up[expert], self.down[expert]
            up, down = (up, down) if self.is_transposed else (up.T, down.T)
            y = y + torch.tanh(x @ up) @ down + self.bias[expert]
        return y


def draw_experts(draw: random.Random) -> tuple[nn.Sequential, Tensor, list[str]]:
    """A model of one module, an input, and the weights to adapt."""
    width = draw.randint(1, 8)
    experts = Experts(draw.randint(2, 5), width, draw.randint(1, 8), draw.random() < 0.5)
    return (
        nn.Sequential(experts),
        torch.randn(draw.randint(1, 6), width),
        draw.choice([["up"], ["down"], ["up", "down"]]),
    )


def disturbed(model: nn.Module, weights: list[str], rank: int) -> nn.Module:
    inject(model, Lora(targets=[f"0.{name}" for name in weights], rank=rank, alpha=1.5))
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    return model


def dense_weights(plain: Any, adapted: Any, rank: int) -> dict[str, Tensor]:
    """Every expert's weight with its own B A: A has its rows one expert after the other, B its columns rank by rank."""
    weights = {}
    for name, update in adapted[0].lora.items():
        weight = getattr(plain[0], name)
        count = len(weight)
        deltas = [
            1.5 / rank * update.lora_B[:, expert::count] @ update.lora_A[expert * rank : (expert + 1) * rank]
            for expert in range(count)
        ]
        weights[f"0.{name}"] = weight + torch.stack([d.T if plain[0].is_transposed else d for d in deltas])
    return weights


@many
def test_random_experts_compute_what_the_definition_says_and_merge_to_it(num_specs: int) -> None:
    draw = random.Random(0)
    torch.manual_seed(0)
    for _ in range(num_specs):
        plain, x, weights = draw_experts(draw)
        rank = draw.randint(1, 4)
        fresh = copy.deepcopy(plain)
        inject(fresh, Lora(targets="experts", rank=rank))
        assert torch.equal(fresh(x), plain(x))
        adapted = disturbed(copy.deepcopy(plain), weights, rank)
        exact = copy.deepcopy(plain).double()
        dense = dense_weights(exact, copy.deepcopy(adapted).double(), rank)
        expected = torch.func.functional_call(exact, dense, x.double())
        scale = expected.norm() + x.norm() * sum(weight.norm() for weight in dense.values())
        assert (adapted(x) - expected).norm() <= 2e-6 * scale
        before = adapted(x)
        merge(adapted)
        assert type(adapted[0]) is Experts and vars(adapted[0]).keys() == vars(plain[0]).keys()
        assert adapted.state_dict().keys() == plain.state_dict().keys()
        assert torch.equal(adapted(x), before)


def test_gradients_are_those_of_the_dense_formula() -> None:
    draw = random.Random(1)
    torch.manual_seed(0)
    for _ in range(30):
        plain, x, weights = draw_experts(draw)
        plain.double()
        x = x.double().requires_grad_()
        adapted = disturbed(copy.deepcopy(plain), weights, 3)
        expected = torch.func.functional_call(plain, dense_weights(plain, adapted, 3), x)
        found, leaves = adapted(x), [x, *trainable(adapted).values()]
        upstream = torch.randn_like(found)
        theirs, ours = (torch.autograd.grad(y, leaves, upstream) for y in (expected, found))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_experts_in_half_precision_agree_with_their_merged_selves(dtype: torch.dtype) -> None:
    draw = random.Random(2)
    for _ in range(10):
        plain, x, weights = draw_experts(draw)
        adapted = disturbed(plain.to(dtype), weights, 2)
        before = adapted(x.to(dtype))
        assert before.dtype is dtype and {p.dtype for p in trainable(adapted).values()} == {torch.float32}
        merge(adapted)
        assert (adapted(x.to(dtype)).double() - before).norm() <= HALF[dtype] * before.double().norm()


SMALL = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4)).eval()


def qwen() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=12)).eval()


def gpt_oss() -> PreTrainedModel:
    """Its weights are (experts, in, out)."""
    model = GptOssForCausalLM(GptOssConfig(**SMALL, num_local_experts=4, layer_types=["full_attention"] * 2)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


IDS = torch.arange(14).view(2, 7)
models = pytest.mark.parametrize("build", [mixtral, qwen, gpt_oss], ids=lambda build: build.__name__)


def adapted_model(build: Callable[[], PreTrainedModel], **settings: Any) -> tuple[Any, Any, Lora]:
    """(base, adapted, adapter) with factors as training could leave them."""
    base, adapter = build(), Lora(**{"targets": ["experts", "q_proj"], "rank": 2, **settings})
    model = copy.deepcopy(base)
    inject(model, adapter)
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    for parameter in trainable(model).values():
        nn.init.normal_(parameter, std=0.3)
    return base, model, adapter


@models
def test_a_model_with_experts_merges_to_a_plain_one(build: Callable[[], PreTrainedModel]) -> None:
    base, model, _ = adapted_model(build)
    before = model(IDS).logits
    merge(model)
    assert (before - base(IDS).logits).norm() > 1e-2 * before.norm()
    assert (model(IDS).logits - before).norm() <= 2e-6 * before.norm()
    assert [type(module) for module in model.modules()] == [type(module) for module in base.modules()]
    assert model.state_dict().keys() == base.state_dict().keys()


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_of_computing_experts_sees_their_updates(implementation: str) -> None:
    _, model, _ = adapted_model(mixtral)
    expected = model(IDS).logits
    model.set_experts_implementation(implementation)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 on transformers 5.23
@pytest.mark.filterwarnings(
    "ignore:The following (rank|alpha)_pattern keys did not match"
)  # PEFT looks at modules alone
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"targets": "experts"},
        {"targets": ["experts.down_proj"], "alpha": 3.0},
        {"rank_pattern": {"*.0.*.down_proj": 3, "q_proj": 1}, "alpha_pattern": {"*.gate_up_proj": 1.0}},
    ],
    ids=str,
)
@models
def test_peft_reads_the_adapter_and_computes_the_same(
    build: Callable[[], PreTrainedModel], settings: dict[str, Any], load_in_peft: Callable[..., nn.Module]
) -> None:
    base, model, adapter = adapted_model(build, **settings)
    theirs = load_in_peft(adapter, model, base)
    torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=1e-5)


ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
DENSE_FIRST = ROUTED | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1}
DENSE_FIRST |= {"topk_group": 1}
LATENT = {"num_key_value_heads": 2, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
LATENT |= {"v_head_dim": 8, "head_dim": 4, "num_local_experts": 4}
SHARED = ROUTED | {"num_experts": 4, "shared_expert_intermediate_size": 12}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2}
LINEAR |= {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
DENSE_BESIDE_EXPERTS: dict[str, dict[str, Any]] = {
    "DeepseekV2": DENSE_FIRST | LATENT,
    "DeepseekV3": DENSE_FIRST | LATENT,
    "Glm4Moe": DENSE_FIRST,
    "Dots1": DENSE_FIRST,
    "Ernie4_5_Moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 12},
    "Qwen2Moe": SHARED | {"mlp_only_layers": [0]},
    "Qwen3Moe": ROUTED | {"num_experts": 4, "mlp_only_layers": [0]},
    "Qwen3Next": SHARED | LINEAR,
    "HunYuanMoEV1": ROUTED | {"num_experts": 4, "moe_topk": 2},
    "Llama4": {"num_local_experts": 4, "intermediate_size_mlp": 24, "interleave_moe_layer_step": 2},
}
"""Mixtures that have dense layers, or experts that all tokens share."""


def mixture(family: str) -> PreTrainedModel:
    config = getattr(transformers, f"{family}TextConfig" if family == "Llama4" else f"{family}Config")
    settings = {**SMALL, **DENSE_BESIDE_EXPERTS[family]}
    model: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config(**settings)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")
@pytest.mark.parametrize(
    "settings",
    [
        {"targets": "all-linear"},
        {"targets": ["all-linear", "experts"]},
        {"targets": ["down_proj", "o_proj"], "rank_pattern": {"down_proj": 3}, "alpha_pattern": {"*.0.*": 1.0}},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", DENSE_BESIDE_EXPERTS)
def test_peft_adapts_what_lies_beside_the_experts_and_not_the_experts_in_its_place(
    family: str, settings: dict[str, Any], load_in_peft: Callable[..., nn.Module]
) -> None:
    base, model, adapter = adapted_model(lambda: mixture(family), **settings)
    theirs = load_in_peft(adapter, model, copy.deepcopy(base))
    with torch.no_grad():
        found, wanted, plain = theirs(IDS).logits, model(IDS).logits, base(IDS).logits
    assert (found - wanted).abs().max() <= 1e-4
    assert (plain - wanted).abs().max() > 0.1


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {}], ids=str)
def test_what_peft_would_only_compute_without_dropout_is_not_said_to_it(settings: dict[str, Any]) -> None:
    model, adapter = mixture("Glm4Moe"), Lora(targets="all-linear", rank=2, **settings)
    inject(model, adapter)
    assert (adapter.peft_config(model) is None) == bool(settings)
    attention = Lora(targets="attention", rank=2, **settings)
    inject(model := mixture("Glm4Moe"), attention)
    assert attention.peft_config(model) is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_adapted_experts_can_be_copied(copied: Any) -> None:
    _, model, _ = adapted_model(mixtral)
    before, twin = model(IDS).logits, copied(model)
    assert torch.equal(twin(IDS).logits, before)
    merge(twin)
    assert torch.equal(model(IDS).logits, before), "the copy shares nothing with the original"


def test_a_step_trains_the_factors_of_the_experts_that_were_chosen() -> None:
    _, model, adapter = adapted_model(mixtral, lr_ratio_B=4)
    assert len(adapter.lr_factors(model)) == 6
    model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trainable(model).values())
    assert not [name for name, p in model.named_parameters() if p.grad is not None and "lora" not in name]


def test_an_update_is_made_once_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = adapted_model(mixtral, targets="experts")
    made: list[int] = []
    update = ExpertLowRank.update
    monkeypatch.setattr(ExpertLowRank, "update", lambda self: (made.append(1), update(self))[1])
    model(IDS)
    assert len(made) == 4, "two weights in two layers, read once for each expert"


def test_all_means_no_experts_unless_they_are_named() -> None:
    model = mixtral()
    inject(model, Lora(targets=["all", "mlp.experts.down_proj"]))
    adapted = [module for module in model.modules() if isinstance(module, LoraExperts)]
    assert [list(module.lora) for module in adapted] == [["down_proj"]] * 2


def test_dropout_on_experts_is_refused() -> None:
    model = mixtral()
    with pytest.raises(InputError, match=r"E-LAYER: .*experts\.gate_up_proj is adapted in its weights alone"):
        inject(model, Lora(targets=["q_proj", "experts"], dropout=0.1))
    assert not trainable(model) and not [module for module in model.modules() if isinstance(module, LoraExperts)]


def test_autocast_does_not_round_the_sum() -> None:
    _, model, _ = adapted_model(mixtral, targets="experts")
    experts = model.model.layers[0].mlp.experts
    expected = experts.down_proj
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(experts.down_proj, expected)
