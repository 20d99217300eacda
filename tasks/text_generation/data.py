"""Texts, prompts with completions, or chats, tokenised and packed into rows."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets import List as Items
from torch import Tensor, nn
from transformers import PreTrainedModel

from loralight.acceleration import keeps_apart
from loralight.data import (
    Document,
    Form,
    Origin,
    PackedRows,
    Readers,
    TaskData,
    UsualBatch,
    column_name,
    columns_of_form,
    cut_rows,
    digest_of,
    encode_rows,
    form_of,
    join_messages_,
    left_out_rows,
    pack,
    read_template,
    read_text_file,
    repeated_rows,
)
from loralight.errors import InputError
from loralight.models import check_causal, check_length, load_tokenizer

IGNORED = -100  # target of a token without a loss, as in PyTorch
_PART = 4000  # characters
_KINDS = {  # of rows, by the first column of their form
    "text": "texts",
    "prompt": "prompts with completions",
    "instruction": "instructions with answers",
    "messages": "chats",
}
_TEXT = Features({"text": Value("string")})
_ENCODED = Features(  # explicit, as there may be no row to infer them from
    {
        "input_ids": Items(Value("int32")),
        "targets": Items(Value("int32")),
        "length": Value("int32"),
        "row": Value("int64"),
        "cut": Value("bool"),
    }
)


def read_text(file: str, *, encoding: str | None = None) -> Dataset:
    """A text file, in parts of whole paragraphs and about 4,000 characters, each part as a separate text.

    A paragraph that is longer is divided after lines, or else after words.

    Raises:
        InputError: the file cannot be read as text (``E-DATA``).
    """
    paragraphs = re.split(r"(?<=\n)\n+", read_text_file(file, encoding))
    parts = [""]
    for paragraph in paragraphs:
        for number, piece in enumerate(_pieces(paragraph)):
            if parts[-1] and (number or len(parts[-1]) + len(piece) > _PART):
                parts.append("")
            parts[-1] += f"\n{piece}" if parts[-1] else piece
    return Dataset.from_dict({"text": [part for part in parts if part.strip()]}, features=_TEXT)


def _pieces(paragraph: str) -> Iterator[str]:
    start = 0
    while (end := start + _PART) < len(paragraph):
        cut = 1 + paragraph.rfind("\n", start, end) or 1 + paragraph.rfind(" ", start, end) or end  # 1 - 1: not found
        yield paragraph[start:cut]
        start = cut
    yield paragraph[start:]


class TextGenerationData(TaskData):
    """Rows of tokens with targets: the next token at each place that has a loss.

    The columns determine the form of the rows: chats (a column of messages), prompts with completions, instructions
    with answers, or plain texts. Several short documents are packed into a row of tokens. Positions start over with
    each document, by which transformers keeps their attention apart. Plain texts longer than a row are cut into several
    rows, each beginning with the last token of the row before.

    A batch holds input_ids and targets (batch, tokens), -100 where there is no loss, and position_ids (batch, tokens)
    if a row has several documents.

    Args:
        checkpoint: the model whose tokenizer encodes the texts.
        max_length: tokens per row; a longer chat or completion loses its end (and is counted).
        columns: names of the columns: ``messages``, ``prompt`` and ``completion``, ``instruction`` and ``output``,
            ``text``. The first form whose columns are in train is taken. Chats may have a column of ``tools``, and
            instructions one of ``input``.
        packed: whether several documents may share a row. None: they may if the model keeps them apart.
        join: the text between prompt and completion.
        chat_template: a chat template (Jinja), or a file with a template; else the tokenizer's own.
        loading: where the rows are, batch size, workers, seed, see `TaskData`.
    """

    readers: ClassVar[Readers] = {".txt": read_text, ".md": read_text}
    usual_batch = UsualBatch(least=1, most=8, steps=100)  # a row may hold a dozen documents: docs/recipes.md

    def __init__(
        self,
        *,
        checkpoint: str,
        columns: Mapping[str, str | int],
        max_length: int = 512,
        packed: bool | None = None,
        join: str = "\n",
        chat_template: str | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.checkpoint, self.max_length, self.packed = checkpoint, max_length, packed
        self.columns = {role: column_name(name, role, header=self.header) for role, name in columns.items()}
        self.join, self.chat_template = join, read_template(chat_template)
        self.rows: dict[str, Dataset] = {}
        self.documents: dict[str, Dataset] = {}
        self.counts: dict[str, dict[str, int]] = {}
        self._notes: list[str] = []
        self._prompts: dict[tuple[str, int], list[tuple[dict[str, Any], list[str]]]] = {}

    def load(self) -> dict[str, PackedRows]:
        rows = self.read_splits()
        join_messages_(rows, self.columns)
        columns = columns_of_form(rows, self.columns)
        check_causal(self.checkpoint)
        self.tokenizer = load_tokenizer(self.checkpoint)
        check_length(self.max_length, self.checkpoint, self.tokenizer)
        if self.max_length < 2:
            raise InputError("E-SEQ-LEN", f"model.max_length={self.max_length}: give at least 2, to learn what follows")
        self.form = form_of(self.tokenizer, columns, join=self.join, template=self.chat_template)
        self.rows = {split: part.select_columns(list(columns.values())) for split, part in rows.items()}
        return {split: self._pack(split, rows.origins[split]) for split in rows}

    def _pack(self, split: str, origin: Origin) -> PackedRows:
        encoded = encode_rows(
            self.rows[split], _encode, features=_ENCODED, form=self.form, origin=origin, max_length=self.max_length
        )
        lengths = list(encoded["length"])
        if not lengths:
            raise InputError(
                "E-SEQ-LEN",
                f"{split}: none of {len(self.rows[split])} rows has anything to learn: they are empty, or what is "
                f"learnt begins behind the first {self.max_length} tokens; then raise model.max_length",
            )
        self.documents[split] = encoded.select_columns(["input_ids", "targets", "length"])
        self.counts[split] = {
            "tokens": sum(lengths),
            "learnt": int((self._targets(split) != IGNORED).sum()),
            "cut": len({row for row, is_cut in zip(encoded["row"], encoded["cut"], strict=True) if is_cut}),
            "used": len(set(encoded["row"])),
        }
        alone = [[document] for document in range(len(lengths))]
        groups = alone if self.packed is False else pack(lengths, self.max_length)
        return PackedRows(self.documents[split], groups)

    def suit_(self, model: nn.Module) -> None:
        """Give each document its own row, if ``packed`` is None and the model does not keep documents apart."""
        is_shared = any(len(group) > 1 for rows in self.splits.values() for group in rows.groups)
        if self.packed is not None or not is_shared or not isinstance(model, PreTrainedModel) or keeps_apart(model):
            return
        self.packed = False
        self.splits = {
            split: PackedRows(rows.documents, [[document] for document in range(len(rows.documents))])
            for split, rows in self.splits.items()
        }
        self.choose_batch_size_()
        self._notes = [
            f"{type(model).__name__} lets documents that share a row see one another: each has a row of its own "
            "(data.packed=false)"
        ]

    def _targets(self, split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        chunks = self.documents[split].data.column("targets").chunks
        return np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        fill = self.tokenizer.pad_token_id
        fills = {"input_ids": self.tokenizer.eos_token_id if fill is None else fill, "targets": IGNORED}
        batch = {
            name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
            for name, value in fills.items()
        }
        if any(row["position_ids"].count(0) > 1 for row in rows):
            # positions of padding continue the last document, so that padding does not count as another document
            batch["position_ids"] = torch.tensor(
                [
                    row["position_ids"]
                    + [row["position_ids"][-1] + 1 + at for at in range(longest - len(row["position_ids"]))]
                    for row in rows
                ]
            )
        return batch

    def lengths(self, split: str) -> Sequence[int]:
        sizes = list(self.documents[split]["length"])
        return [sum(sizes[document] for document in group) for group in self.splits[split].groups]

    def identity(self) -> dict[str, Any]:
        # a loss per token can be compared on the same tokens, whichever rows they share
        asked = {split: digest_of(documents, documents["length"]) for split, documents in self.documents.items()}
        return {**super().identity(), "asked": asked}

    def model_arguments(self) -> dict[str, Any]:
        return {"columns": self.form.columns, "join": self.join, "chat_template": self.chat_template}

    def prompts(self, split: str, count: int) -> list[tuple[dict[str, Any], list[str]]]:
        """Up to ``count`` distinct prompts of a split, with the texts that follow each in the data."""
        if (split, count) not in self._prompts:
            found: dict[str, tuple[dict[str, Any], list[str]]] = {}
            for record, reference in filter(None, map(self.form.example, self.rows[split])):
                key = json.dumps(record)
                if key in found or len(found) < count:
                    found.setdefault(key, (record, []))[1].append(reference)
            self._prompts[split, count] = list(found.values())
        return self._prompts[split, count]

    def baseline(self, split: str) -> dict[str, float]:
        """The scores of a unigram model: predicting each token by its frequency in training."""
        train, targets = (part[part != IGNORED] for part in (self._targets("train"), self._targets(split)))
        counts = np.bincount(train, minlength=len(self.tokenizer))
        # the share of tokens seen once estimates that of new tokens (Good, 1953, doi.org/10.1093/biomet/40.3-4.237)
        new = ((counts == 1).sum() + 0.5) / (len(train) + 1)
        frequencies = np.where(counts, (1 - new) * counts / len(train), new / max((counts == 0).sum(), 1))
        loss = -float(np.log(frequencies[targets]).mean())
        accuracy = float((targets == counts.argmax()).mean())
        return {"loss": loss, "perplexity": float(np.exp(loss)), "token_accuracy": accuracy}

    def report(self) -> list[str]:
        kind = _KINDS[self.form.roles[0]]
        lines = []
        for split, rows in self.splits.items():
            counts, num_rows = self.counts[split], len(self.rows[split])
            notes = [f"{counts['cut']} cut at {self.max_length} tokens"] if counts["cut"] else []
            if not self.form.is_divisible and (texts := len(self.documents[split])) > counts["used"]:
                notes.append(f"{texts} texts, as the chat template drops parts of earlier answers, such as reasoning")
            if left := num_rows - counts["used"]:
                notes.append(f"{left} left out: nothing to learn within {self.max_length} tokens")
            learnt = "" if counts["learnt"] == counts["tokens"] else f", {counts['learnt']:,} of them learnt"
            lines.append(
                f"{split}: {num_rows} {kind}, {counts['tokens']:,} tokens{learnt}, in {len(rows)} rows of up to "
                f"{self.max_length}{''.join(f'; {note}' for note in notes)}"
            )
        return [*lines, *self._notes, *self.form.notes(), *self._cautions()]

    def _cautions(self) -> list[str]:
        num_rows = {split: len(rows) for split, rows in self.rows.items()}
        cut = {split: counts["cut"] for split, counts in self.counts.items()}
        left = {split: num_rows[split] - counts["used"] for split, counts in self.counts.items()}
        return [
            *cut_rows(cut, num_rows, max_length=self.max_length),
            *left_out_rows(left, num_rows, max_length=self.max_length),
            *repeated_rows(self._contents()),
        ]

    def _contents(self) -> dict[str, list[int]]:
        """Digests of the tokens of documents, by split."""
        chunks = {split: rows.data.column("input_ids").chunks for split, rows in self.documents.items()}
        return {
            split: [hash(tokens.tobytes()) for chunk in each for tokens in _divided(chunk)]
            for split, each in chunks.items()
        }


def _divided(lists: Any) -> list[np.ndarray[Any, Any]]:
    """The lists of an Arrow array as NumPy arrays; Python's lists would take a second for 20,000 documents."""
    ends = np.cumsum(lists.value_lengths().to_numpy())
    return np.split(lists.flatten().to_numpy(), ends[:-1])


