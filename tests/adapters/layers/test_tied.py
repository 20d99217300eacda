"""Tied layers share one update: they compute what a tied model with W + (alpha / rank) B A would, and stay tied."""

import copy
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from loralight.adapters import Lora, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers.tied import LoraTwin
from loralight.errors import InputError
from loralight.training.optim import parameter_groups

HALF = {torch.float16: 3e-3, torch.bfloat16: 2e-2}
many = pytest.mark.parametrize("num_specs", [60, pytest.param(500, marks=pytest.mark.slow)])
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


class Tied(nn.Module):
    """A language model of one vector: embeddings, a nonlinearity, and an output layer with the embeddings' weight."""

    def __init__(self, words: int, width: int, *, bias: bool, output_first: bool = False) -> None:
        super().__init__()
        embed, out = nn.Embedding(words, width), nn.Linear(width, words, bias=bias)
        out.weight = embed.weight
        for name, part in (("out", out), ("embed", embed)) if output_first else (("embed", embed), ("out", out)):
            self.add_module(name, part)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(ids)))


def draw_model(draw: random.Random) -> tuple[Tied, Tensor, Lora]:
    """A model, an input, and an adapter of one of its tied layers or of both."""
    words = draw.randint(1, 20)
    model = Tied(words, draw.randint(1, 12), bias=draw.random() < 0.5, output_first=draw.random() < 0.5)
    targets = draw.choice([["embed"], ["out"], ["embed", "out"], ["out", "embed"]])
    ids = torch.randint(words, [draw.randint(1, 4) for _ in range(draw.randint(1, 2))])
    return model, ids, Lora(targets=targets, rank=draw.randint(1, 4), alpha=1.5)


def disturbed(model: nn.Module, adapter: Lora) -> Any:
    inject(model, adapter)
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    return model


def dense(model: Any, weight: Tensor, ids: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.embedding(ids, weight)), weight, model.out.bias)


@many
def test_random_tied_layers_compute_what_the_definition_says_and_merge_to_it(num_specs: int) -> None:
    draw = random.Random(0)
    torch.manual_seed(0)
    for _ in range(num_specs):
        plain, ids, adapter = draw_model(draw)
        fresh = copy.deepcopy(plain)
        hits = inject(fresh, adapter)
        assert {name for names in hits.values() for name in names} == {"embed", "out"}
        assert torch.equal(fresh(ids), plain(ids))
        model = disturbed(copy.deepcopy(plain), adapter)
        assert len(trainable(model)) == 2, "one A and one B for both"
        exact = copy.deepcopy(model).double()
        update = 1.5 / adapter.rank * (exact.embed.lora_B @ exact.embed.lora_A).T
        expected = dense(exact, exact.embed.weight + update, ids)
        before = model(ids)
        assert (before - expected).norm() <= 2e-6 * expected.norm()
        merge(model)
        assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
        assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in plain.modules()]
        assert model.embed.weight is model.out.weight
        assert (model(ids) - expected).norm() <= 2e-6 * expected.norm()


def test_gradients_are_those_of_the_dense_formula() -> None:
    draw = random.Random(1)
    torch.manual_seed(0)
    for _ in range(30):
        plain, ids, adapter = draw_model(draw)
        model = disturbed(plain.double(), adapter)
        leaves = [model.embed.lora_A, model.embed.lora_B]
        update = 1.5 / adapter.rank * (model.embed.lora_B @ model.embed.lora_A).T
        expected, found = dense(model, model.embed.weight + update, ids), model(ids)
        upstream = torch.randn_like(found)
        theirs, ours = (torch.autograd.grad(y, leaves, upstream) for y in (expected, found))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_tied_layers_in_half_precision_agree_with_their_merged_selves(dtype: torch.dtype) -> None:
    draw = random.Random(2)
    for _ in range(20):
        plain, ids, adapter = draw_model(draw)
        model = disturbed(plain.to(dtype), adapter)
        before = model(ids)
        merge(model)
        assert before.dtype is dtype
        assert (model(ids).double() - before).norm() <= HALF[dtype] * before.double().norm()


def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, **NO_TOKENS)
    return GPT2LMHeadModel(config)


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        **NO_TOKENS,
    )
    return LlamaForCausalLM(config)


IDS = torch.arange(16).view(2, 8)


def learn(model: Any, adapter: Lora) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(model, adapter, lr=0.05), lr=0.05)
    model.train()
    for _ in range(4):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("targets", ["lm_head", "embedding", ["lm_head", "embedding", "all"]], ids=str)
