"""What of a model is new is found whoever loads its weights, and nothing else is taken for new."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from loralight.models.fresh import take_as_given, watching_origins

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 66}
DECODER = SIZES | {"num_key_value_heads": 1, "head_dim": 16}
CONFIGS = {
    "BertConfig": SIZES,
    "RobertaConfig": SIZES,
    "DebertaV2Config": SIZES,
    "AlbertConfig": SIZES,
    "DistilBertConfig": {"vocab_size": 50, "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64},
    "T5Config": {"vocab_size": 50, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2},
    "LlamaConfig": DECODER,
    "MixtralConfig": DECODER | {"num_local_experts": 2, "num_experts_per_tok": 1},
}


def fresh(build: Callable[[], nn.Module]) -> set[str]:
    with watching_origins() as origins:
        model = build()
    return origins.fresh(model)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_of_a_model_of_transformers_it_is_what_transformers_says_that_the_checkpoint_lacks(
    config: str, head: Any, tmp_path: Path
) -> None:
    AutoModel.from_config(getattr(transformers, config)(**CONFIGS[config])).save_pretrained(tmp_path)
    with watching_origins() as origins:
        model, info = head.from_pretrained(tmp_path, output_loading_info=True)
    assert origins.fresh(model) == set(info["missing_keys"]) != set()


def test_a_classifier_of_another_shape_is_new(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SIZES, num_labels=5)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    assert fresh(lambda: load(tmp_path)) == set()
    found = fresh(lambda: load(tmp_path, num_labels=3, ignore_mismatched_sizes=True))
    assert found == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_of_a_model_of_timm_it_is_the_classifier_for_other_classes(architecture: str, tmp_path: Path) -> None:
    torch.save(timm.create_model(architecture, num_classes=7).state_dict(), tmp_path / "weights.pth")
    weights = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth"), "num_classes": 7}}
    for num_classes in (7, 3):
        with watching_origins() as origins:
            model = timm.create_model(architecture, num_classes=num_classes, **weights)
        head = model.get_classifier()
        expected = {name for name, p in model.named_parameters() if any(p is one for one in head.parameters())}
        assert origins.fresh(model) == (expected if num_classes == 3 else set())


class Net(nn.Module):
    """A body whose weights are loaded, and a new layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LSTM(4, 4))
        self.new = nn.Linear(4, 2)
        self.register_buffer("positions", torch.rand(4), persistent=False)


NEW = {"new.weight", "new.bias"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(Net().body.state_dict(), tmp_path / "body.pth")
    return tmp_path / "body.pth"


def loaded(weights: Path, **how: Any) -> Net:
    model = Net()
    model.body.load_state_dict(torch.load(weights), **how)
    return model


@pytest.mark.parametrize("how", [{}, {"assign": True}])
def test_of_plain_torch_it_is_the_layer_beside_the_loaded_ones(weights: Path, how: dict[str, Any]) -> None:
    assert fresh(lambda: loaded(weights, **how)) == NEW


def test_what_was_there_before_is_as_good_as_loaded() -> None:
    body = nn.Linear(4, 4)
    assert fresh(lambda: nn.Sequential(body, nn.Linear(4, 2))) == {"1.weight", "1.bias"}


@pytest.mark.parametrize("change", [copy.deepcopy, nn.Module.half, nn.Module.double])
def test_copies_and_casts_are_as_new_as_what_they_are_made_of(weights: Path, change: Any) -> None:
    assert fresh(lambda: change(loaded(weights))) == NEW


def test_a_loaded_layer_that_is_initialised_again_is_new(weights: Path) -> None:
    def build() -> nn.Module:
        model = loaded(weights)
        model.body[0].reset_parameters()
        return model

    assert fresh(build) == NEW | {"body.0.weight", "body.0.bias"}


INITIALISERS = [
    nn.init.xavier_uniform_,
    nn.init.kaiming_normal_,
    nn.init.trunc_normal_,
    nn.init.orthogonal_,
    nn.init.zeros_,
    nn.init.eye_,
    lambda weight: nn.init.sparse_(weight, 0.5),
    lambda weight: weight.data.copy_(torch.randn_like(weight) / 10),
    lambda weight: weight.data[0].fill_(1.0),
]


@pytest.mark.parametrize("initialise", INITIALISERS)
def test_a_new_layer_may_be_initialised_in_any_way(weights: Path, initialise: Callable[[Tensor], Any]) -> None:
    def build() -> nn.Module:
        model = loaded(weights)
        initialise(model.new.weight)
        return model

    assert fresh(build) == NEW


def test_a_single_number_is_new_too(weights: Path) -> None:
    def build() -> nn.Module:
        model = loaded(weights)
        model.temperature = nn.Parameter(torch.tensor(0.07))
        return model

    assert fresh(build) == NEW | {"temperature"}


def test_a_constant_that_asks_for_no_gradient_is_none(weights: Path) -> None:
    def build() -> nn.Module:
        model = loaded(weights)
        model.table = nn.Parameter(torch.arange(4.0).sin(), requires_grad=False)
        model.projection = nn.Parameter(torch.randn(4), requires_grad=False)  # the adapter is of no use on another one
        return model

    assert fresh(build) == NEW | {"projection"}


def test_of_weights_that_share_memory_the_loaded_one_counts(weights: Path) -> None:
    def build() -> nn.Module:
        model = loaded(weights)
        model.new = nn.Linear(4, 4, bias=False)
        model.new.weight = model.body[0].weight
        return model

    assert fresh(build) == set()


def test_a_model_without_any_loaded_weight_is_random_on_purpose() -> None:
    assert fresh(Net) == set()
    assert fresh(lambda: AutoModel.from_config(transformers.BertConfig(**SIZES))) == set()


def test_tensors_without_memory_of_their_own_are_left_out(weights: Path) -> None:
    def build() -> nn.Module:
        torch.eye(3).to_sparse() @ torch.ones(3, 1)
        return loaded(weights)

    assert fresh(build) == NEW


def test_whoever_leaves_out_weights_can_tell_what_a_file_has() -> None:
    def build() -> nn.Module:
        model = Net()
        take_as_given(model.body.parameters())
        return model

    assert fresh(build) == NEW
    take_as_given([torch.ones(1)])  # where nobody asks, it says nothing
