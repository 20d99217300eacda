"""One owner of a model's attention: each of ours takes the place of PyTorch's, and never that of another."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from loralight.models.attention import Attention, attending_by, attention_of

IDS = torch.tensor([[5, 6, 7]])


def doubling(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *given: Any, **settings: Any) -> Any:
    return sdpa_attention_forward(module, query, key, 2 * value, *given, **settings)


ONE, OTHER = (Attention(name, doubling, sdpa_mask) for name in ("of_a_test", "of_another_test"))


@pytest.fixture
def model() -> BertModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertModel(BertConfig(vocab_size=20, **sizes)).eval()


def states(model: BertModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).last_hidden_state


def test_one_that_takes_the_place_of_pytorch_s_computes_until_it_leaves(model: BertModel) -> None:
    expected = states(model)
    assert ONE.why_not(model) is None and not ONE.is_of(model)
    ONE.take_place_in_(model)
    assert ONE.is_of(model) and not torch.equal(states(model), expected)
    ONE.leave_(model)
    assert torch.equal(states(model), expected)


@pytest.mark.parametrize("other", [lambda model: model.set_attn_implementation("eager"), OTHER.take_place_in_])
def test_another_in_its_place_is_told(other: Callable[[BertModel], None], model: BertModel) -> None:
    other(model)
    assert ONE.why_not(model) == f"its attention is {attention_of(model)!r}, not 'sdpa'"


def test_a_function_that_is_lent_is_given_back_after_an_error_too(model: BertModel) -> None:
    expected = states(model)
    with pytest.raises(ValueError, match="amid"), attending_by(model, doubling):
        assert not torch.equal(states(model), expected)
        raise ValueError("amid")
    assert attention_of(model) == "sdpa" and torch.equal(states(model), expected)
