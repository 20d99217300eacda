"""Texts or pairs of texts with their labels, tokenised."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import torch
from datasets import ClassLabel, Dataset, Features, Value
from torch import Tensor
from transformers import DataCollatorWithPadding

from loralight.data import (
    LabelNames,
    Origin,
    Readers,
    TaskData,
    UsualBatch,
    always_the_commonest,
    always_the_same,
    are_lists,
    check_splits,
    column_name,
    count_classes,
    counts_line,
    cut_rows,
    encode_rows,
    few_rows,
    files_by_class,
    has_no_names,
    label_name,
    missing_hint,
    name_labels,
    odd_names,
    read_classes,
    read_text_file,
    repeated_rows,
    split_labels,
    uneven_rows,
)
from loralight.errors import InputError
from loralight.models import check_length, load_tokenizer, pad_

from .fasttext import read_fasttext
from .metrics import classification_metrics

_SEVERAL = (
    "Several labels a row are a list (JSONL, Parquet), columns of 0 and 1 (data.columns.label='[toxic, insult]'), or "
    "joined by what data.label_separator=\"','\" says"
)


def read_text_folder(folder: str, *, encoding: str | None = None) -> Dataset:
    """A folder with a folder of texts for each class, each a file that ends in ``.txt`` or has no ending.

    Raises:
        InputError: the folder has no folders with texts, or a file cannot be read (``E-DATA``).
    """
    files = files_by_class(folder, (".txt", ""), "text files (.txt)")
    return Dataset.from_dict(
        {
            "text": [read_text_file(str(file), encoding) for found in files.values() for file in found],
            "label": [number for number, found in enumerate(files.values()) for _ in found],
        },
        features=Features({"text": Value("string"), "label": ClassLabel(names=list(files))}),
    )


class TextClassificationData(TaskData):
    """Rows of a text or a pair of texts, with one label or several.

    A batch holds input_ids and attention_mask (batch, tokens), and labels: (batch,) class numbers, or
    (batch, labels) of 0 and 1 if a row can have several.

    Args:
        checkpoint: the model whose tokenizer encodes the texts.
        max_length: tokens per row; longer rows are cut (and counted).
        columns: names of the columns: ``text``, ``pair`` (None for single texts) and ``label`` (a name, or a list
            of names of 0/1 columns). In a CSV file without a header line, their places from 0.
        labels: label names in order; else the data set's own, or those found in the rows, sorted.
        label_names: names of the numbers in the label column, or a file with them, see `name_label_ids`; else
            names that lie beside the data, see `names_beside`.
        label_separator: the text between several labels in one cell, such as a comma.
        loading: where the rows are, batch size, workers, seed, see `TaskData`.
    """

    readers: ClassVar[Readers] = {"/": read_text_folder}
    usual_batch = UsualBatch(least=16, most=32, steps=400)  # docs/recipes.md

    def __init__(
        self,
        *,
        checkpoint: str,
        columns: Mapping[str, str | int | Sequence[str | int] | None],
        max_length: int = 128,
        labels: Sequence[str | float] | None = None,
        label_names: LabelNames | None = None,
        label_separator: str | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        given = (str(loading.get(name)) for name in ("path", "train", "validation", "test"))
        if self.delimiter is None and any(name.lower().endswith(".txt") for name in given):
            # files that are named alone: a folder of texts may have others, such as a list of words
            self.read_splits = partial(self.read_splits, readers={**self.readers, ".txt": read_fasttext})
        self.checkpoint, self.max_length = checkpoint, max_length
        roles = ["text", *(["pair"] if columns.get("pair") is not None else [])]
        self.text_columns = [column_name(columns.get(role), role, header=self.header) for role in roles]
        label = columns.get("label")
        each = label if isinstance(label, Sequence) and not isinstance(label, str) else [label]
        self.label_columns = [column_name(name, "label", header=self.header) for name in each]
        self.label_separator, self.label_names = label_separator, label_names
        self.given_labels = None if labels is None else [label_name(name) for name in labels]
        self.names: list[str] = []
        self.rows: Mapping[str, Dataset] = {}
        self.texts: dict[str, Dataset] = {}
        self.label_lists: dict[str, list[list[int]]] = {}
        self.num_truncated: dict[str, int] = {}
        self.contents: dict[str, list[int]] = {}  # digests of rows, by split
        self.notes: list[str] = []

    def load(self) -> dict[str, Dataset]:
        rows = self.read_splits()
        self.notes = check_splits(rows, [*self.text_columns, *self.label_columns], labels=self.label_columns)
        if self.label_separator is not None:
            for split, part in rows.items():
                rows[split] = split_labels(part, self.label_columns[0], self.label_separator)
        self.given_labels, told = name_labels(rows, self.label_columns, self.label_names, self.given_labels)
        self.notes += told
        self.multi_label = are_lists(rows["train"], self.label_columns)
        self.are_found = self.given_labels is None and has_no_names(rows["train"], self.label_columns)
        limited = self.limit_rows is not None
        self.names, self.label_lists = read_classes(
            rows, self.label_columns, given=self.given_labels, limited=limited, several=_SEVERAL
        )
        self.tokenizer = load_tokenizer(self.checkpoint)
        pad_(self.tokenizer, self.checkpoint)
        check_length(self.max_length, self.checkpoint, self.tokenizer, pair=len(self.text_columns) > 1)
        self.rows = rows
        self.texts = {split: part.select_columns(self.text_columns) for split, part in rows.items()}
        self._pad = DataCollatorWithPadding(self.tokenizer)
        return {split: self._encode(split, rows.origins[split]) for split in rows}

    def _encode(self, split: str, origin: Origin) -> Dataset:
        texts = [self.texts[split][column] for column in self.text_columns]
        for column, values in zip(self.text_columns, texts, strict=True):
            for row, value in enumerate(values):
                if not isinstance(value, str):
                    said = f"{origin.row(row)}, column {column!r}: {value!r} is not a text"
                    raise InputError("E-TEXT", said + missing_hint(value, column))
        self.contents[split] = [hash(tuple(text.strip() for text in row)) for row in zip(*texts, strict=True)]
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
        return {
            "labels": self.names,
            "label_counts": count_classes(chain(*self.label_lists["train"]), len(self.names)),
            "num_rows": len(self.label_lists["train"]),
            "multi_label": self.multi_label,
            "text_columns": self.text_columns,
        }

    def examples(self, count: int) -> list[tuple[Any, str]]:
        split = "test" if "test" in self.splits else "validation"
        rows = self.texts[split].select(range(min(count, len(self.texts[split]))))
        truths = (", ".join(self.names[number] for number in row) for row in self.label_lists[split])
        return list(zip(rows, truths, strict=False))

    def shown(self, split: str, row: int) -> str:
        return "\n".join(self.texts[split][row].values())

    def asked(self, split: str, row: int) -> list[Any]:
        # the whole row, so that a run on another column of it can be compared; as Arrow, which decodes no pictures
        (whole,) = self.rows[split].with_format("arrow")[row].to_pylist()
        return [whole, [self.names[number] for number in self.label_lists[split][row]]]

    def baseline(self, split: str) -> dict[str, float]:
        """The scores of always answering the most common training label, or labels."""
        metrics = classification_metrics(len(self.names), multi_label=self.multi_label)
        targets = torch.tensor(self._targets(split))
        if self.multi_label:
            return always_the_same(metrics, self.label_lists["train"], targets.long())
        return always_the_commonest(metrics, self.model_arguments()["label_counts"], targets)

    def monitored(self) -> str:
        """Accuracy; for several labels a row, mean average precision, which takes no threshold."""
        return "average_precision" if self.multi_label else "accuracy"

    def report(self) -> list[str]:
        lines = []
        for split, rows in self.splits.items():
            cut = self.num_truncated[split]
            truncated = f", {cut} ({cut / len(rows):.1%}) cut at {self.max_length} tokens" if cut else ""
            lines.append(
                f"{split}: {len(rows)} rows, {sum(self.lengths(split)) / len(rows):.0f} tokens on average{truncated}"
            )
        counts = self.model_arguments()["label_counts"]
        return [*lines, f"labels in train: {counts_line(self.names, counts)}", *self.notes, *self._cautions(counts)]

    def _cautions(self, counts: Sequence[int]) -> list[str]:
        uneven = [] if self.multi_label else uneven_rows(self.names, counts)
        odd = odd_names(self.names) if self.are_found else []
        num_rows = {split: len(rows) for split, rows in self.splits.items()}
        cut = cut_rows(self.num_truncated, num_rows, max_length=self.max_length)
        return [*few_rows(self.names, counts), *uneven, *odd, *cut, *repeated_rows(self.contents)]


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
