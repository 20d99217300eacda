"""Rows of a model that takes certain lengths alone are filled up, and it computes what the plain library does then."""

import copy
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from loralight.adapters import Lora
from loralight.adapters.base import trainable
from loralight.errors import InputError
from loralight.models.pretrained import load_classifier
from loralight.models.row_lengths import fill_up_
from loralight.tasks.text_classification import TextClassification

SIZES = {"vocab_size": 30522, "hidden_size": 16, "num_attention_heads": 2, "initializer_range": 0.3}
NYSTROM = {**SIZES, "num_hidden_layers": 1, "intermediate_size": 16, "max_position_embeddings": 24}
NYSTROM |= {"num_landmarks": 4, "segment_means_seq_len": 24, "hidden_dropout_prob": 0.0, "pad_token_id": 0}
NYSTROM |= {"attention_probs_dropout_prob": 0.0}
REFORMER = {**SIZES, "attention_head_size": 8, "feed_forward_size": 16, "attn_layers": ["local"], "is_decoder": True}
REFORMER |= {"axial_pos_shape": [4, 8], "axial_pos_embds_dim": [6, 10], "local_attn_chunk_length": 8}
REFORMER |= {"hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
IDS = torch.arange(5, 19).view(2, 7)


def filled(ids: Tensor, width: int) -> dict[str, Tensor]:
    more = (0, width - ids.shape[1])
    return {
        "input_ids": nn.functional.pad(ids, more),
        "attention_mask": nn.functional.pad(torch.ones_like(ids), more),
    }


def gradients(model: nn.Module, outputs: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(outputs.square().sum(), list(model.parameters()), allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("training", [True, False])
def test_a_classifier_with_landmarks_computes_what_the_library_does_on_rows_of_its_length_or_is_refused(
    training: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = transformers.NystromformerConfig(**NYSTROM)
    transformers.NystromformerForSequenceClassification(config).save_pretrained(tmp_path)
    plain = transformers.NystromformerForSequenceClassification.from_pretrained(tmp_path).train(training)
    with pytest.raises(RuntimeError):
        plain(IDS)
    try:
        expected = plain(**filled(IDS, 24)).logits
    except RuntimeError:  # in newer versions its landmarks take no padding
        with pytest.raises(InputError, match=r"^E-SEQ-LEN: NystromformerModel takes rows of exactly 24 .*_len=24\)"):
            load_classifier(transformers.AutoModelForSequenceClassification, str(tmp_path), ["a", "b"])
        return
    model = load_classifier(transformers.AutoModelForSequenceClassification, str(tmp_path), ["a", "b"]).train(training)
    found = model(IDS).logits
    assert torch.equal(found, expected)
    assert all(map(torch.equal, gradients(model, found), gradients(plain, expected)))


def test_a_model_that_fixes_its_length_in_training_alone_stays_as_it_is_in_evaluation() -> None:
    torch.manual_seed(0)
    plain = transformers.ReformerModelWithLMHead(transformers.ReformerConfig(**REFORMER)).train()
    model = copy.deepcopy(plain)
    fill_up_(model)
    with pytest.raises(ValueError, match="axial_pos_shape"):
        plain(IDS)
    found, expected = model(IDS).logits, plain(**filled(IDS, 32)).logits
    assert found.shape[:2] == IDS.shape and torch.equal(found, expected[:, :7])
    assert torch.equal(model.eval()(IDS).logits, plain.eval()(IDS).logits)


class MixedConfig(PreTrainedConfig):
    model_type = "of_a_stranger"
    words = 40

    def __init__(self, grid: tuple[int, int] = (1, 1), block: int = 1, **others: Any) -> None:
        super().__init__(**others)
        self.grid, self.block, self.vocab_size, self.hidden_size = list(grid), block, self.words, 4


class Mixed(PreTrainedModel):
    """Mixes the tokens of a block, and has a place for each if it has a grid."""

    config_class = MixedConfig

    def __init__(self, config: MixedConfig) -> None:
        super().__init__(config)
        self.block = config.block
        self.words = nn.Embedding(config.vocab_size, 4)
        self.norm = nn.BatchNorm1d(4)
        self.places = nn.Parameter(torch.randn(*config.grid, 4))
        self.mix = nn.Linear(config.block, config.block)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        states = self.norm(self.words(input_ids).transpose(1, 2))  # (rows, 4, tokens)
        states = self.mix(states.unflatten(2, (-1, self.block))).flatten(2).transpose(1, 2)
        if attention_mask is not None:
            states = states * attention_mask.unsqueeze(-1)
        places = self.places.flatten(0, 1)
        return BaseModelOutput(last_hidden_state=states + places if len(places) > 1 else states)


@pytest.mark.parametrize(
    ("settings", "told", "width"),
    [
        ({"grid": (3, 8)}, "of 24 tokens alone (its config's grid=[3, 8])", 24),
        ({"block": 12}, "of multiples of 12 tokens alone (its config's block=12)", 24),
    ],
)
def test_what_a_stranger_s_model_takes_is_found_in_its_config(
    settings: dict[str, Any], told: str, width: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    plain = Mixed(MixedConfig(**settings))
    model = copy.deepcopy(plain)
    drawn = torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        fill_up_(model)
    (message,) = caplog.messages
    assert told in message
    assert torch.equal(torch.get_rng_state(), drawn) and model.training
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    ids = torch.arange(26).view(2, 13)
    for training in (False, True):
        expected = plain.train(training)(**filled(ids, width)).last_hidden_state[:, :13]
        found = model.train(training)(ids).last_hidden_state
        assert torch.equal(found, expected)
        assert all(map(torch.equal, gradients(model, found), gradients(plain, expected)))


def test_a_row_longer_than_the_only_length_is_refused_with_that_length() -> None:
    model = Mixed(MixedConfig(grid=(3, 8)))
    fill_up_(model)
    with pytest.raises(InputError, match=r"^E-SEQ-LEN: .* exactly 24 .*grid=\[3, 8\].*; set model.max_length=24$"):
        model(torch.ones(2, 25, dtype=torch.long))


@pytest.mark.parametrize("family", ["Bert", "XLNet"])
def test_a_model_that_takes_any_length_is_left_as_it_is(family: str) -> None:
    settings: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    settings |= {"num_attention_heads": 2}
    if family == "XLNet":
        settings = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**settings))
    fill_up_(model)
    assert "forward" not in vars(model)


def test_a_task_trains_and_predicts_with_such_a_model(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(MixedConfig, "words", 30522)
    AutoConfig.register("of_a_stranger", MixedConfig, exist_ok=True)
    AutoModel.register(MixedConfig, Mixed, exist_ok=True)
    Mixed(MixedConfig(block=12)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    texts = ["a fine film", "we hated every minute of it , and the day", "dull"]
    settings: dict[str, Any] = {"checkpoint": str(tmp_path), "labels": ["a", "b"], "pooling": "mean"}
    optimizer = partial(torch.optim.SGD, lr=0.1)
    task = TextClassification(**settings, adapter=Lora(targets="all-linear", rank=2), optimizer=optimizer)
    task.configure_model()
    assert task.predict(texts) == [task.predict([text])[0] for text in texts]
    batch = {**task.tokenizer(texts, padding=True, return_tensors="pt"), "labels": torch.tensor([0, 1, 0])}
    task.step(batch).loss.backward()
    assert all(parameter.grad is not None for parameter in trainable(task.model).values())
