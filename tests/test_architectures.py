"""Models with habits of their own train and predict with LoRA as they do with PEFT's."""

import copy
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from loralight.acceleration.frozen_linear import multiply_by_onednn_
from loralight.adapters import Lora, LoraLayer, inject
from loralight.adapters.base import trainable
from loralight.kernels import linear as kernels
from loralight.kernels.rms_norm import fusible, set_fused_

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Model config"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),  # in DeBERTa, before 5.23
]


class Case(NamedTuple):
    """The classes of a model and its config, and arguments of the config."""

    model: str
    config: str
    arguments: dict[str, Any]
    exclude: tuple[str, ...] = ()


CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
SIZES = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 66, "pad_token_id": 0}
ENCODER = SIZES | CALM | {"num_labels": 3}
DECODER = SIZES | {"num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.3}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
SHAPES = dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim"), 8)
SHAPES |= dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), 20)
BY_LAYER = {"vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
BY_LAYER |= {"layer_types": ["sliding_attention", "full_attention"]}
GEMMA_3N = {"laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.5, 0.0]}
RECURRENT = {"vocab_size": 100, "hidden_size": 64, "num_heads": 2, "num_hidden_layers": 2, "qk_dim_factor": 1.0}

WRITES_TO_OUTPUTS = {
    "DeBERTa": Case("DebertaForSequenceClassification", "DebertaConfig", ENCODER | RELATIVE),
    "DeBERTa v2": Case("DebertaV2ForSequenceClassification", "DebertaV2Config", ENCODER | RELATIVE),
    "Longformer": Case("LongformerForSequenceClassification", "LongformerConfig", ENCODER | {"attention_window": 4}),
    "RoCBert": Case("RoCBertForSequenceClassification", "RoCBertConfig", ENCODER | SHAPES),
    # in training it reads the weight of that layer, and never calls it
    "Gemma 3n": Case("Gemma3nForCausalLM", "Gemma3nTextConfig", DECODER | BY_LAYER | GEMMA_3N, ("*.correction_coefs",)),
}
NORMS_OF_SEVERAL_METHODS = {
    "Llama 4": Case(
        "Llama4ForCausalLM", "Llama4TextConfig", DECODER | {"num_local_experts": 2, "intermediate_size_mlp": 64}
    ),
    "Gemma 4": Case("Gemma4ForCausalLM", "Gemma4TextConfig", DECODER | BY_LAYER),
    "xLSTM": Case("xLSTMForCausalLM", "xLSTMConfig", RECURRENT),
}
CASES = {
    **WRITES_TO_OUTPUTS,
    **NORMS_OF_SEVERAL_METHODS,
    "BERT": Case("BertForSequenceClassification", "BertConfig", ENCODER),
    "Llama": Case("LlamaForCausalLM", "LlamaConfig", DECODER),
}


def twins(case: Case) -> tuple[PreTrainedModel, nn.Module]:
    """A model as it is trained here, and its like with PEFT's layers of the same numbers."""
    if case.model not in dir(transformers):
        pytest.skip(f"this version of transformers has no {case.model}")
    torch.manual_seed(0)
    plain: PreTrainedModel = getattr(transformers, case.model)(getattr(transformers, case.config)(**case.arguments))
    ours = copy.deepcopy(plain)
    head = [part for part in ours.children() if part is not ours.base_model] if "Classification" in case.model else []
    inject(ours, Lora(targets="all-linear", exclude=case.exclude, rank=2, alpha=4), head=head)
    layers = {name: layer for name, layer in ours.named_modules() if isinstance(layer, LoraLayer)}
    config = LoraConfig(r=2, lora_alpha=4, target_modules=list(layers))
    theirs: Any = get_peft_model(plain, config)  # type: ignore[arg-type]
    for name, layer in layers.items():
        nn.init.normal_(layer.lora_B, std=0.1)
        for part in ("lora_A", "lora_B"):
            theirs.get_parameter(_in_peft(name, part)).data.copy_(getattr(layer, part).data)
    return ours, theirs


def _in_peft(layer: str, part: str) -> str:
    return f"base_model.model.{layer}.{part}.default.weight"


def logits_of(model: nn.Module) -> Tensor:
    ids = torch.randint(5, 99, (2, 8), generator=torch.Generator().manual_seed(1))
    return torch.as_tensor(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)


@pytest.mark.parametrize("processors", [("cpu", "meta"), ()], ids=["on a processor", "as on a GPU"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_and_a_prediction_are_those_of_peft(
    case: Case, processors: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = twins(case)
    multiply_by_onednn_(ours)
    norms = fusible(ours)
    set_fused_(norms, True)
    monkeypatch.setattr(kernels, "_PROCESSORS", processors)
    made = []
    for model in (ours, theirs):
        logits = logits_of(model.train())
        logits.square().mean().backward()  # type: ignore[no-untyped-call]
        made.append(logits)
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)
    learning = [name for name in trainable(ours) if name.endswith(("lora_A", "lora_B"))]
    assert learning
    for name in learning:
        layer, _, part = name.rpartition(".")
        gradient, wanted = ours.get_parameter(name).grad, theirs.get_parameter(_in_peft(layer, part)).grad
        assert (gradient is None) == (wanted is None), name
        if gradient is not None and wanted is not None:
            assert (gradient - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6, name
    set_fused_(norms, False)
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(ours.eval()), logits_of(theirs.eval()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", NORMS_OF_SEVERAL_METHODS.values(), ids=NORMS_OF_SEVERAL_METHODS)
def test_the_norms_that_are_fused_are_the_models_own_in_all_else(case: Case) -> None:
    ours, _ = twins(case)
    norms = fusible(ours)
    kinds = [type(norm) for norm in norms]
    assert norms
    set_fused_(norms, True)
    assert all(isinstance(norm, kind) for norm, kind in zip(norms, kinds, strict=True))
    set_fused_(norms, False)
    assert [type(norm) for norm in norms] == kinds
