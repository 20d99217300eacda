import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification

from loralight.adapters import inject
from loralight.adapters.base import Adapter, trainable
from loralight.adapters.layers.bottleneck import _BESIDE
from loralight.adapters.methods.bottleneck import Houlsby, Parallel, Pfeiffer
from loralight.errors import InputError

from .text_models import MODELS, SMALL, TOKENS

FIRST = {"bert": "intermediate.dense", "llama": "mlp.gate_proj", "gpt2": "mlp.c_fc"}
LAST = {"bert": "output.dense", "llama": "mlp.down_proj", "gpt2": "mlp.c_proj"}
ATTENTION = {"bert": "attention.output.dense", "llama": "self_attn.o_proj", "gpt2": "attn.c_proj"}
BLOCKS = {"bert": "bert.encoder.layer", "llama": "model.layers", "gpt2": "transformer.h"}


def adapted(base: nn.Module, adapter: Adapter) -> nn.Module:
    """A copy of ``base`` with bottlenecks away from where they start."""
    model = copy.deepcopy(base)
    inject(model, adapter)
    for name, parameter in trainable(model).items():
        if ".bottleneck." in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def bottleneck(model: nn.Module, owner: str, x: Tensor) -> Tensor:
    """The papers' formula, in the tensors of ``model``."""
    down, up = (model.get_submodule(f"{owner}.bottleneck.{part}") for part in ("down", "up"))
    return (x @ down.weight.T + down.bias).clamp(min=0) @ up.weight.T + up.bias


def with_formula(base: nn.Module, model: nn.Module, kind: str, places: list[str], *, beside: float = 0.0) -> nn.Module:
    """``base`` computing what ``model`` should, by hooks that know the architecture's own names."""
    read: dict[int, Tensor] = {}
    for block in range(2):
        for place in places:
            owner = f"{BLOCKS[kind]}.{block}.{place}"
            base.get_submodule(f"{BLOCKS[kind]}.{block}.{FIRST[kind]}").register_forward_pre_hook(
                lambda _, given, block=block: read.__setitem__(block, given[0])
            )
            base.get_submodule(owner).register_forward_hook(
                lambda _, given, y, owner=owner, block=block: (
                    y + (beside * bottleneck(model, owner, read[block]) if beside else bottleneck(model, owner, y))
                )
            )
    return base


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", ["houlsby", "pfeiffer", "parallel"])
def test_transformers_compute_the_papers_formula(kind: str, method: str) -> None:
    base = MODELS[kind]().double().eval()
    adapter = {
        "houlsby": Houlsby(reduction_factor=4, train_norms=False),
        "pfeiffer": Pfeiffer(reduction_factor=4),
        "parallel": Parallel(reduction_factor=4, scale=2.5),
    }[method]
    model = adapted(base, adapter)
    places = [ATTENTION[kind], LAST[kind]] if method == "houlsby" else [LAST[kind]]
    owners = {name.partition(".bottleneck.")[0] for name in trainable(model)}
    assert owners == {f"{BLOCKS[kind]}.{n}.{place}" for n in range(2) for place in places}
    before = base(input_ids=TOKENS).logits
    expected = with_formula(base, model, kind, places, beside=2.5 if method == "parallel" else 0.0)(input_ids=TOKENS)
    torch.testing.assert_close(model(input_ids=TOKENS).logits, expected.logits, rtol=1e-10, atol=1e-12)
    assert (before - expected.logits).abs().max() > 1e-3


@pytest.mark.parametrize("adapter", [Houlsby(), Pfeiffer(), Parallel()], ids=lambda adapter: type(adapter).__name__)
@pytest.mark.parametrize("kind", [*MODELS, "vit"])
def test_at_step_0_all_is_as_it_was_and_keys_stay(kind: str, adapter: Adapter) -> None:
    base = (timm.create_model("test_vit") if kind == "vit" else MODELS[kind]()).eval()
    model = copy.deepcopy(base)
    inject(model, adapter)
    given = torch.rand(2, 3, 160, 160) if kind == "vit" else TOKENS
    found, expected = (m(given) if kind == "vit" else m(input_ids=given).logits for m in (model, base))
    assert torch.equal(found, expected)
    assert base.state_dict().keys() < model.state_dict().keys()