@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_language_model_stays_tied_through_training_merging_and_saving(
    build: Callable[[], Any], targets: Any, tmp_path: Path
) -> None:
    base, adapter = build().eval(), Lora(targets=targets, rank=2, lr_ratio_B=2)
    model = copy.deepcopy(base)
    inject(model, adapter)
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    learn(model, adapter)
    trained = model(IDS).logits
    words, out = model.get_input_embeddings(), model.get_output_embeddings()
    assert words.weight is out.weight and torch.equal(words.weight, base.get_input_embeddings().weight)
    there, here = words.product(torch.float64), out.product(torch.float64)
    assert torch.equal(there, here) and here.any(), "two exact products, one rounding: the same in any order"
    merge(model)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert not torch.equal(words.weight, base.get_input_embeddings().weight)
    assert (model(IDS).logits - trained).norm() <= 2e-6 * trained.norm()
    assert [type(module) for module in model.modules()] == [type(module) for module in base.modules()]
    assert model.state_dict().keys() == base.state_dict().keys()
    model.save_pretrained(tmp_path)
    again = type(base).from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 on transformers 5.23
def test_peft_computes_the_same_where_it_ties() -> None:
    base, adapter = llama().eval(), Lora(targets="lm_head", rank=2, alpha=3)
    model = disturbed(copy.deepcopy(base), adapter)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["embed_tokens"], ensure_weight_tying=True)
    theirs = get_peft_model(copy.deepcopy(base), config).eval()
    for factor in "AB":
        tensor = theirs.get_parameter(f"base_model.model.model.embed_tokens.lora_embedding_{factor}.default")
        tensor.data.copy_(getattr(model.model.embed_tokens, f"lora_{factor}"))
    torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=1e-5)
    assert adapter.peft_config(model) is None, "of GPT-2, say, PEFT ties nothing"


def t5() -> PreTrainedModel:
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).eval()


def test_all_layers_that_share_the_weight_share_the_update() -> None:
    base = t5()
    model = disturbed(copy.deepcopy(base), Lora(targets="lm_head", rank=2))
    adapted = model(IDS, decoder_input_ids=IDS).logits
    plain = copy.deepcopy(base)
    plain.get_input_embeddings().weight.data += 2.0 * model.get_input_embeddings().product(torch.float32)
    expected = plain(IDS, decoder_input_ids=IDS).logits
    assert (adapted - expected).norm() <= 2e-6 * expected.norm()
    merge(model)
    assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    assert not [module for module in model.modules() if isinstance(module, LoraTwin)]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_as_tied_as_the_original_and_shares_nothing_with_it(copied: Any) -> None:
    model = disturbed(llama().eval(), Lora(targets="lm_head", rank=2))
    before, twin = model(IDS).logits, copied(model)
    assert torch.equal(twin(IDS).logits, before)
    assert twin.lm_head.embedding_A is twin.model.embed_tokens.lora_A
    merge(twin)
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("named", ["lm_head", "embed_tokens"])
def test_a_pattern_that_names_either_twin_sets_the_rank_of_both(named: str) -> None:
    model = llama()
    inject(model, Lora(targets="lm_head", rank_pattern={named: 3}, alpha_pattern={named: 5.0}))
    assert {module.rank for module in (model.lm_head, model.model.embed_tokens)} == {3}
    assert {module.scaling for module in (model.lm_head, model.model.embed_tokens)} == {5 / 3}


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_that_of_each_layers_own_input(training: bool) -> None:
    model = llama().train(training)
    inject(model, Lora(targets="lm_head", rank=2, dropout=0.5))
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    x = torch.randn(5, 16)
    assert torch.equal(model.lm_head(x), model.lm_head(x)) is not training


def test_no_other_layers_than_embeddings_and_linear_ones_can_share_an_update() -> None:
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            **NO_TOKENS,
        )
    )  # its embeddings are scaled: a class of their own
    with pytest.raises(InputError, match=r"E-TIED: lm_head shares its weight with model.embed_tokens.*only embeddings"):
        inject(model, Lora(targets=["q_proj", "lm_head"]))
    assert not trainable(model)


def test_a_twin_that_is_excluded_is_not_changed_behind_the_users_back() -> None:
    model = llama()
    with pytest.raises(InputError, match=r"E-TIED: model.embed_tokens shares .*adapter.exclude wants lm_head to stay"):
        inject(model, Lora(targets=["embedding", "q_proj"], exclude="lm_head"))
    assert not trainable(model)


def test_a_twin_in_the_head_is_trained_there_and_the_other_is_not_adapted() -> None:
    model = llama()
    with pytest.raises(
        InputError, match=r"E-TIED: model.embed_tokens shares its weight with lm_head.*outside the head"
    ):
        inject(model, Lora(targets="embedding"), head=[model.lm_head])


def test_a_bias_that_others_have_too_is_no_reason_to_refuse() -> None:
    model = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)})
    model["two"].bias = model["one"].bias
    inject(model, Lora(targets="one"))
    merge(model)
    assert model["one"].bias is model["two"].bias


def test_two_linear_layers_with_one_weight_are_refused() -> None:
    model = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)})
    model["two"].weight = model["one"].weight
    with pytest.raises(InputError, match=r"E-TIED: one shares its weight with two.*adapter.exclude=\[one\]"):
        inject(model, Lora(targets="one"))
