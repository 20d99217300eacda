import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)

from loralight.adapters import Lora, LoraLayer, inject
from loralight.adapters.layers.attention import LoraAttention
from loralight.adapters.peft.lora_names import peft_experts
from loralight.errors import InputError


def bert() -> nn.Module:
    return BertModel(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    )


def vision_transformer() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=8, depth=2, num_heads=2, num_classes=3, pretrained=False
    )


def torch_transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def t5() -> nn.Module:
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, is_encoder_decoder=False)
    return T5EncoderModel(config)


def mixtral() -> nn.Module:
    config = MixtralConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
    )
    return MixtralForCausalLM(config)


LLAMA_ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
T5_ATTENTION = {f"encoder.block.0.layer.0.SelfAttention.{name}" for name in "qkvo"}
T5_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
BERT_ATTENTION = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
BERT_MLP = ["intermediate.dense", "output.dense"]


def layers(stack: str, names: list[str], numbers: tuple[int, ...] = (0, 1)) -> set[str]:
    return {f"{stack}.{number}.{name}" for number in numbers for name in names}


def adapted(model: nn.Module) -> set[str]:
    layers = {name for name, module in model.named_modules() if isinstance(module, LoraLayer | LoraAttention)}
    return layers | set(peft_experts(model))


@pytest.mark.parametrize(
    "build, targets, expected",
    [
        (bert, "all-linear", layers("encoder.layer", BERT_ATTENTION + BERT_MLP) | {"pooler.dense"}),
        (bert, "attention", layers("encoder.layer", BERT_ATTENTION)),
        (bert, "mlp", layers("encoder.layer", BERT_MLP)),
        (bert, ["attention", "mlp"], layers("encoder.layer", BERT_ATTENTION + BERT_MLP)),
        (bert, "query", layers("encoder.layer", ["attention.self.query"])),
        (bert, "self.query", layers("encoder.layer", ["attention.self.query"])),
        (bert, ["*.query", "*.value"], layers("encoder.layer", ["attention.self.query", "attention.self.value"])),
        (bert, "output.dense", layers("encoder.layer", ["attention.output.dense", "output.dense"])),
        (bert, "encoder.layer.1.*", layers("encoder.layer", BERT_ATTENTION + BERT_MLP, (1,))),
        (bert, "encoder.layer.[1-3].*.dense", layers("encoder.layer", ["attention.output.dense", *BERT_MLP], (1,))),
        (bert, "*.layer.?.intermediate.*", layers("encoder.layer", ["intermediate.dense"])),
        (bert, "pooler.dense", {"pooler.dense"}),
        (bert, ["pooler.dense", "query"], layers("encoder.layer", ["attention.self.query"]) | {"pooler.dense"}),
        (vision_transformer, "attention", layers("blocks", ["attn.qkv", "attn.proj"])),
        (vision_transformer, "mlp", layers("blocks", ["mlp.fc1", "mlp.fc2"])),
        (vision_transformer, "qkv", layers("blocks", ["attn.qkv"])),
        (
            vision_transformer,
            "all-linear",
            layers("blocks", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]) | {"head"},
        ),
        (torch_transformer, "all-linear", layers("layers", ["linear1", "linear2"])),
        (torch_transformer, "mlp", layers("layers", ["linear1", "linear2"])),
        (torch_transformer, "attention", layers("layers", ["self_attn"])),
        (torch_transformer, "all", layers("layers", ["self_attn", "linear1", "linear2"])),
        (torch_transformer, "self_attn", layers("layers", ["self_attn"])),
        (bert, "all", layers("encoder.layer", BERT_ATTENTION + BERT_MLP) | {"pooler.dense"}),
        (bert, "embedding", {f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")}),
        (bert, "word_embeddings", {"embeddings.word_embeddings"}),
        (t5, "attention", T5_ATTENTION),
        (t5, ["attention", "relative_attention_bias"], T5_ATTENTION | {T5_BIAS}),
        (mixtral, "all", layers("model.layers", LLAMA_ATTENTION)),
        (mixtral, "experts", layers("model.layers", ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])),
        (mixtral, "experts.down_proj", layers("model.layers", ["mlp.experts.down_proj"])),
        (mixtral, "*.0.mlp.*.gate_up_proj", layers("model.layers", ["mlp.experts.gate_up_proj"], (0,))),
    ],
)
def test_a_target_means_exactly_these_layers(
    build: Callable[[], nn.Module], targets: str | list[str], expected: set[str]
) -> None:
    model = build()
    hits = inject(model, Lora(targets=targets))
    assert adapted(model) == expected == {name for names in hits.values() for name in names}
    assert list(hits) == ([targets] if isinstance(targets, str) else targets)


