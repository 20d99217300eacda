import copy

import peft
import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from loralight.adapters import inject
from loralight.adapters.base import trainable
from loralight.adapters.methods.norm_tuning import NormTuning
from loralight.errors import InputError


def bert() -> BertForSequenceClassification:
    sizes = {"num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}
    return BertForSequenceClassification(BertConfig(hidden_size=16, num_hidden_layers=2, **sizes)).eval()


def test_the_norms_of_a_bert_learn_and_those_in_the_head_belong_to_the_head() -> None:
    model = bert()
    model.classifier = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 2))
    inject(model, NormTuning(), head=[model.classifier])
    of_head = {f"classifier.{name}" for name, _ in model.classifier.named_parameters()}
    expected = {name for name, _ in model.named_parameters() if "LayerNorm" in name}
    assert trainable(model).keys() == expected | of_head
    assert not any("classifier" in name for name in NormTuning().peft_config(model)["target_modules"])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers
@pytest.mark.filterwarnings("ignore:Unsupported layer type.*LayerNorm:UserWarning")  # PEFT of what it tunes
def test_outputs_are_those_of_peft_with_the_same_tensors_under_its_names() -> None:
    base, adapter = bert(), NormTuning()
    ours = copy.deepcopy(base)
    inject(ours, adapter)
    for parameter in trainable(ours).values():
        nn.init.normal_(parameter)
    fields = {key: value for key, value in adapter.peft_config(ours).items() if key != "peft_type"}
    theirs = peft.get_peft_model(base, peft.LNTuningConfig(**fields)).eval()
    names = adapter.peft_names(ours)
    state = {f"base_model.model.{names[name]}": tensor for name, tensor in trainable(ours).items()}
    assert state.keys() == peft.get_peft_model_state_dict(theirs).keys()
    peft.set_peft_model_state_dict(theirs, state)
    tokens = torch.randint(30, (3, 8))
    assert torch.equal(theirs(input_ids=tokens).logits, ours(input_ids=tokens).logits)


def test_batch_norm_learns_with_its_statistics_of_which_peft_knows_nothing() -> None:
    model = timm.create_model("test_resnet")
    inject(model, NormTuning())
    owners = {name.rpartition(".")[0] for name in trainable(model)}
    assert owners == {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert NormTuning().peft_config(model) is None


def test_a_model_without_norms_is_refused() -> None:
    with pytest.raises(InputError, match=r"^E-NORM: Sequential has no norm with scale or shift"):
        inject(nn.Sequential(nn.Linear(2, 2)), NormTuning())
