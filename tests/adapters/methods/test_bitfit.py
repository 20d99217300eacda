import pytest
import timm
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from loralight.adapters import inject
from loralight.adapters.base import trainable
from loralight.adapters.methods.bitfit import BitFit
from loralight.errors import InputError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}


@pytest.mark.parametrize(
    "model",
    [
        BertForSequenceClassification(BertConfig(**SMALL)),
        timm.create_model("test_vit"),
        timm.create_model("test_resnet"),
    ],
    ids=["bert", "vit", "resnet"],
)
def test_every_bias_outside_the_head_learns_and_nothing_else(model: nn.Module) -> None:
    head = next(module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear))
    adapted = inject(model, BitFit(), head=[head])
    in_head = {id(parameter) for parameter in head.parameters()}
    found = {name for name, parameter in trainable(model).items() if id(parameter) not in in_head}
    assert found == {name for name, p in model.named_parameters() if name.endswith(".bias") and id(p) not in in_head}
    assert {f"{name}.bias" for name in adapted["(biases)"]} == found


def test_a_model_without_biases_is_refused() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    with pytest.raises(InputError, match=r"^E-BIAS: LlamaForCausalLM has no biases outside its head"):
        inject(model, BitFit(), head=[model.lm_head])