@pytest.mark.parametrize(
    "exclude, missing",
    [
        ("key", {"encoder.layer.0.attention.self.key", "encoder.layer.1.attention.self.key"}),
        (["*.layer.0.*"], layers("encoder.layer", BERT_ATTENTION, (0,))),
    ],
)
def test_excluded_layers_stay_plain(exclude: str | list[str], missing: set[str]) -> None:
    model = bert()
    inject(model, Lora(targets="attention", exclude=exclude))
    assert adapted(model) == layers("encoder.layer", BERT_ATTENTION) - missing


@pytest.mark.parametrize("build, head", [(bert, "pooler"), (vision_transformer, "head")])
def test_the_head_is_trained_whole_and_never_adapted(build: Callable[[], nn.Module], head: str) -> None:
    model = build()
    part = model.get_submodule(head)
    inject(model, Lora(targets="all-linear"), head=[part])
    assert not [name for name in adapted(model) if name.startswith(head)]
    assert all(parameter.requires_grad for parameter in part.parameters())


@pytest.mark.parametrize(
    "settings, near",
    [
        ({"targets": "qeury"}, r"adapter.targets: 'qeury'.*'\*\.query'"),
        ({"targets": ["query", "vlaue"]}, r"adapter.targets: 'vlaue'.*'\*\.value'"),
        ({"targets": "*.queries"}, r"adapter.targets: '\*\.queries'.*'\*\.query'"),
        ({"targets": "uery"}, r"adapter.targets: 'uery'.*'\*\.query'"),
        ({"targets": "quer[y"}, r"adapter.targets: 'quer\[y'"),
        ({"targets": "Query"}, r"adapter.targets: 'Query'.*'\*\.query'"),
        ({"targets": "query.*"}, r"adapter.targets: 'query\.\*'"),
        (
            {"targets": "all_linear"},
            "adapter.targets: 'all_linear'.*presets: all, all-linear, all-conv",
        ),
        ({"targets": "embeddings.LayerNorm"}, "adapter.targets: 'embeddings.LayerNorm'"),
        ({"targets": ""}, "adapter.targets: ''"),
        ({"targets": []}, "adapter.targets is empty; name a preset"),
        ({"targets": "query", "exclude": "kye"}, r"adapter.exclude: 'kye'.*'\*\.key'"),
        ({"targets": "query", "exclude": "query"}, "adapter.targets: 'query'.*all excluded"),
        ({"targets": "query", "rank_pattern": {"qury": 4}}, r"adapter.rank_pattern: 'qury'.*'\*\.query'"),
        ({"targets": "query", "rank_pattern": {"*.value": 4}}, r"adapter.rank_pattern: '\*\.value'"),
        ({"targets": "query", "alpha_pattern": {"*.value": 4.0}}, r"adapter.alpha_pattern: '\*\.value'"),
    ],
    ids=str,
)
def test_a_pattern_without_a_match_is_an_error_that_names_near_misses(settings: dict[str, Any], near: str) -> None:
    model = bert()
    with pytest.raises(InputError, match=f"^E-TARGET-NONE: {near}"):
        inject(model, Lora(**settings))
    assert not adapted(model), "a refused model is not half adapted"


