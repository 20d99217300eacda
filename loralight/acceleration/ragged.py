"""Rows of different lengths in one line of tokens, and back in a rectangle where an operation needs one."""

import copy
from collections.abc import Callable, Collection, Sequence
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
        slots: where each token lies in the flattened rectangle (rows * longest,): (tokens,); None if it has no padding.
        mask: which places a place attends to, (rows, 1, 1 or longest, longest); None if to all.
        shape: rows and longest.
        size: number of tokens.
    """

    slots: Tensor | None
    mask: Tensor | None
    shape: tuple[int, int]
    size: int

    def pad(self, tokens: Tensor) -> Tensor:
        """From (tokens, heads, width) to (rows, heads, longest, width), with zeros at padding."""
        rows, longest = self.shape
        if self.slots is not None:
            tokens = tokens.new_zeros(rows * longest, *tokens.shape[1:]).index_copy(0, self.slots, tokens)
        return tokens.view(rows, longest, *tokens.shape[1:]).transpose(1, 2)

    def line_up(self, rectangle: Tensor) -> Tensor:
        """From (rows, longest, heads, width) to (tokens, heads, width)."""
        tokens = rectangle.flatten(0, 1)
        return tokens if self.slots is None else tokens.index_select(0, self.slots)

    def attended(self, scores: Tensor, value: Tensor, dropout: Callable[[Tensor], Tensor]) -> Tensor:
        """The sums (tokens, heads, width) of values, by scores (rows, heads, longest, longest).

        Args:
            scores: before their softmax and without a mask.
            value: (rows, heads, longest, width).
            dropout: for what the softmax gives.
        """
        scores = scores if self.mask is None else scores.masked_fill(~self.mask, -torch.inf)
        return self.line_up((dropout(scores.softmax(-1)) @ value).transpose(1, 2))

    def tokens(self) -> Tensor:
        """Which places of the rectangle are tokens, (rows, longest)."""
        rows, longest = self.shape
        device = None if self.slots is None else self.slots.device
        found = torch.full((rows * longest,), self.slots is None, device=device)
        return (found if self.slots is None else found.index_fill(0, self.slots, True)).view(rows, longest)


class Ragged:
    """The tokens of a padded batch, rows from long to short.

    Args:
        mask: True at tokens, (batch, longest); each row has at least one.
        is_causal: whether a token attends only to earlier tokens and itself; padding is then on the right.

    Attributes:
        lengths: of the rows, in the order of the line.
        offsets: where each row begins in the line, and where the last row ends, (batch + 1,), as kernels take it.
        firsts: where each row begins in the line, (batch,), as an index.
        source: the mask.
        is_plain: whether a token attends to the whole row, or to all that is earlier.
    """

    def __init__(self, mask: Tensor, *, is_causal: bool = False) -> None:
        self.source, self.shape, self.is_causal, self.is_plain = mask, mask.shape, is_causal, True
        self._lined: dict[int, tuple[Tensor, Tensor]] = {}
        mask = mask.bool()
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
        return [group.size for group in self.groups]

    def split(self, tokens: Tensor) -> Sequence[Tensor]:
        """Each group's part of (tokens, ...); a split into one would cost a pass of zeros in the backward pass."""
        return [tokens] if len(self.groups) == 1 else torch.split(tokens, self.sizes)

    def attended(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scores: Callable[[Tensor, Tensor], Tensor],
        dropout: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Attention within each row, (tokens, heads, width).

        Args:
            query, key, value: of all tokens, (tokens, heads, width).
            scores: gives the scores (rows, heads, longest, longest) of queries and keys (rows, heads, longest, width),
                before the mask and the softmax.
            dropout: for what the softmax gives.
        """
        parts = zip(*map(self.split, (query, key, value)), strict=True)
        return torch.cat(
            [
                group.attended(scores(group.pad(q), group.pad(k)), group.pad(v), dropout)
                for group, (q, k, v) in zip(self.groups, parts, strict=True)
            ]
        )

    def dim(self) -> int:
        """As that of a mask with a place for each pair of tokens; DeBERTa asks for it, and for the sum."""
        return 4

    def sum(self, _: int) -> Tensor:
        """The padded batch's own mask."""
        return self.source

    @cached_property
    def columns(self) -> Tensor:
        """The column of each token in the padded batch, (tokens,)."""
        return self.places % self.shape[1]

    @cached_property
    def begins_at_once(self) -> bool:
        """Whether padding comes after the tokens of each row, and none between them."""
        return bool((self.source[:, 1:] <= self.source[:, :-1]).all())

    @cached_property
    def causal(self) -> "Ragged":
        """These rows, in which a token attends only to earlier tokens and itself."""
        _ = self.groups  # which are shared
        rows = copy.copy(self)
        rows.is_causal = True
        return rows

    def attending(self, sees: Callable[..., Tensor], places: Tensor, width: int) -> "Ragged":
        """These rows, in which a token attends to those of its row that ``sees`` lets it.

        Args:
            sees: transformers' function of batch, head, query and key, which are numbers in the model's own batch.
            places: where each token lies in that batch, flattened: (tokens,).
            width: of that batch.
        """
        lines = zip(self.groups, self.split(places), strict=True)
        pairs = [_pairs(group, line, sees, width) for group, line in lines]
        if all(bool((seen | ~are_tokens).all()) for seen, are_tokens in pairs):
            return self
        if all(_is_causal(seen, are_tokens) for seen, are_tokens in pairs):
            return self.causal
        rows = copy.copy(self)
        rows.is_causal = rows.is_plain = False
        # a place of padding attends to all: to none, its gradient would be no number
        masks = [seen & are_tokens | ~are_tokens.diagonal(dim1=-2, dim2=-1)[..., None] for seen, are_tokens in pairs]
        rows.groups = [group._replace(mask=mask) for group, mask in zip(self.groups, masks, strict=True)]
        return rows

    def line_up(self, padded: Tensor) -> Tensor:
        """From (batch, longest, width) to (1, tokens, width)."""
        return padded.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def line_up_columns(self, shared: Tensor, axis: int) -> Tensor:
        """From (..., longest, ...), which all rows share, to (..., tokens, ...); computed once for all blocks."""
        if (known := self._lined.get(id(shared))) is not None:
            return known[1]
        lined = shared.index_select(axis, self.columns)
        if not shared.requires_grad:  # a recomputed block would not find its graph
            self._lined[id(shared)] = shared, lined
        return lined

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
    if len(slots) == mask.numel():
        return Group(None, None, (len(lengths), longest), len(slots))
    return Group(slots, mask[:, None, None, :], (len(lengths), longest), len(slots))


def _pairs(group: Group, places: Tensor, sees: Callable[..., Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Which places of a rectangle see which, and which pairs are tokens, (rows, 1, longest, longest)."""
    at = group.pad(places[:, None, None])  # (rows, 1, longest, 1)
    row, column = at[:, :, :1] // width, at % width
    tokens = group.tokens().to(places.device)
    are_tokens = (tokens[:, :, None] & tokens[:, None, :]).unsqueeze(1)
    seen = sees(row, torch.zeros_like(row), column, column.transpose(-1, -2))
    return seen.expand_as(are_tokens), are_tokens


def _is_causal(seen: Tensor, are_tokens: Tensor) -> bool:
    """Whether each token sees all earlier ones, itself and no others."""
    return bool(((seen == torch.ones_like(seen).tril()) | ~are_tokens).all())
