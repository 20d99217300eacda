"""Each kind of layer says what it can; one that says nothing can nothing."""

from collections.abc import Iterator

import pytest
from torch import nn
from transformers import BertConfig, BertModel

from loralight.adapters import Dora, Lora, inject
from loralight.adapters.layers.kinds import KINDS
from loralight.adapters.layers.lora import LoraLayer, LoraLinear
from loralight.adapters.multi.parts import parts_of
from loralight.errors import InputError

IN_PEFT = {"LoraLinear", "LoraConv1D", "LoraConv1d", "LoraConv2d", "LoraConv3d", "LoraQuantisedLinear", "LoraUnfused"}
ADDITIVE = IN_PEFT | {"LoraPadded"}
DORA = {f"Dora{kind}" for kind in ("Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d", "Embedding", "QuantisedLinear")}


def kinds(kind: type[LoraLayer] = LoraLayer) -> Iterator[type[LoraLayer]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from kinds(inner)


def own(capability: str) -> set[str]:
    found = {kind for kind in kinds() if kind.__module__.startswith("loralight.")}
    return {kind.__name__ for kind in found if getattr(kind, capability)}


def test_these_kinds_can_these_things() -> None:
    assert own("is_additive") == ADDITIVE
    assert own("has_peft_form") == IN_PEFT | DORA | {"LoraEmbedding", "LoraEncoderLinear"}
    assert own("follows_norm") == {"LoraConv1d", "LoraConv2d", "LoraConv3d"}


class Halved(LoraLinear):
    """A kind that derives from one with capabilities, and computes something else."""


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setitem(KINDS, nn.Linear, Halved)  # type: ignore[arg-type]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=9, **sizes))
    inject(model, Lora(targets="query", rank=2))
    return model


def test_a_kind_that_says_nothing_has_no_form_in_peft_and_shares_no_batch(model: nn.Module) -> None:
    assert Lora(targets="query", rank=2).peft_config(model) is None
    with pytest.raises(InputError, match=r"^E-KIND: .*query is a Halved in which lora_A, lora_B learn"):
        parts_of(model, ())


def test_the_form_in_peft_of_those_that_say_so_is_offered() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    for adapter in (Lora(targets="query", rank=2), Dora(targets="query", rank=2)):
        model = BertModel(BertConfig(vocab_size=9, **sizes))
        inject(model, adapter)
        assert adapter.peft_config(model) is not None
