"""Rows of different lengths in one line of tokens, and back in a rectangle where an operation needs one."""

from collections.abc import Collection
from contextvars import ContextVar
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

_SPREAD = 1.5  # longest over shortest row of a group; smaller groups waste less, but each costs a call


class Group(NamedTuple):
    """Rows of similar length, one after the other in the line of tokens.

    Args:
        slots: where each token lies in the flattened rectangle (rows * longest,): (tokens,).
        mask: which places of the rectangle are tokens, (rows, 1, 1, longest); None if all are.
        shape: rows and longest.
    """

    slots: Tensor
    mask: Tensor | None
    shape: tuple[int, int]

    def pad(self, tokens: Tensor) -> Tensor:
        """From (tokens, heads, width) to (rows, heads, longest, width), with zeros at padding."""
        rows, longest = self.shape
        if self.mask is not None:
            tokens = tokens.new_zeros(rows * longest, *tokens.shape[1:]).index_copy(0, self.slots, tokens)
        return tokens.view(rows, longest, *tokens.shape[1:]).transpose(1, 2)

    def line_up(self, rectangle: Tensor) -> Tensor:
        """From (rows, longest, heads, width) to (tokens, heads, width)."""
        tokens = rectangle.flatten(0, 1)
        return tokens if self.mask is None else tokens.index_select(0, self.slots)


class Ragged:
    """The tokens of a padded batch, rows from long to short.

    Args:
        mask: True at tokens, (batch, longest); each row has at least one.
        is_causal: whether a token attends only to earlier tokens and itself; padding is then on the right.

    Attributes:
        lengths: of the rows, in the order of the line.
        offsets: where each row begins in the line, and where the last row ends, (batch + 1,), as kernels take it.
        firsts: where each row begins in the line, (batch,), as an index.
    """

    def __init__(self, mask: Tensor, *, is_causal: bool = False) -> None:
        self.shape, self.is_causal = mask.shape, is_causal
        lengths = mask.sum(1)
        order = lengths.argsort(descending=True, stable=True)
        self._lengths = lengths[order]
        self.lengths: list[int] = self._lengths.tolist()  # a GPU waits here
        self.offsets = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=mask.device)
        self.firsts = self.offsets[:-1].long()
        self.places = (order.unsqueeze(1) * mask.shape[1] + torch.arange(mask.shape[1], device=mask.device))[
            mask[order]
        ]

    @cached_property
    def groups(self) -> list[Group]:
        """Groups of rows of similar length, for an attention that takes rectangles.

        On a CPU, groups cut the cost of attention's padding to a half or less. On other devices all rows of a padded
        batch are one group, as a call costs more than it saves. Documents that shared a row are grouped on every
        device: they were never padded to the longest.
        """
        counts = self.lengths
        is_one = self._lengths.device.type != "cpu" and not self.is_causal
        bounds = [0, len(counts)] if is_one else _bounds(counts)
        return [_group(self._lengths[start:end], counts[start]) for start, end in pairwise(bounds)]

    @property
    def sizes(self) -> list[int]:
        """Tokens of each group."""
        return [len(group.slots) for group in self.groups]

    def line_up(self, padded: Tensor) -> Tensor:
        """From (batch, longest, width) to (1, tokens, width)."""
        return padded.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def pad(self, tokens: Tensor) -> Tensor:
        """From (1, tokens, width) to (batch, longest, width), with zeros at padding."""
        padded = tokens.new_zeros(self.shape.numel(), tokens.shape[-1])
        return padded.index_copy(0, self.places, tokens.squeeze(0)).view(*self.shape, -1)

    def pad_firsts(self, tokens: Tensor) -> Tensor:
        """From the first tokens (1, batch, width) to (batch, longest, width), with NaN where nothing was computed."""
        padded = tokens.new_full((self.shape.numel(), tokens.shape[-1]), torch.nan)
        return padded.index_copy(0, self.places[self.firsts], tokens.squeeze(0)).view(*self.shape, -1)


class AllTokens(NamedTuple):
    """All tokens of a block that is given only the first token of each row; keys and values are computed from them.

    Args:
        rows: the rows in which the tokens lie.
        layers: the layers of keys and values.
        states: of all tokens (1, tokens, width).
        made: keys and values (1, tokens, heads * width) on their way to an attention with fewer queries.
    """

    rows: Ragged
    layers: Collection[nn.Module]
    states: Tensor
    made: list[Tensor]


ALL_TOKENS: ContextVar[AllTokens | None] = ContextVar("all_tokens", default=None)
"""All tokens of the block that this thread is in."""


def _bounds(counts: list[int]) -> list[int]:
    """Where groups begin and end among rows sorted from long to short."""
    bounds = [0]
    for number, count in enumerate(counts):
        if count * _SPREAD < counts[bounds[-1]]:
            bounds.append(number)
    return [*bounds, len(counts)]


def _group(lengths: Tensor, longest: int) -> Group:
    mask = torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)
    slots = mask.flatten().nonzero().squeeze(1)
    is_full = len(slots) == mask.numel()
    return Group(slots, None if is_full else mask[:, None, None, :], (len(lengths), longest))
