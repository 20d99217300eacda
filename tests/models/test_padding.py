"""A model that reads its batch's padding is found, and predicts rows of one length at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel

from loralight.adapters import Lora
from loralight.models import depends_on_padding, each_length
from loralight.tasks.ner import Ner
from loralight.tasks.text_classification import TextClassification

TEXTS = ["a fine film", "we hated every minute of it , and the day", "dull", "what a joy"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SIZES |= {"initializer_range": 0.3, "vocab_size": 30522}


def model_of(family: str, head: str, **sizes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, f"{family}{head}")(getattr(transformers, f"{family}Config")(**sizes))
    return model


@pytest.mark.parametrize(
    ("family", "head", "left", "depends"),
    [
        ("Bert", "ForSequenceClassification", False, False),
        ("Bert", "ForTokenClassification", False, False),
        ("FNet", "ForSequenceClassification", False, True),
        ("ConvBert", "ForTokenClassification", False, True),
        ("Bert", "ForTokenClassification", True, True),  # positions are counted from the padding on
    ],
)
def test_who_reads_padding(family: str, head: str, left: bool, depends: bool) -> None:
    settings = SIZES | ({} if family == "FNet" else {"embedding_size": 16} if family == "ConvBert" else {})
    if family == "FNet":
        settings.pop("num_attention_heads")
    model = model_of(family, head, **settings).train()
    assert depends_on_padding(model, padding=0, on_the_left=left) is depends
    assert model.training


@pytest.mark.parametrize("left", [False, True])
def test_rows_of_each_length_lose_their_padding_alone(left: bool) -> None:
    rows = [[1, 2, 3], [4], [5, 6, 7], [8, 9]]
    padded = [[*[0] * (3 - len(row) if left else 0), *row, *[0] * (0 if left else 3 - len(row))] for row in rows]
    ids = torch.tensor(padded)
    found = {}
    for places, part in each_length({"input_ids": ids, "attention_mask": (ids > 0).long()}):
        assert bool(part["attention_mask"].all())
        found |= dict(zip(places.tolist(), part["input_ids"].tolist(), strict=True))
    assert [found[number] for number in range(4)] == rows


@pytest.fixture
def fnet(tiny_bert: str, tmp_path: Path) -> str:
    settings = {name: size for name, size in SIZES.items() if name != "num_attention_heads"}
    model_of("FNet", "Model", **settings).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("kind", [TextClassification, Ner])
def test_a_prediction_is_the_same_in_any_company(kind: Any, fnet: str) -> None:
    torch.manual_seed(0)
    task = kind(checkpoint=fnet, labels=["a", "b"], max_length=64, adapter=Lora(targets="all-linear", rank=2))
    task.configure_model()
    assert task.predict(TEXTS) == [task.predict([text])[0] for text in TEXTS]
