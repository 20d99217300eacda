import copy

import peft
import pytest
import timm
import torch
from torch import nn

from loralight.adapters import inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.methods.ia3 import IA3
from loralight.errors import InputError
from loralight.training.optim import parameter_groups

from .text_models import MODELS

PLACES = {
    "bert": {"attention.self.key": 16, "attention.self.value": 16, "output.dense": 24},
    "llama": {"self_attn.k_proj": 8, "self_attn.v_proj": 8, "mlp.down_proj": 24},
    "gpt2": {"attn.c_attn": 48, "mlp.c_proj": 64},
}


def adapted(kind: str) -> tuple[nn.Module, nn.Module]:
    """A base in double precision, and the same with vectors away from 1."""
    base = MODELS[kind]().double().eval()
    model = copy.deepcopy(base)
    inject(model, IA3())
    for vector in trainable(model).values():
        nn.init.normal_(vector, mean=1.0, std=0.5)
    return base, model


@pytest.mark.parametrize("kind", MODELS)
def test_vectors_lie_on_keys_values_and_inner_activations(kind: str) -> None:
    _, model = adapted(kind)
    block = {"bert": "bert.encoder.layer", "llama": "model.layers", "gpt2": "transformer.h"}[kind]
    expected = {f"{block}.{n}.{place}.ia3_l": size for n in range(2) for place, size in PLACES[kind].items()}
    assert {name: vector.numel() for name, vector in trainable(model).items()} == expected


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers
def test_outputs_are_those_of_peft_merged_or_not(kind: str) -> None:
    base, model = adapted(kind)
    fields = {key: value for key, value in IA3().peft_config(model).items() if key != "peft_type"}
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.IA3Config(**fields)).eval()
    state = {f"base_model.model.{name}": tensor for name, tensor in trainable(model).items()}
    assert state.keys() == peft.get_peft_model_state_dict(theirs).keys()
    peft.set_peft_model_state_dict(theirs, state)
    theirs.double()
    tokens = torch.randint(30, (3, 8))
    expected = theirs(input_ids=tokens).logits
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=1e-6, atol=1e-7)
    assert (base(input_ids=tokens).logits - expected).abs().max() > 1e-3
    before = model(input_ids=tokens).logits
    merge(model)
    assert [type(part) for part in model.modules()] == [type(part) for part in base.modules()]
    torch.testing.assert_close(model(input_ids=tokens).logits, before, rtol=1e-10, atol=1e-12)


def test_a_vision_transformer_has_them_on_its_joint_projection() -> None:
    model = timm.create_model("test_vit")
    assert inject(model, IA3())["(keys and values)"] == [f"blocks.{n}.attn.qkv" for n in range(6)]


def test_no_weight_decay_pulls_the_factors_to_zero() -> None:
    _, model = adapted("bert")
    assert {group["weight_decay"] for group in parameter_groups(model, IA3(), lr=0.1)} == {0.0}


def test_a_resnet_is_refused() -> None:
    with pytest.raises(InputError, match=r"^E-SUBLAYER: the blocks of ResNet have no attention"):
        inject(timm.create_model("test_resnet"), IA3())
