"""Tiny causal language models with random weights, and a tokenizer with an end of text and a chat template."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "what", "is", "it", "any", "fine", "day"]
CORPUS = ["the quick brown fox jumps over the lazy dog", "user assistant system", "what is it? it is a fine day!"] * 20

# far from zero, as trained weights are: at the customary 0.02 so small a model says next to nothing
WIDE = {"initializer_range": 0.3, "tie_word_embeddings": True}
SIZES = WIDE | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
GPT = WIDE | {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": SIZES | {"num_key_value_heads": 1},
    "GPT2": GPT,
    "Gemma2": SIZES | {"num_key_value_heads": 1, "head_dim": 16, "final_logit_softcapping": 3.0, "sliding_window": 8},
    "Granite": SIZES | {"num_key_value_heads": 1, "logits_scaling": 4.0},
    "GPTNeoX": SIZES | {"tie_word_embeddings": False},
}
"""Rotary and learnt positions, Conv1D, logits that are capped or scaled, windows, an output that is not tied."""


def make_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 300 tokens."""
    bytes_and_pairs = ByteLevelBPETokenizer()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bytes_and_pairs.train_from_iterator(CORPUS, vocab_size=300, special_tokens=specials, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_and_pairs._tokenizer,
        eos_token="<|endoftext|>",
        additional_special_tokens=specials[1:],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The folder of a family's model, made when first asked for; a template of None leaves out the chat template."""
    parent = tmp_path_factory.mktemp("language_models")

    def folder(family: str = "Llama", template: str | None = CHATML, **changes: Any) -> str:
        path = parent / str(abs(hash((family, template, *changes.items()))))
        if not path.exists():
            tokenizer = make_tokenizer(template)
            config_class = getattr(transformers, f"{family}Config")
            ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
            config = config_class(vocab_size=len(tokenizer), **ends, **FAMILIES.get(family, {}) | changes)
            torch.manual_seed(0)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
            tokenizer.save_pretrained(path)
        return str(path)

    return folder


@pytest.fixture(scope="session")
def tiny_llama(language_model: Callable[..., str]) -> str:
    return language_model("Llama")
