"""Sentences as windows that a model can take; each word is read in the window where it has most context.

A sentence longer than a window becomes several overlapping windows. A word is represented by its first sub-word.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypedDict

import torch
from tokenizers import decoders
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from loralight.errors import InputError
from loralight.models import check_length, load_tokenizer, tokenise

_SHARED = 32  # tokens, of windows of at least 128


class Windows(TypedDict):
    """A sentence's windows of token ids, and the window and position in which each word is read."""

    input_ids: list[list[int]]
    window: list[int]
    position: list[int]


class Encoder:
    """Makes windows of words.

    Args:
        checkpoint: the model whose tokenizer is used.
        max_length: tokens of a window, including the model's special tokens.
        stride: tokens that a window shares with the next. None: 32, or a quarter of a shorter window.

    Raises:
        InputError: the tokenizer cannot assign tokens to words (``E-TOKENIZER``), or ``max_length`` and ``stride`` do
            not fit (``E-SEQ-LEN``).
    """

    def __init__(self, *, checkpoint: str, max_length: int, stride: int | None) -> None:
        self.tokenizer = load_tokenizer(checkpoint)
        if not self.tokenizer.is_fast:
            raise InputError(
                "E-TOKENIZER",
                f"{checkpoint}: its tokenizer cannot tell which word a token is of; choose a model that "
                "has a fast one (tokenizer.json)",
            )
        check_length(max_length, checkpoint, self.tokenizer)
        # byte-level tokenizers know a word inside a sentence by the space before it
        self.lead = " " if isinstance(self.tokenizer.backend_tokenizer.decoder, decoders.ByteLevel) else ""
        self.before, self.after = _marks(self.tokenizer)
        self.size = max_length - len(self.before) - len(self.after)
        stride = min(_SHARED, max_length // 4) if stride is None else stride
        if not 0 <= stride < self.size:
            raise InputError(
                "E-SEQ-LEN",
                f"model.stride={stride}: windows of model.max_length={max_length} tokens can share 0 to "
                f"{self.size - 1} with the next",
            )
        self.step = self.size - stride
        self.padding = self.tokenizer.pad_token_id or 0
        self.num_unknown = 0  # words so far for which the tokenizer gave no token

    def __call__(self, sentences: Sequence[Sequence[str]]) -> list[Windows]:
        """The windows of sentences; a word for which the tokenizer gives no token is read as the unknown token."""
        pieces = self._pieces(sentences)
        for number, (words, (_, firsts)) in enumerate(zip(sentences, pieces, strict=True)):
            if len(firsts) < len(words):
                known = [word if place in firsts else self._unknown(word) for place, word in enumerate(words)]
                pieces[number] = self._pieces([known])[0]
                assert len(pieces[number][1]) == len(words)
                self.num_unknown += len(words) - len(firsts)
        return [self._cut(ids, list(firsts.values())) for ids, firsts in pieces]

    def _pieces(self, sentences: Sequence[Sequence[str]]) -> list[tuple[list[int], dict[int, int]]]:
        """The token ids of each sentence, and the position of each word's first token."""
        if not sentences:
            return []
        encoded = tokenise(
            self.tokenizer,
            [[self.lead + word for word in words] for words in sentences],
            is_split_into_words=True,
            add_special_tokens=False,
            verbose=False,  # about sentences longer than the model takes: they are cut below
        )
        pieces = []
        for encoding in encoded.encodings:
            firsts: dict[int, int] = {}
            for position, word in enumerate(encoding.word_ids):
                firsts.setdefault(word, position)
            pieces.append((encoding.ids, firsts))
        return pieces

    def _unknown(self, word: str) -> str:
        if self.tokenizer.unk_token is None:
            raise InputError("E-TOKENIZER", f"the model's tokenizer makes nothing of the word {word!r}; take it out")
        return str(self.tokenizer.unk_token)

    def _cut(self, ids: list[int], firsts: list[int]) -> Windows:
        starts = range(0, max(len(ids) - self.size, 0) + self.step, self.step)
        window = [self._best_window(first, len(ids), len(starts)) for first in firsts]
        return {
            "input_ids": [[*self.before, *ids[start : start + self.size], *self.after] for start in starts],
            "window": window,
            "position": [first - starts[w] + len(self.before) for first, w in zip(firsts, window, strict=True)],
        }

    def _best_window(self, token: int, length: int, num_windows: int) -> int:
        """The window whose nearer end is farthest from the token; ends of the sentence do not count."""

        def context(window: int) -> int:
            start = window * self.step
            before = token - start if start else length
            after = start + self.size - token if start + self.size < length else length
            return min(before, after)

        last = min(token // self.step, num_windows - 1)
        first = max(0, (token - self.size) // self.step + 1)
        return max(range(first, last + 1), key=context)


def join(rows: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Tensor]:
    """A batch of the windows of several sentences.

    Args:
        rows: as an `Encoder` makes them.
        padding: id of the token that pads shorter windows.

    Returns:
        input_ids, attention_mask (windows, tokens); window, position (words,), the place of each word; lengths
        (sentences,), in words.
    """
    windows = [torch.tensor(ids, dtype=torch.long) for row in rows for ids in row["input_ids"]]
    firsts = accumulate((len(row["input_ids"]) for row in rows[:-1]), initial=0)
    return {
        "input_ids": pad_sequence(windows, batch_first=True, padding_value=padding),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in windows], batch_first=True),
        "window": _flat([first + number for number in row["window"]] for row, first in zip(rows, firsts, strict=True)),
        "position": _flat(row["position"] for row in rows),
        "lengths": torch.tensor([len(row["window"]) for row in rows]),
    }


def _marks(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a model expects before and after a text, such as ``[CLS]`` and ``[SEP]``."""
    (encoding,) = tokenizer([["a"]], is_split_into_words=True).encodings
    inside = [position for position, word in enumerate(encoding.word_ids) if word is not None]
    return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]


def _flat(numbers: Iterable[Sequence[int]]) -> Tensor:
    return torch.tensor([number for some in numbers for number in some], dtype=torch.long)
