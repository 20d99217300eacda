"""Small text models with random weights, which the tests of several methods adapt, and what two methods keep."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

WIDE = {"initializer_range": 0.3}  # so small a model says next to nothing at the customary 0.02
SMALL: dict[str, Any] = WIDE | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 24, "vocab_size": 30}
ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, **ENDS, num_key_value_heads=1)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, **WIDE, **ENDS)),
}
MODELS = {"bert": lambda: BertForSequenceClassification(BertConfig(**SMALL))} | DECODERS
TOKENS = torch.arange(3, 27).view(3, 8)


def check_padding(model: PreTrainedModel) -> None:
    """Padding on the right changes nothing."""
    mask = torch.ones_like(TOKENS)
    mask[:, 5:] = 0
    padded = model(input_ids=TOKENS, attention_mask=mask).logits[:, :5]
    torch.testing.assert_close(padded, model(input_ids=TOKENS[:, :5]).logits, rtol=1e-5, atol=1e-5)


def check_generation(model: PreTrainedModel) -> None:
    """With a cache and padding on the left, each text continues as it does alone without a cache."""
    ids = TOKENS[:2].clone()
    mask = torch.ones_like(ids)
    ids[1, :3] = mask[1, :3] = 0
    written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)[:, 8:]
    for row, text in enumerate((ids[:1], ids[1:, 3:])):
        for _ in range(6):
            last = model(input_ids=text, use_cache=False).logits[:, -1:]
            text = torch.cat([text, last.argmax(-1)], 1)
        assert torch.equal(written[row], text[0, -6:])
