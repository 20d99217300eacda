"""Blocks, depths and sublayers of models as transformers and timm build them."""

import pytest
import timm
import transformers
from torch import nn

from loralight.errors import InputError
from loralight.models.blocks import blocks, depths, norms, sublayers

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}
CONVNEXT = (1, 2, 4, 2)  # blocks of the stages of timm's smallest


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL))


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=30)
    return transformers.GPT2LMHeadModel(config)


def opt() -> nn.Module:
    config = transformers.OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16)
    return transformers.OPTForCausalLM(config)


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(dim=16, n_layers=3, n_heads=2, hidden_dim=24, vocab_size=30)
    return transformers.DistilBertForSequenceClassification(config)


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_modules())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (bert, [f"bert.encoder.layer.{n}" for n in range(3)]),
        (llama, [f"model.layers.{n}" for n in range(3)]),
        (gpt2, [f"transformer.h.{n}" for n in range(3)]),
        (distilbert, [f"distilbert.transformer.layer.{n}" for n in range(3)]),
        (lambda: timm.create_model("test_vit"), [f"blocks.{n}" for n in range(6)]),
        (lambda: timm.create_model("resnet18"), [f"layer{stage}.{n}" for stage in range(1, 5) for n in range(2)]),
        (
            lambda: timm.create_model("test_convnext"),
            [f"stages.{n}.blocks.{m}" for n, many in enumerate(CONVNEXT) for m in range(many)],
        ),
    ],
    ids=["bert", "llama", "gpt2", "distilbert", "vit", "resnet", "convnext"],
)
def test_blocks_are_the_innermost_repeated_parts_in_order(model: object, expected: list[str]) -> None:
    found = list(blocks(modules_of(model())))
    assert found == expected


def test_a_model_that_repeats_nothing_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with pytest.raises(InputError, match=r"^E-BLOCKS: Sequential has no stack of equal blocks"):
        blocks(modules_of(model))


@pytest.mark.parametrize(
    ("model", "attention", "feed_forward"),
    [
        (
            bert,
            ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
            ["intermediate.dense", "output.dense"],
        ),
        (llama, [f"self_attn.{n}_proj" for n in "qkvo"], [f"mlp.{n}_proj" for n in ("gate", "up", "down")]),
        (gpt2, ["attn.c_attn", "attn.c_proj"], ["mlp.c_fc", "mlp.c_proj"]),
        (opt, [f"self_attn.{n}_proj" for n in ("k", "v", "q", "out")], ["fc1", "fc2"]),
        (distilbert, [f"attention.{n}_lin" for n in ("q", "k", "v", "out")], ["ffn.lin1", "ffn.lin2"]),
        (lambda: timm.create_model("test_vit"), ["attn.qkv", "attn.proj"], ["mlp.fc1", "mlp.fc2"]),
    ],
    ids=["bert", "llama", "gpt2", "opt", "distilbert", "vit"],
)
def test_a_block_s_linear_layers_are_those_of_its_sublayers(
    model: object, attention: list[str], feed_forward: list[str]
) -> None:
    modules = modules_of(model())
    for block in blocks(modules):
        found = sublayers(modules, block)
        assert found.attention == [[f"{block}.{name}" for name in attention]]
        assert found.feed_forward == [f"{block}.{name}" for name in feed_forward]


def test_a_residual_block_of_convolutions_has_no_such_sublayers() -> None:
    modules = modules_of(timm.create_model("test_resnet"))
    assert all(sublayers(modules, block) == ([], []) for block in blocks(modules))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (bert, {"bert.embeddings": 0, "bert.encoder.layer.0": 1, "bert.encoder.layer.2": 3, "bert.pooler": 4}),
        (bert, {"classifier": 4}),
        (gpt2, {"transformer.wte": 0, "transformer.wpe": 0, "transformer.h.1": 2, "transformer.ln_f": 4, "lm_head": 0}),
        (lambda: timm.create_model("resnet18"), {"conv1": 0, "layer1.0": 1, "layer3.1": 6, "layer4.1": 8, "fc": 9}),
    ],
    ids=["bert", "its head", "gpt2, whose output is tied", "resnet"],
)
def test_depth_counts_blocks_from_the_embeddings_to_the_head(model: object, expected: dict[str, int]) -> None:
    built = model()
    depth_of, top = depths(built)
    assert set(depth_of) == set(built.parameters())
    assert top == max(depth_of.values())
    for name, depth in expected.items():
        assert {depth_of[parameter] for parameter in built.get_submodule(name).parameters()} == {depth}, name


def test_norms_are_found_whatever_library_they_come_from() -> None:
    assert set(norms(modules_of(llama()))) == {
        *(f"model.layers.{n}.{place}_layernorm" for n in range(3) for place in ("input", "post_attention")),
        "model.norm",
    }
    resnet = timm.create_model("test_resnet")
    batch_norms = {name for name, module in resnet.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert set(norms(modules_of(resnet))) == batch_norms
    assert not norms({"": nn.LayerNorm(4, elementwise_affine=False), "x": nn.Linear(4, 4)})
    assert norms({"": nn.GroupNorm(2, 4)})
