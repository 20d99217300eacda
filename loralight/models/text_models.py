"""Facts about a text transformer that soft prompts and prefixes need."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loralight.errors import InputError


def text_base(model: nn.Module, adapter: str) -> PreTrainedModel:
    """The part of a model that turns tokens into hidden states.

    Raises:
        InputError: the model has no such part, or it is an encoder-decoder (``E-TEXT-MODEL``).
    """
    base = getattr(model, "base_model", None) if isinstance(model, PreTrainedModel) else None
    if not isinstance(base, PreTrainedModel) or base.config.is_encoder_decoder or not _reads_tokens(base):
        raise InputError(
            "E-TEXT-MODEL",
            f"{adapter} goes with encoders and decoders of transformers that read tokens, such as BERT and Llama; "
            f"{type(model).__name__} is none. Choose another adapter, such as lora",
        )
    return base


def _reads_tokens(base: PreTrainedModel) -> bool:
    try:
        return isinstance(base.get_input_embeddings(), nn.Embedding)
    except NotImplementedError:
        return False


def random_tokens(base: PreTrainedModel, num_tokens: int) -> Tensor:
    """Random token ids from the vocabulary, (1, ``num_tokens``)."""
    vocabulary = base.get_input_embeddings()
    assert isinstance(vocabulary, nn.Embedding)
    return torch.randint(vocabulary.num_embeddings, (1, num_tokens), device="cpu").to(vocabulary.weight.device)


@torch.no_grad()
def hidden_states(base: PreTrainedModel, tokens: Tensor, **arguments: Any) -> Tensor:
    """The outputs of ``base`` for tokens without padding, in evaluation mode, (batch, tokens, width)."""
    was_training = base.training
    try:
        base.train(False)
        states: Tensor = base(tokens, attention_mask=torch.ones_like(tokens), **arguments).last_hidden_state
        return states
    finally:
        base.train(was_training)


def looks_ahead(base: PreTrainedModel) -> bool:
    """Whether the first token's state depends on the second: in encoders it does, in decoders it does not."""
    tokens = torch.tensor([[0, 1], [0, 2]], device=base.device)
    first = hidden_states(base, tokens)[:, 0].float()
    return not torch.allclose(first[0], first[1], rtol=1e-3, atol=1e-5)


def check_num_tokens(num_tokens: int) -> None:
    """Raise ``E-NUM-TOKENS`` if the number of virtual tokens is below 1."""
    if num_tokens < 1:
        raise InputError("E-NUM-TOKENS", f"adapter.num_tokens is {num_tokens!r}; give at least 1, such as 20")
