"""Each word of a text of any length is read once, by its first sub-word, where it has most context."""

from collections.abc import Callable
from functools import cache
from random import Random
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from loralight.errors import InputError
from loralight.tasks.ner import windows
from loralight.tasks.ner.windows import Encoder, Windows, join

TEXT = "Anna met Bob in unbelievably cold Paris ; they did n't speak ."
WORDS = TEXT.split()


@pytest.fixture(params=["BERT", "RoBERTa", "XLM-R"])
def checkpoint(request: pytest.FixtureRequest, checkpoints: Callable[[str], str]) -> str:
    return checkpoints(request.param)


@cache
def encoder(checkpoint: str, max_length: int = 64, stride: int = 0) -> Encoder:
    return Encoder(checkpoint=checkpoint, max_length=max_length, stride=stride)


def encode(checkpoint: str, words: list[str], max_length: int = 64, stride: int = 0) -> Windows:
    return encoder(checkpoint, max_length, stride)([words])[0]


def document(num_words: int) -> list[str]:
    random = Random(0)
    return [random.choice(WORDS) for _ in range(num_words)]


def test_a_short_sentence_is_encoded_as_its_text_would_be(checkpoint: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    space = " " if "RoBERTa" in checkpoint else ""  # which a first word has like any other
    encoded = encode(checkpoint, WORDS)
    assert encoded["input_ids"] == [tokenizer(space + " ".join(WORDS))["input_ids"]]
    assert encoded["window"] == [0] * len(WORDS)


def test_a_word_is_where_its_first_sub_word_is(checkpoint: str) -> None:
    encoded = encode(checkpoint, WORDS)
    (ids,) = encoded["input_ids"]
    positions = [*encoded["position"], len(ids) - 1]
    for word, start, end in zip(WORDS, positions, positions[1:], strict=False):
        alone = encode(checkpoint, [word])["input_ids"][0]
        assert ids[start:end] == alone[1:-1], word


@pytest.mark.parametrize(("max_length", "stride"), [(32, 0), (32, 8), (32, 29), (7, 2), (3, 0)])
def test_every_word_of_a_long_text_is_read_where_a_window_shows_most_of_what_is_around(
    checkpoint: str, max_length: int, stride: int
) -> None:
    words = document(300)
    encoded = encode(checkpoint, words, max_length, stride)
    contents = [ids[1:-1] for ids in encoded["input_ids"]]
    size, step = max_length - 2, max_length - 2 - stride
    starts = [number * step for number in range(len(contents))]
    total = starts[-1] + len(contents[-1])
    tokens = [token for start, ids in zip(starts, contents, strict=True) for token in ids[0 if not start else stride :]]
    assert tokens == [token for word in words for token in encode(checkpoint, [word])["input_ids"][0][1:-1]]
    assert all(len(ids) == size for ids in contents[:-1])

    def context(token: int, start: int) -> int:
        """Tokens between a token and the nearer end of a window that is not the text's; -1 if it is not inside."""
        end = min(start + size, total)
        inside = start <= token < end
        return min(token - start if start else total, end - token if end < total else total) if inside else -1

    places = [starts[w] + p - 1 for w, p in zip(encoded["window"], encoded["position"], strict=True)]
    assert len(places) == len(words) and places == sorted(set(places))
    for place, window in zip(places, encoded["window"], strict=True):
        best = context(place, starts[window])
        assert best == max(context(place, start) for start in starts)
        assert best >= stride // 2


def test_a_word_longer_than_a_window_is_read_at_its_beginning(checkpoint: str) -> None:
    words = ["in", "Paris" * 19, "town"]  # BERT gives up at 100 letters
    encoded = encode(checkpoint, words, max_length=16, stride=4)
    assert encoded["window"][1] == 0
    assert encoded["window"][2] == len(encoded["input_ids"]) - 1 >= 3
    assert len(encoded["position"]) == 3


@pytest.mark.parametrize("word", ["\u200d", "\ufe0f", "\x00", "\u0301"])
def test_a_word_that_is_nothing_to_the_tokenizer_moves_no_other(checkpoint: str, word: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    words = ["Anna", word, "met", word, "Bob"]
    made = Encoder(checkpoint=checkpoint, max_length=64, stride=0)
    encoded = made([["Anna"], words])[1]
    assert len(encoded["position"]) == len(words)
    (ids,) = encoded["input_ids"]
    for name in ("Anna", "met", "Bob"):
        assert ids[encoded["position"][words.index(name)]] == encode(checkpoint, [name])["input_ids"][0][1]
    if made.num_unknown:
        assert made.num_unknown == 2
        assert [ids[encoded["position"][place]] for place in (1, 3)] == [tokenizer.unk_token_id] * 2


def test_of_the_unknown_words_of_bert_those_that_vanish_are_counted(checkpoints: Callable[[str], str]) -> None:
    made = Encoder(checkpoint=checkpoints("BERT"), max_length=64, stride=0)
    made([["\u200d", "Anna"], ["\u200d", "\ufe0f"], ["\U000130b8"]])
    assert made.num_unknown == 3  # the hieroglyph is an unknown word all the same, but not nothing


def test_a_sentence_without_words_is_one_window_without_any(checkpoint: str) -> None:
    encoded = encode(checkpoint, [])
    assert encoded == {
        "input_ids": [AutoTokenizer.from_pretrained(checkpoint)("")["input_ids"]],
        "window": [],
        "position": [],
    }


def test_a_batch_holds_the_windows_of_all_sentences_and_finds_their_words() -> None:
    rows: list[Windows] = [
        {"input_ids": [[5, 6, 7], [7, 8]], "window": [0, 0, 1], "position": [1, 2, 1]},
        {"input_ids": [[9]], "window": [], "position": []},
        {"input_ids": [[1, 2]], "window": [0], "position": [1]},
    ]
    batch = join(rows, padding=4)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [7, 8, 4], [9, 4, 4], [1, 2, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]
    assert batch["lengths"].tolist() == [3, 0, 1]
    assert batch["input_ids"][batch["window"], batch["position"]].tolist() == [6, 7, 8, 2]


@pytest.mark.parametrize(("max_length", "shared"), [(128, 32), (64, 16), (32, 8), (4, 1)])
def test_windows_share_what_suits_their_length_unless_told(
    checkpoints: Callable[[str], str], max_length: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loralight.tasks.ner.windows.check_length", lambda *_: None)  # a model of 64 positions
    made = Encoder(checkpoint=checkpoints("BERT"), max_length=max_length, stride=None)
    assert made.size - made.step == shared


@pytest.mark.parametrize("stride", [-1, 6, 7, 100])
def test_windows_that_share_all_or_less_than_nothing_are_an_error(
    checkpoints: Callable[[str], str], stride: int
) -> None:
    message = (
        rf"^E-SEQ-LEN: model\.stride={stride}: windows of model\.max_length=8 tokens can share 0 to 5 with the next"
    )
    with pytest.raises(InputError, match=message):
        Encoder(checkpoint=checkpoints("BERT"), max_length=8, stride=stride)


@pytest.mark.parametrize(("max_length", "message"), [(65, "the model takes 64 tokens at most"), (2, "too short")])
def test_windows_that_the_model_cannot_take_are_an_error(
    checkpoints: Callable[[str], str], max_length: int, message: str
) -> None:
    with pytest.raises(InputError, match=rf"^E-SEQ-LEN: model\.max_length={max_length}: {message}"):
        Encoder(checkpoint=checkpoints("BERT"), max_length=max_length, stride=0)


def test_a_tokenizer_that_knows_no_words_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "load_tokenizer", lambda _: SimpleNamespace(is_fast=False))
    with pytest.raises(InputError, match=r"^E-TOKENIZER: slow: its tokenizer cannot tell which word a token is of"):
        Encoder(checkpoint="slow", max_length=32, stride=0)
