"""A stranger's encoder with an attention of its own leaves out padding by the function that a document shows."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from loralight.acceleration import Facts, Unpadding, own_attention
from loralight.acceleration.unpadding import is_unpadded

DOCUMENT = Path(__file__).parents[2] / "docs" / "add-an-acceleration.md"


class StrangeConfig(PretrainedConfig):
    model_type = "strange"
    hidden_size = 16


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.layer = attention, nn.Linear(16, 16)

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        states = states + self.attention(states, attention_mask)
        return states + self.layer(states).tanh()


class Encoder(nn.Module):
    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(attention(16, 2)) for _ in range(2))

    def forward(self, states: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        for block in self.layer:
            states = block(states, attention_mask)
        return BaseModelOutput(last_hidden_state=states)


class StrangeModel(PreTrainedModel):
    config_class = StrangeConfig

    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__(StrangeConfig())
        self.embeddings, self.encoder = nn.Embedding(40, 16), Encoder(attention)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        output: BaseModelOutput = self.encoder(self.embeddings(input_ids), attention_mask=attention_mask.bool())
        return output


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> StrangeModel:
    """The model, with what the document registers."""
    monkeypatch.setattr(own_attention, "_WAYS", dict(own_attention._WAYS))
    (code,) = re.findall(r"^```py\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "stranger"}
    exec(code, names)
    torch.manual_seed(0)
    return StrangeModel(names["CosineAttention"]).double().eval()


def states_and_gradients(model: StrangeModel) -> list[Tensor]:
    """The states at tokens, and the gradients of all parameters."""
    mask = torch.arange(9) < torch.tensor([3, 9, 1, 5])[:, None]
    ids = torch.arange(36).view(4, 9)
    states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]
    loss = (states * torch.linspace(0, 1, states.numel(), dtype=states.dtype).view_as(states)).sum()
    return [states, *torch.autograd.grad(loss, list(model.parameters()))]


def test_it_computes_the_same_without_padding_and_is_itself_again_afterwards(stranger: StrangeModel) -> None:
    expected, unpadding = states_and_gradients(stranger), Unpadding()
    counts: list[int] = []
    layer = stranger.encoder.layer[0].layer
    hook = layer.register_forward_pre_hook(lambda _, given: counts.append(given[0][..., 0].numel()))  # type: ignore[operator,union-attr]
    assert unpadding.attach_(Facts(model=stranger)) is None and is_unpadded(stranger)
    counts.clear()
    torch.testing.assert_close(states_and_gradients(stranger), expected, rtol=1e-10, atol=1e-10)
    assert counts == [18]  # tokens, in a batch of 36 places
    unpadding.detach_(stranger)
    hook.remove()
    torch.testing.assert_close(states_and_gradients(stranger), expected, rtol=0, atol=0)


def test_without_a_function_it_computes_padding_and_says_so(
    stranger: StrangeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_attention, "_WAYS", {})
    assert "attention" in str(Unpadding().attach_(Facts(model=stranger))) and not is_unpadded(stranger)
