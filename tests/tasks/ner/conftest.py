"""Tiny encoders of several families with random weights, and small files of sentences with entities."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import SentencePieceUnigramTokenizer, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, RobertaTokenizerFast, XLMRobertaTokenizerFast

# far from zero, as trained weights are: at the customary 0.02 so small a model learns nothing in a few steps
SIZES = {
    "vocab_size": 30522,
    "initializer_range": 0.2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
}
DISTIL = {"vocab_size": 30522, "initializer_range": 0.2, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("BertForMaskedLM", SIZES),
    "DistilBERT": ("DistilBertForMaskedLM", DISTIL),
    "ELECTRA": ("ElectraForPreTraining", SIZES | {"embedding_size": 16}),
    "RoBERTa": ("RobertaForMaskedLM", SIZES | {"pad_token_id": 1, "type_vocab_size": 1}),
    "XLM-R": ("XLMRobertaForMaskedLM", SIZES | {"pad_token_id": 1, "type_vocab_size": 1}),
    "ModernBERT": (
        "ModernBertForMaskedLM",
        SIZES | {"pad_token_id": 1, "local_attention": 8, "attn_implementation": "eager"},
    ),
}
MARKS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CORPUS = ["Anna Smith met Bob in Paris, near the old town hall; they didn't speak.", "unbelievably long wordings"] * 9


def byte_level() -> Any:
    """RoBERTa's tokenizer on a vocabulary of a few hundred pieces."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    model = json.loads(made.to_str())["model"]
    return RobertaTokenizerFast(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def unigram() -> Any:
    """XLM-R's tokenizer on a vocabulary of about a hundred pieces."""
    made = SentencePieceUnigramTokenizer()
    made.train_from_iterator(CORPUS, vocab_size=120, special_tokens=MARKS, unk_token="<unk>", show_progress=False)
    pieces = json.loads(made.to_str())["model"]["vocab"]
    return XLMRobertaTokenizerFast(vocab=[tuple(piece) for piece in pieces])


@pytest.fixture(scope="session")
def checkpoints(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a family's model, made when first asked for."""
    parent = tmp_path_factory.mktemp("families")

    def folder(family: str) -> str:
        path = parent / family
        if not path.exists():
            class_name, sizes = FAMILIES[family]
            model_class = getattr(transformers, class_name)
            torch.manual_seed(0)
            model_class(model_class.config_class(**sizes)).save_pretrained(path)
            if family in ("RoBERTa", "ModernBERT"):
                tokenizer = byte_level()
            elif family == "XLM-R":
                tokenizer = unigram()
            else:
                tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
            tokenizer.model_max_length = 64
            tokenizer.save_pretrained(path)
        return str(path)

    return folder


PEOPLE = ["Anna", "Bob", "Carla Diaz", "Dmitri"]
TOWNS = ["Paris", "New York", "Lima", "Oslo"]


def marked(text: str, **entities: str) -> dict[str, Any]:
    """A row of a text and its entities, each given by its type and words."""
    found = [
        {"start": text.index(words), "end": text.index(words) + len(words), "label": label}
        for label, words in entities.items()
    ]
    return {"text": text, "entities": found}


@pytest.fixture(scope="session")
def towns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl, validation.jsonl and test.jsonl: who lives where (48, 16 and 16 rows)."""
    folder = tmp_path_factory.mktemp("towns")
    rows = [
        marked(form.format(person=person, place=town), person=person, place=town)
        for form in ("{person} lives in {place}.", "In {place}, {person} sleeps", "{person}? Gone to {place}!")
        for person, town in product(PEOPLE, TOWNS)
    ] + [{"text": "nobody is there", "entities": []}]
    for split, chosen in {"train": rows, "validation": rows[::3], "test": rows[1::3]}.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, chosen)), encoding="utf-8")
    return folder