def _encode(
    batch: Mapping[str, list[Any]], numbers: Sequence[int], *, form: Form, origin: Origin, max_length: int
) -> dict[str, list[Any]]:
    made: dict[str, list[Any]] = {name: [] for name in _ENCODED}
    encoded = form.encode(batch, [origin.row(number) for number in numbers])
    for number, documents in zip(numbers, encoded, strict=True):
        is_cut = not form.is_divisible and any(len(ids) > max_length for ids, _ in documents)
        for part, targets in _parts(documents, max_length, is_divisible=form.is_divisible):
            for name, value in zip(made, (part, targets, len(part), number, is_cut), strict=True):
                made[name].append(value)
    return made


def _parts(
    documents: Sequence[Document], max_length: int, *, is_divisible: bool
) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens and targets of those parts of documents that have something to learn."""
    for ids, learnt in documents:
        for start in _starts(len(ids), max_length) if is_divisible else [0]:
            part, marks = ids[start : start + max_length], learnt[start : start + max_length]
            targets = [token if mark else IGNORED for token, mark in zip(part[1:], marks[1:], strict=True)] + [IGNORED]
            if any(target != IGNORED for target in targets):
                yield part, targets


def _starts(length: int, size: int) -> Iterator[int]:
    """Starts of parts of ``size`` tokens, each at the last token of the part before, so that no target is lost."""
    return iter(range(0, max(length - 1, 1), size - 1))
