"""Tokens of rows of any length go into one line and come back to their places."""

from collections.abc import Callable

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


def full(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= 0


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query - key).abs() <= 2


def of_even_rows(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) | (batch % 2 == 0)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("sees", [full, causal, near, of_even_rows])
def test_a_token_attends_to_those_that_it_sees_in_the_padded_batch(
    lengths: list[int], flipped: bool, sees: Callable[..., Tensor]
) -> None:
    mask = mask_of(lengths).flip(1) if flipped else mask_of(lengths)
    rows = Ragged(mask)
    seen = rows.attending(sees, rows.places, mask.shape[1])
    if sees in (full, causal):
        assert seen.is_plain and seen.is_causal is (sees is causal)
        return
    longest, places = mask.shape[1], rows.split(rows.places)
    for group, line in zip(seen.groups, places, strict=True):
        at = group.pad(line[:, None, None])[:, 0, :, 0]  # (rows, longest of the group)
        tokens = group.tokens()
        for row, own, is_token in zip(range(len(at)), at, tokens, strict=True):
            pairs = torch.cartesian_prod(own[is_token], own[is_token])
            wanted = sees(pairs[:, 0] // longest, 0, pairs[:, 0] % longest, pairs[:, 1] % longest)
            allowed = seen.is_causal, group.mask
            found = torch.ones(len(at[0]), len(at[0]), dtype=torch.bool)
            found = found.tril() if allowed[0] else found
            found = found & allowed[1][row, 0] if allowed[1] is not None and not allowed[0] else found
            assert torch.equal(found[is_token][:, is_token].flatten(), wanted)
            if group.mask is not None and not seen.is_causal:
                assert group.mask[row, 0].any(-1).all(), "padding attends to something, so its gradient is a number"


def test_a_row_with_a_gap_is_told_apart() -> None:
    assert Ragged(mask_of([3, 9])).begins_at_once and not Ragged(mask_of([3, 9]).flip(1)).begins_at_once
    assert not Ragged(torch.tensor([[True, False, True]])).begins_at_once
