"""Texts or pairs of texts with their labels, tokenised."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding

from loralight.data import TaskData
from loralight.encoding import encode_rows
from loralight.errors import InputError
from loralight.labels import are_lists, encode_labels, is_hidden, label_names, read_labels
from loralight.origin import Origin
from loralight.pretrained import check_length, load_tokenizer, pad_
from loralight.splits import check_columns

from .metrics import classification_metrics


class TextClassificationData(TaskData):
    """Rows of one text, or a pair, and one label or several.

    A batch holds input_ids and attention_mask (batch, tokens), and labels: (batch,) class numbers, or
    (batch, labels) of 0 and 1 if a row can have several.

    Args:
        checkpoint: the model whose tokenizer encodes the texts.
        max_length: tokens per row, of which more are cut off (and counted).
        columns: names of the columns: ``text``, ``pair`` (None for single texts) and ``label`` (a name, or a list
            of names of 0/1 columns).
        labels: label names in order; else the data set's own, or those found in training, sorted.
        loading: where the rows are, batch size, workers, seed, see `TaskData`.
    """

    def __init__(
        self,
        *,
        checkpoint: str,
        columns: Mapping[str, Any],
        max_length: int = 128,
        labels: Sequence[str] | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.checkpoint, self.max_length = checkpoint, max_length
        self.text_columns = [columns["text"], *([columns["pair"]] if columns.get("pair") else [])]
        label = columns["label"]
        self.label_columns = [label] if isinstance(label, str) else list(label)
        self.given_labels = None if labels is None else [str(name) for name in labels]
        self.names: list[str] = []
        self.texts: dict[str, Dataset] = {}
        self.label_lists: dict[str, list[list[int]]] = {}
        self.num_truncated: dict[str, int] = {}
        self.notes: list[str] = []

    def load(self) -> dict[str, Dataset]:
        rows = self.read_splits()
        for split, part in rows.items():
            check_columns(part, [*self.text_columns, *self.label_columns], split)
        if "test" in rows and len(self.label_columns) == 1 and is_hidden(rows["test"], self.label_columns[0]):
            del rows["test"]
            self.notes.append("test: left out, its labels are hidden (all -1)")
        self.multi_label = are_lists(rows["train"], self.label_columns)
        labels = {
            split: read_labels(part, self.label_columns, rows.origins[split], self.given_labels)
            for split, part in rows.items()
        }
        # what a limit leaves of train may lack some
        seen = labels["train"] if self.limit_rows is None else [row for part in labels.values() for row in part]
        self.names = self.given_labels or label_names(rows["train"], self.label_columns, seen)
        if len(self.names) < 2:
            raise InputError(
                "E-LABELS",
                f"the only label in train is {self.names}; a classifier needs two. Check data.columns",
            )
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise InputError("E-LABELS", f"data.labels names {', '.join(map(repr, twice))} twice")
        self.label_lists = {
            split: encode_labels(part, self.names, rows.origins[split]) for split, part in labels.items()
        }
        self.tokenizer = load_tokenizer(self.checkpoint)
        pad_(self.tokenizer, self.checkpoint)
        check_length(self.max_length, self.checkpoint, self.tokenizer, pair=len(self.text_columns) > 1)
        self.texts = {split: part.select_columns(self.text_columns) for split, part in rows.items()}
        self._pad = DataCollatorWithPadding(self.tokenizer)
        return {split: self._encode(split, rows.origins[split]) for split in rows}

    def _encode(self, split: str, origin: Origin) -> Dataset:
        texts = [self.texts[split][column] for column in self.text_columns]
        for column, values in zip(self.text_columns, texts, strict=True):
            for row, value in enumerate(values):
                if not isinstance(value, str):
                    raise InputError("E-TEXT", f"{origin.row(row)}, column {column!r}: {value!r} is not a text")
        encoded = encode_rows(
            self.texts[split],
            _tokenize,
            tokenizer=self.tokenizer,
            columns=self.text_columns,
            max_length=self.max_length,
        )
        self.num_truncated[split] = sum(encoded["truncated"])
        return encoded.remove_columns("truncated").add_column("labels", self._targets(split))

    def _targets(self, split: str) -> list[Any]:
        if not self.multi_label:
            return [row[0] for row in self.label_lists[split]]
        return [[float(number in row) for number in range(len(self.names))] for row in self.label_lists[split]]

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return dict(self._pad(rows))

    def lengths(self, split: str) -> Sequence[int]:
        return [len(ids) for ids in self.splits[split]["input_ids"]]

    def model_arguments(self) -> dict[str, Any]:
        counts = Counter(number for row in self.label_lists["train"] for number in row)
        return {
            "labels": self.names,
            "label_counts": [counts[number] for number in range(len(self.names))],
            "multi_label": self.multi_label,
            "text_columns": self.text_columns,
        }

    def examples(self, count: int) -> list[tuple[Any, str]]:
        split = "test" if "test" in self.splits else "validation"
        rows = self.texts[split].select(range(min(count, len(self.texts[split]))))
        truths = (", ".join(self.names[number] for number in row) for row in self.label_lists[split])
        return list(zip(rows, truths, strict=False))

    def baseline(self, split: str) -> dict[str, float]:
        """The scores of always answering the commonest training label."""
        if self.multi_label:
            return {}
        metrics = classification_metrics(len(self.names), multi_label=False)
        targets = torch.tensor(self._targets(split))
        counts = self.model_arguments()["label_counts"]
        scores = metrics(torch.full_like(targets, counts.index(max(counts))), targets)
        return {
            "accuracy": float(scores["accuracy"]),
            "f1": float(scores["f1"]),
            "mcc": 0.0,
        }  # no correlation with a constant

    def report(self) -> list[str]:
        lines = []
        for split, rows in self.splits.items():
            cut = self.num_truncated[split]
            truncated = f", {cut} ({cut / len(rows):.1%}) cut at {self.max_length} tokens" if cut else ""
            lines.append(
                f"{split}: {len(rows)} rows, {sum(self.lengths(split)) / len(rows):.0f} tokens on average{truncated}"
            )
        counts = self.model_arguments()["label_counts"]
        shown = [f"{name} {count}" for name, count in zip(self.names, counts, strict=True)]
        return [*lines, f"labels in train: {', '.join(shown[:10])}{', ...' if len(shown) > 10 else ''}", *self.notes]


def _tokenize(
    batch: Mapping[str, list[str]], _: Sequence[int], *, tokenizer: Any, columns: list[str], max_length: int
) -> dict[str, Any]:
    encoded = tokenizer(*(batch[column] for column in columns), truncation=True, max_length=max_length)
    cut = (
        [bool(row.overflowing) for row in encoded.encodings]
        if encoded.is_fast
        else [len(ids) == max_length for ids in encoded["input_ids"]]
    )
    return {**encoded, "truncated": cut}
