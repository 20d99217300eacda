"""Prefixes: what the model computes with them, by transformers' own cache, by hand, and in packed and padded rows."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from loralight.adapters import inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.methods.prefix_tuning import Prefix, PrefixTuning
from loralight.errors import InputError

from .text_models import DECODERS, SMALL, TOKENS, check_generation, check_padding

COUNT = 4


def decoder(kind: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    return with_prefix(DECODERS[kind]().eval())


def bert() -> tuple[PreTrainedModel, PreTrainedModel]:
    return with_prefix(BertForTokenClassification(BertConfig(**SMALL, num_labels=3)).eval())


def with_prefix(base: PreTrainedModel) -> tuple[PreTrainedModel, PreTrainedModel]:
    model = copy.deepcopy(base)
    inject(model, PrefixTuning(num_tokens=COUNT))
    for prefix in prefixes(model):
        nn.init.normal_(prefix.key, std=2.0)
        nn.init.normal_(prefix.value, std=2.0)
    return base, model


def prefixes(model: nn.Module) -> list[Prefix]:
    return [module for module in model.modules() if isinstance(module, Prefix)]


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_computes_what_it_does_with_the_prefix_in_its_cache(kind: str) -> None:
    base, model = decoder(kind)
    mask = torch.ones_like(TOKENS)
    mask[1, 5:] = 0
    for given in (None, mask):
        cache = DynamicCache()
        for layer, prefix in enumerate(prefixes(model)):
            cache.update(prefix.key.expand(3, -1, -1, -1), prefix.value.expand(3, -1, -1, -1), layer)
        expected = base(
            input_ids=TOKENS,
            attention_mask=torch.cat(
                [torch.ones(3, COUNT, dtype=torch.long), mask if given is not None else mask * 0 + 1], 1
            ),
            position_ids=torch.arange(8)[None].expand(3, -1),
            past_key_values=cache,
        ).logits
        found = model(input_ids=TOKENS, attention_mask=given, use_cache=False).logits
        seen = torch.ones_like(mask) if given is None else given
        torch.testing.assert_close(found[seen.bool()], expected[seen.bool()], rtol=1e-5, atol=1e-5)


def test_an_encoder_s_attention_is_the_formula_with_more_keys_and_values() -> None:
    _, model = bert()
    model.double()
    attention, x = model.bert.encoder.layer[0].attention.self, torch.randn(2, 5, 16, dtype=torch.float64)

    def heads(layer: nn.Module, own: Tensor | None) -> Tensor:
        made = layer(x).view(2, 5, 2, 8).transpose(1, 2)
        return made if own is None else torch.cat([own.expand(2, -1, -1, -1), made], 2)

    query = heads(attention.query, None)
    key, value = heads(attention.key, attention.prefix.key), heads(attention.value, attention.prefix.value)
    weights = (query @ key.transpose(2, 3) / 8**0.5).softmax(-1)
    expected = (weights @ value).transpose(1, 2).reshape(2, 5, 16)
    torch.testing.assert_close(attention(x)[0], expected, rtol=1e-10, atol=1e-12)


def test_padding_changes_nothing() -> None:
    for model in (bert()[1], decoder("llama")[1], decoder("gpt2")[1]):
        check_padding(model)


@pytest.mark.parametrize("kind", DECODERS)
def test_each_document_of_a_packed_row_has_the_prefix_and_sees_no_other(kind: str) -> None:
    _, model = decoder(kind)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]).expand(3, -1)
    packed = model(input_ids=TOKENS, position_ids=positions, use_cache=False).logits
    parts = [model(input_ids=part, use_cache=False).logits for part in (TOKENS[:, :3], TOKENS[:, 3:])]
    torch.testing.assert_close(packed, torch.cat(parts, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_generation_with_a_cache_and_padding_on_the_left_writes_what_one_text_alone_gets(kind: str) -> None:
    check_generation(decoder(kind)[1])


def test_the_prefix_starts_as_what_words_of_the_vocabulary_have_for_keys_and_values() -> None:
    model = bert()[0]
    plain = copy.deepcopy(model)
    inject(model, PrefixTuning(num_tokens=3))
    first = plain.bert.encoder.layer[0].attention.self
    words = plain.bert.embeddings(torch.arange(30)[:, None].expand(-1, 3))  # at each of the three positions
    known = first.value(words).view(30, 3, 2, 8)
    found = prefixes(model)[0].value.detach()  # (heads, tokens, width of a head)
    for at in range(3):
        distances = (known[:, at] - found[:, at]).abs().amax((1, 2))
        assert distances.min() < 1e-5


def test_every_attention_of_the_model_has_a_prefix_of_its_own_and_nothing_else_learns() -> None:
    _, model = decoder("llama")
    expected = {f"model.layers.{n}.self_attn.prefix.{part}" for n in range(2) for part in ("key", "value")}
    assert trainable(model).keys() == expected
    assert {p.shape for p in trainable(model).values()} == {(1, COUNT, 8)}  # one head for two of queries


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: timm.create_model("test_vit"), "prefix_tuning goes with encoders and decoders"),
        (
            lambda: XLNetForSequenceClassification(
                XLNetConfig(vocab_size=30, d_model=16, n_layer=1, n_head=2, d_inner=24)
            ),
            "XLNetModel computes attention in a way of its own",
        ),
        (
            lambda: Gemma2ForCausalLM(
                Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8, attn_implementation="eager")
            ),
            "Gemma2Model computes attention in a way of its own",
        ),
    ],
    ids=["vit", "xlnet", "capped"],
)
def test_a_model_whose_attention_no_prefix_can_join_is_refused(model: Any, says: str) -> None:
    with pytest.raises(InputError, match=f"^E-TEXT-MODEL: {says}"):
        inject(model(), PrefixTuning())


def test_fewer_than_one_token_is_refused() -> None:
    with pytest.raises(InputError, match=r"^E-NUM-TOKENS: adapter.num_tokens is -1"):
        PrefixTuning(num_tokens=-1)


def test_it_is_no_change_of_weights_and_peft_has_none_that_equals_it() -> None:
    _, model = bert()
    with pytest.raises(InputError, match=r"^E-MERGE: .*attention.self.prefix \(Prefix\)"):
        merge(model)
    assert PrefixTuning().peft_config(model) is None
