"""Decoding finds the best of all well-formed tags: checked against trying every one."""

from itertools import product

import pytest
import torch
from torch import Tensor

from loralight.tasks.ner.decoding import decode
from loralight.tasks.ner.tags import spans_of, tag_names, tags_of

NAMES = tag_names(["a", "b"])


def is_sound(numbers: tuple[int, ...]) -> bool:
    """Whether tags are IOB2, that is, what their entities are written as."""
    tags = [NAMES[number] for number in numbers]
    return tags_of(spans_of(tags), len(tags)) == tags


def scores(num_words: int, spread: float = 1.0) -> Tensor:
    return (torch.randn(num_words, len(NAMES)) * spread).log_softmax(-1)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_no_well_formed_tags_are_likelier(length: int) -> None:
    torch.manual_seed(length)
    sound = [numbers for numbers in product(range(len(NAMES)), repeat=length) if is_sound(numbers)]
    for _ in range(40):
        given = scores(length)
        (found,) = decode(given, torch.tensor([length])).tolist()
        totals = {numbers: given[torch.arange(length), list(numbers)].sum().item() for numbers in sound}
        assert tuple(found) == max(totals, key=totals.__getitem__)


def test_a_batch_is_decoded_as_its_sentences_are_one_by_one() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([3, 0, 700, 1, 12])
    given = scores(int(lengths.sum()), spread=3.0)
    found = decode(given, lengths)
    assert found.shape == (5, 700)
    for row, part in zip(found, given.split(lengths.tolist()), strict=True):
        size = len(part)
        assert (row[size:] == -1).all()
        assert torch.equal(row[:size], decode(part, torch.tensor([size]))[0])
        assert is_sound(tuple(row[:size].tolist()))


def test_tags_that_are_well_formed_by_themselves_stay() -> None:
    numbers = [0, 1, 2, 2, 3, 1, 3, 4, 0, 1]
    given = torch.full((len(numbers), len(NAMES)), 0.01).log()
    given[torch.arange(len(numbers)), numbers] = 0.0
    assert decode(given, torch.tensor([len(numbers)])).tolist() == [numbers]


def test_a_batch_without_words_has_no_tags() -> None:
    assert decode(torch.zeros(0, len(NAMES)), torch.tensor([0, 0])).shape == (2, 0)


def test_a_long_sentence_is_decoded_as_exactly_as_a_short_one() -> None:
    torch.manual_seed(0)
    given = scores(4)
    given[:, 2] += 1e-3  # a close call, which float32 would lose after thousands of words
    (alone,) = decode(given, torch.tensor([4])).tolist()
    before = torch.full((20000, len(NAMES)), -9.0)
    before[:, 0] = -5.0
    (both,) = decode(torch.cat([before, given]), torch.tensor([20004])).tolist()
    assert both[-4:] == alone
