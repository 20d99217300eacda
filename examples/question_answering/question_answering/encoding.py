"""Questions with their texts as tokens, for training and for predictions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from loralight.models import tokenise


def encode(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], texts: Sequence[str], max_length: int
) -> dict[str, list[list[Any]]]:
    """Token ids, flags for tokens that an answer may contain, and the places of tokens in the text.

    A text that is too long loses its end. If the rest has no answer, the first token, which marks the beginning, is the
    answer.

    Returns:
        ``input_ids``; ``allowed``, 0 or 1; ``offsets``, (first character, end) of each token.
    """
    settings = {"truncation": "only_second", "max_length": max_length, "return_offsets_mapping": True}
    encoded = tokenise(tokenizer, list(questions), list(texts), **settings)
    allowed = [
        [int(at == 0 or part == 1) for at, part in enumerate(encoded.sequence_ids(row))]
        for row in range(len(questions))
    ]
    return {"input_ids": encoded["input_ids"], "allowed": allowed, "offsets": encoded["offset_mapping"]}


def padded(input_ids: Sequence[Sequence[int]], allowed: Sequence[Sequence[int]], padding: int) -> dict[str, Tensor]:
    """``input_ids``, ``allowed`` and ``attention_mask`` of padded rows, (rows, tokens) each."""

    def tensor(rows: Sequence[Sequence[int]], value: int) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

    masks = [[1] * len(ids) for ids in input_ids]
    return {"input_ids": tensor(input_ids, padding), "allowed": tensor(allowed, 0), "attention_mask": tensor(masks, 0)}


def span_of(allowed: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The first and last token of the characters from ``start`` to ``end``; (0, 0) if some of these are cut off."""
    inside = [at for at, place in enumerate(offsets) if at and allowed[at] and place[0] < end and place[1] > start]
    if not inside or offsets[inside[-1]][1] < end:
        return 0, 0
    return inside[0], inside[-1]