def test_the_bottleneck_is_as_narrow_as_the_papers_have_it() -> None:
    def widths(width: int, adapter: Adapter) -> set[int]:
        sizes = {**SMALL, "hidden_size": width, "num_hidden_layers": 1}
        model = BertForSequenceClassification(BertConfig(**sizes))
        inject(model, adapter)
        return {p.shape[0] for name, p in trainable(model).items() if name.endswith(".down.weight")}

    assert widths(1024, Houlsby()) == {64}  # of BERT-large
    assert widths(1024, Parallel()) == {512}  # of BART-large
    assert widths(768, Pfeiffer()) == {48}  # of BERT-base
    assert widths(8, Pfeiffer()) == {1}


def test_houlsby_trains_the_norms_too_unless_told() -> None:
    for trains in (True, False):
        model = MODELS["bert"]()
        inject(model, Houlsby(train_norms=trains), head=[model.classifier])
        norms = {name for name, _ in model.named_parameters() if "LayerNorm" in name}
        assert (norms <= trainable(model).keys()) is trains
        assert norms.isdisjoint(trainable(model)) is not trains


def test_in_a_resnet_a_convolution_of_width_1_follows_the_last_of_each_block() -> None:
    base = timm.create_model("test_resnet").double().eval()
    model = adapted(base, Pfeiffer(reduction_factor=4))
    owners = {name.partition(".bottleneck.")[0] for name in trainable(model)}
    assert owners and all(owner.split(".")[-1] in ("conv2", "conv3") for owner in owners)
    for owner in owners:
        base.get_submodule(owner).register_forward_hook(
            lambda _, given, y, owner=owner: y + bottleneck_of_pixels(model, owner, y)
        )
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(model(x), base(x), rtol=1e-10, atol=1e-12)


def bottleneck_of_pixels(model: nn.Module, owner: str, y: Tensor) -> Tensor:
    down, up = (model.get_submodule(f"{owner}.bottleneck.{part}") for part in ("down", "up"))
    inner = torch.einsum("bchw,dc->bdhw", y, down.weight[:, :, 0, 0]) + down.bias[:, None, None]
    return torch.einsum("bdhw,cd->bchw", inner.clamp(min=0), up.weight[:, :, 0, 0]) + up.bias[:, None, None]


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        (Houlsby(), "no attention .* Houlsby goes; choose another adapter, such as pfeiffer"),
        (Parallel(), "no feed-forward network .* Parallel goes; choose another adapter, such as lora"),
    ],
    ids=["houlsby", "parallel"],
)
def test_a_resnet_without_the_sublayers_is_refused(adapter: Adapter, says: str) -> None:
    with pytest.raises(InputError, match=f"^E-SUBLAYER: {says}"):
        inject(timm.create_model("test_resnet"), adapter)


@pytest.mark.parametrize("method", [Houlsby, Pfeiffer, Parallel])
def test_a_reduction_below_1_is_refused(method: type[Houlsby]) -> None:
    with pytest.raises(InputError, match=r"^E-REDUCTION: adapter.reduction_factor is 0"):
        method(reduction_factor=0)


def test_a_parallel_bottleneck_keeps_no_activation_and_is_recomputed_with_its_network() -> None:
    model = adapted(MODELS["bert"]().double().eval(), Parallel())
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    block = model.bert.encoder.layer[0]
    gradients = [
        torch.autograd.grad(run(x), [x, *(p for p in block.parameters() if p.requires_grad)])
        for run in (
            lambda x: states(block(x)).square().sum(),
            lambda x: checkpoint(lambda x: states(block(x)).square().sum(), x, use_reentrant=False),
        )
    ]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert not _BESIDE.of
    with pytest.raises(
        InputError, match=r"^E-LAYER: the last layer of a network with a bottleneck beside it is called"
    ):
        block.output.dense(torch.zeros(1, 24, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network_has_its_parallel_bottleneck(backend: str) -> None:
    model = adapted(MODELS["bert"]().eval(), Parallel())
    x = torch.randn(2, 5, 16)
    expected = states(model.bert.encoder.layer[0](x))
    compiled = torch.compile(model.bert.encoder.layer[0], backend=backend)
    torch.testing.assert_close(states(compiled(x)), expected)


def states(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
