"""Tokens of rows of any length go into one line and come back to their places."""

import pytest
import torch
from torch import Tensor

from loralight.acceleration.ragged import Ragged

LENGTHS = {"any": [3, 9, 2, 1, 9, 4], "equal": [5, 5, 5], "one row": [4]}


def mask_of(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("flipped", [False, True])
def test_padding_comes_back_as_zeros_and_tokens_as_they_were(lengths: list[int], flipped: bool) -> None:
    mask = mask_of(lengths).flip(1) if flipped else mask_of(lengths)
    padded = torch.randn(*mask.shape, 6)
    ragged = Ragged(mask)
    line = ragged.line_up(padded)
    assert line.shape == (1, sum(lengths), 6)
    assert torch.equal(ragged.pad(line), padded * mask[..., None])


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_a_group_holds_whole_rows_of_like_length(lengths: list[int]) -> None:
    mask = mask_of(lengths)
    numbers = torch.arange(mask.numel(), dtype=torch.float32).view(*mask.shape, 1)  # row and place of each token
    ragged = Ragged(mask)
    found = []
    for group, line in zip(ragged.groups, ragged.line_up(numbers)[0].split(ragged.sizes), strict=True):
        rectangle = group.pad(line[:, None])  # (rows, 1, longest, 1)
        assert torch.equal(group.line_up(rectangle.transpose(1, 2)), line[:, None])
        kept = torch.ones(group.shape, dtype=torch.bool) if group.mask is None else group.mask[:, 0, 0]
        assert (kept.sum(1) * 1.5 >= group.shape[1]).all()
        found += [row[real].tolist() for row, real in zip(rectangle[:, 0, :, 0], kept, strict=True)]
    assert sorted(found) == sorted(numbers[row, :length, 0].tolist() for row, length in enumerate(lengths))


def test_rows_of_one_length_need_no_mask() -> None:
    assert [group.mask for group in Ragged(mask_of([5, 5, 5])).groups] == [None]
