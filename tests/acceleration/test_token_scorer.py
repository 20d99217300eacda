"""Scores of tokens are those of the model's own logits, whatever it does with what its output layer gives."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ProphetNetConfig,
    ProphetNetForCausalLM,
)

from loralight.acceleration import TokenScorer
from loralight.adapters import Lora, inject

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}


def losses_of(scorer: TokenScorer, model: PreTrainedModel, targets: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the scores' losses, and that of the model's own logits."""
    logits = model(input_ids=ids).logits
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    learnt = targets != -100
    return scorer(model, {"input_ids": ids}, learnt, targets[learnt]).losses.mean(), whole


def test_a_model_that_changes_its_logits_afterwards_keeps_its_own_loss() -> None:
    torch.manual_seed(0)
    gemma = Gemma2Config(**SMALL, **HEADS, final_logit_softcapping=0.5, query_pre_attn_scalar=8)
    for model in (Gemma2ForCausalLM(gemma), LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS))):
        model.double().eval().get_output_embeddings().weight.data.mul_(50)
        ids = torch.randint(0, 50, (2, 9))
        targets = ids.roll(-1, 1).where(torch.rand(2, 9) < 0.6, torch.tensor(-100))
        inject(model, Lora(targets="q_proj", rank=2))
        scorer = TokenScorer()
        for _ in range(2):  # the first step finds out, the next relies on it
            found, expected = losses_of(scorer, model, targets, ids)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        assert scorer.logits_are_plain is isinstance(model, LlamaForCausalLM)
        name, factor = next((n, p) for n, p in model.named_parameters() if n.endswith("lora_B"))
        ours, theirs = (torch.autograd.grad(loss, factor)[0] for loss in losses_of(scorer, model, targets, ids))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9, msg=name)


def test_a_first_batch_whose_logits_are_small_or_zero_shows_what_becomes_of_large_ones() -> None:
    torch.manual_seed(0)
    sizes = SMALL | HEADS | {"layer_norm_eps": 1e-5}
    capped = Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=30.0, query_pre_attn_scalar=8))
    scaled = CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.1, pad_token_id=0))
    for model in (capped, scaled):
        model.double().eval().requires_grad_(False)
        vocabulary = model.get_output_embeddings().weight.clone()
        scorer, ids = TokenScorer(), torch.randint(1, 50, (2, 9))
        model.get_output_embeddings().weight.mul_(1e-3)
        ids[0, 0] = 0  # of padding, whose embedding is zero
        losses_of(scorer, model, ids.roll(-1, 1), ids)
        model.get_output_embeddings().weight.copy_(100 * vocabulary)
        torch.testing.assert_close(*losses_of(scorer, model, ids.roll(-1, 1), ids), rtol=1e-6, atol=1e-9)


def test_an_output_layer_that_is_given_several_states_for_each_token_is_left_to_the_model() -> None:
    torch.manual_seed(0)
    sizes = {"num_decoder_layers": 1, "num_decoder_attention_heads": 2, "decoder_ffn_dim": 16, "dropout": 0.0}
    config = ProphetNetConfig(vocab_size=50, hidden_size=16, ngram=2, is_decoder=True, **sizes)
    model = ProphetNetForCausalLM(config).double().eval()
    for rows, tokens in ((2, 9), (1, 9), (2, 2)):
        ids = torch.randint(1, 50, (rows, tokens))
        torch.testing.assert_close(*losses_of(TokenScorer(), model, ids.roll(-1, 1), ids), rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # which Dynamo looks at
def test_a_compiled_model_is_compiled_once_however_many_tokens_of_a_batch_are_learnt() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS))
    inject(model, Lora(targets="q_proj", rank=2))
    scorer, graphs = TokenScorer(), CompileCounter()
    model.compile(backend=graphs)
    counts = []
    for share in (0.2, 0.4, 0.6, 0.8):
        ids = torch.randint(0, 50, (2, 9))
        targets = ids.roll(-1, 1).where(torch.rand(2, 9) < share, torch.tensor(-100))
        found, whole = losses_of(scorer, model, targets, ids)
        torch.testing.assert_close(found, whole)
        counts.append(graphs.frame_count)
    assert counts[0] and counts[-1] == counts[0]