@pytest.mark.parametrize("targets", ["out_proj", "*.self_attn.*"])
def test_a_subclass_of_linear_is_never_adapted_by_itself(targets: str) -> None:
    """MultiheadAttention reads its output projection's weight and never calls it: an update there would do nothing."""
    with pytest.raises(InputError, match="E-TARGET-NONE"):
        inject(torch_transformer(), Lora(targets=targets))


def test_a_preset_without_a_layer_in_this_model_is_an_error() -> None:
    with pytest.raises(InputError, match=r"E-TARGET-NONE: adapter.targets: 'attention'.*no such layer.*0"):
        inject(nn.Sequential(nn.Linear(2, 2)), Lora(targets="attention"))


@pytest.mark.parametrize("targets", ["all", "0"])
def test_a_model_without_layers_of_a_known_kind_is_an_error(targets: str) -> None:
    with pytest.raises(InputError, match=r"E-TARGET-NONE: .*no layer outside its head that can be adapted"):
        inject(nn.Sequential(nn.LayerNorm(1)), Lora(targets=targets))


@pytest.mark.parametrize(
    ("targets", "chosen"), [("all-linear", {"2"}), ("all-conv", {"0"}), ("all", {"0", "2"}), ("attention", None)]
)
def test_presets_choose_layers_by_their_kind(targets: str, chosen: set[str] | None) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Linear(1, 1))
    if chosen is None:
        with pytest.raises(InputError, match="E-TARGET-NONE"):
            inject(model, Lora(targets=targets))
    else:
        inject(model, Lora(targets=targets))
        assert adapted(model) == chosen


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16))


def llama(tied: bool) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 on transformers 5.23
@pytest.mark.parametrize("model", [gpt2(), llama(tied=True), llama(tied=False)], ids=["gpt2", "tied", "untied"])
def test_all_linear_takes_a_language_models_layers_and_leaves_out_its_output(model: PreTrainedModel) -> None:
    """The same layers as PEFT's own all-linear."""
    is_gpt2 = isinstance(model, GPT2LMHeadModel)
    theirs = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear", fan_in_fan_out=is_gpt2))
    chosen = {
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    inject(model, Lora(targets="all-linear"))
    assert adapted(model) == chosen and chosen


def test_an_output_layer_of_its_own_can_be_named() -> None:
    model = llama(tied=False)
    inject(model, Lora(targets="lm_head"))
    assert adapted(model) == {"lm_head"}


@pytest.mark.parametrize(
    ("build", "targets"), [(bert, "query"), (bert, "embedding"), (mixtral, "experts"), (torch_transformer, "*")]
)
def test_an_adapted_model_is_not_adapted_again(build: Callable[[], nn.Module], targets: str) -> None:
    model = build()
    inject(model, Lora(targets=targets))
    with pytest.raises(InputError, match="E-ADAPTED"):
        inject(model, Lora(targets=targets))


@pytest.mark.parametrize("adapter", [Lora, "lora", None])
def test_what_is_no_adapter_is_refused(adapter: Any) -> None:
    with pytest.raises(InputError, match=r"^E-ADAPTER: adapter is .*; give one such as Lora\(targets="):
        inject(bert(), adapter)


def test_a_rank_above_that_of_every_layer_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told = "caution: E-RANK: adapter.rank is 100, but no layer of the model has a rank above 2, which 0 has; give"
    model = nn.Sequential(nn.Linear(4, 2))
    inject(model, Lora(targets="0", rank=100))
    assert told in caplog.text and adapted(model) == {"0"}
    caplog.clear()
    inject(nn.Sequential(nn.Linear(4, 2)), Lora(targets="0", rank=2))
    inject(nn.Sequential(nn.Linear(4, 2)), Lora(targets="0", rank=100), will_train=False)
    assert not caplog.text


def test_a_layer_that_two_targets_mean_is_adapted_once() -> None:
    model = bert()
    hits = inject(model, Lora(targets=["query", "attention", "*.query"], rank=2))
    queries = layers("encoder.layer", ["attention.self.query"])
    assert set(hits["query"]) == set(hits["*.query"]) == queries < set(hits["attention"])
    assert {module.rank for module in model.modules() if isinstance(module, LoraLayer)} == {2}
