"""Soft prompts: what the model computes with them, by PEFT, by hand, and where tasks look at it."""

import copy
from typing import Any

import peft
import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from loralight.adapters import inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.methods.prompt_tuning import Prompt, PromptTuning
from loralight.errors import InputError
from loralight.training.optim import parameter_groups

from .text_models import DECODERS, SMALL, TOKENS, check_generation, check_padding

COUNT = 4


def decoder(kind: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    base = DECODERS[kind]().eval()
    model = copy.deepcopy(base)
    inject(model, PromptTuning(num_tokens=COUNT))
    return base, model


def bert(kind: Any = BertForSequenceClassification) -> tuple[PreTrainedModel, PreTrainedModel]:
    base = kind(BertConfig(**SMALL, num_labels=3)).eval()
    model = copy.deepcopy(base)
    inject(model, PromptTuning(num_tokens=COUNT), head=[model.classifier])
    return base, model


def prompt_of(model: nn.Module) -> Tensor:
    return next(module for module in model.modules() if isinstance(module, Prompt)).embeddings


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers
def test_a_decoder_computes_with_a_prompt_what_peft_does(kind: str) -> None:
    base, model = decoder(kind)
    adapter = PromptTuning(num_tokens=COUNT)
    fields = {key: value for key, value in adapter.peft_config(model).items() if key != "peft_type"}
    theirs = peft.get_peft_model(base, peft.PromptTuningConfig(**fields)).eval()
    (name,) = trainable(model)
    assert adapter.peft_names(model) == {name: "prompt_embeddings"}
    peft.set_peft_model_state_dict(theirs, {"prompt_embeddings": prompt_of(model)})
    mask = torch.ones_like(TOKENS)
    mask[1, 5:] = mask[2, 7:] = 0
    for given in (torch.ones_like(TOKENS), mask):
        found = model(input_ids=TOKENS, attention_mask=given, use_cache=False).logits
        expected = theirs(input_ids=TOKENS, attention_mask=given, use_cache=False).logits[:, COUNT:]
        torch.testing.assert_close(found[given.bool()], expected[given.bool()], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForTokenClassification])
def test_an_encoder_reads_the_prompt_after_its_first_token_on_which_classifiers_rely(kind: Any) -> None:
    base, model = bert(kind)
    mask = torch.ones_like(TOKENS)
    mask[1, 5:] = 0
    types = (torch.arange(8) > 3).long().expand(3, -1)
    words = base.bert.embeddings.word_embeddings(TOKENS)

    def between(one: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([one[:, :1], prompt, one[:, 1:]], 1)

    states = base.bert(
        inputs_embeds=between(words, prompt_of(model).expand(3, -1, -1)),
        attention_mask=between(mask, torch.ones(3, COUNT, dtype=torch.long)),
        token_type_ids=between(types, torch.zeros(3, COUNT, dtype=torch.long)),
    ).last_hidden_state
    if kind is BertForSequenceClassification:
        expected = base.classifier(base.bert.pooler(states))
    else:
        expected = base.classifier(torch.cat([states[:, :1], states[:, 1 + COUNT :]], 1))
    found = model(input_ids=TOKENS, attention_mask=mask, token_type_ids=types).logits
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_all_states_that_are_asked_for_are_those_of_the_text() -> None:
    _, model = bert()
    output = model(input_ids=TOKENS, output_hidden_states=True)
    assert {states.shape for states in output.hidden_states} == {(3, 8, 16)}


def test_padding_changes_nothing() -> None:
    for model in (bert(BertForTokenClassification)[1], decoder("llama")[1], decoder("gpt2")[1]):
        check_padding(model)


@pytest.mark.parametrize("kind", DECODERS)
def test_generation_with_a_cache_and_padding_on_the_left_writes_what_one_text_alone_gets(kind: str) -> None:
    _, model = decoder(kind)
    nn.init.normal_(prompt_of(model), std=2.0)
    check_generation(model)


def test_the_prompt_starts_as_words_of_the_vocabulary_in_single_precision_at_least() -> None:
    model = DECODERS["llama"]().to(torch.bfloat16)
    inject(model, PromptTuning(num_tokens=7))
    prompt, words = prompt_of(model), model.get_input_embeddings().weight
    assert prompt.shape == (7, 16) and prompt.dtype == torch.float32
    assert all((word == words).all(1).any() for word in prompt.detach())


def test_documents_that_share_a_row_are_refused() -> None:
    _, model = decoder("llama")
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]).expand(3, -1)
    with pytest.raises(InputError, match=r"^E-PACKED: .*data.packed=false"):
        model(input_ids=TOKENS, position_ids=positions, use_cache=False)
    shifted = model(input_ids=TOKENS, position_ids=torch.arange(8)[None].expand(3, -1), use_cache=False).logits
    assert torch.equal(shifted, model(input_ids=TOKENS, use_cache=False).logits)


def test_a_text_for_which_the_prompt_leaves_no_room_is_refused() -> None:
    model = BertForSequenceClassification(BertConfig(**SMALL, max_position_embeddings=10))
    inject(model, PromptTuning(num_tokens=4))
    assert model(input_ids=TOKENS[:, :6]).logits.shape == (3, 2)
    with pytest.raises(InputError, match=r"^E-SEQ-LEN: a text of 7 tokens and 4 of the prompt .* model's 10"):
        model(input_ids=TOKENS[:, :7])


@pytest.mark.parametrize(
    "model",
    [
        lambda: timm.create_model("test_vit"),
        lambda: T5ForConditionalGeneration(
            T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=30)
        ),
        lambda: nn.Linear(2, 2),
    ],
    ids=["vit", "t5", "linear"],
)
def test_what_reads_no_tokens_or_has_two_readers_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match=r"^E-TEXT-MODEL: prompt_tuning goes with encoders and decoders"):
        inject(model(), PromptTuning())


def test_the_prompt_learns_faster_than_the_head_and_without_weight_decay() -> None:
    _, model = bert()
    groups = parameter_groups(model, PromptTuning(lr_ratio=20.0), lr=0.01, head=[model.classifier])
    settings = {name: (group["lr"], group.get("weight_decay")) for group in groups for name, _ in group["params"]}
    assert settings["bert.prompt.embeddings"] == (pytest.approx(0.2), 0.0)
    assert settings["classifier.weight"] == (0.01, None)
    with pytest.raises(InputError, match=r"^E-LR-RATIO: adapter.lr_ratio is 0"):
        PromptTuning(lr_ratio=0)


def test_fewer_than_one_token_is_refused() -> None:
    with pytest.raises(InputError, match=r"^E-NUM-TOKENS: adapter.num_tokens is 0"):
        PromptTuning(num_tokens=0)


def test_it_is_no_change_of_weights_and_peft_has_none_for_encoders() -> None:
    _, model = bert()
    with pytest.raises(InputError, match=r"^E-MERGE: bert.prompt \(Prompt\)"):
        merge(model)
    assert PromptTuning().peft_config(model) is None and PromptTuning().peft_names(model) == {}
