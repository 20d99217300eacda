"""Pairs of a source and a target text, tokenised."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from loralight import TaskData
from loralight.data import check_columns
from loralight.models import load_tokenizer


class TextToTextData(TaskData):
    """A batch: input_ids, attention_mask (batch, tokens); labels (batch, tokens of the target), -100 for padding."""

    def __init__(self, *, checkpoint: str, columns: Mapping[str, str], max_length: int = 128, **loading: Any) -> None:
        super().__init__(**loading)
        self.checkpoint, self.columns, self.max_length = checkpoint, columns, max_length

    def load(self) -> dict[str, Dataset]:
        tokenizer = load_tokenizer(self.checkpoint)
        self.padding = tokenizer.pad_token_id
        self.rows, encoded = self.read_splits(), {}
        source, target = self.columns["source"], self.columns["target"]
        for split, rows in self.rows.items():
            check_columns(rows, (source, target), split)
            cut = {"truncation": True, "max_length": self.max_length}
            tokens = tokenizer(list(rows[source]), **cut)["input_ids"]
            labels = tokenizer(text_target=list(rows[target]), **cut)["input_ids"]
            encoded[split] = Dataset.from_dict({"input_ids": tokens, "labels": labels})
        return encoded

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        def padded(lists: list[list[int]], value: int) -> Tensor:
            return pad_sequence([torch.tensor(one) for one in lists], batch_first=True, padding_value=value)

        return {
            "input_ids": padded([row["input_ids"] for row in rows], self.padding),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": padded([row["labels"] for row in rows], -100),
        }

    def lengths(self, split: str) -> Sequence[int]:
        rows = self.splits[split]
        return [len(source) + len(target) for source, target in zip(rows["input_ids"], rows["labels"], strict=True)]

    def shown(self, split: str, row: int) -> str:
        return str(self.rows[split][row][self.columns["source"]])

    def baseline(self, split: str) -> dict[str, float]:
        """The score of copying the source."""
        rows = self.rows[split]
        pairs = zip(rows[self.columns["source"]], rows[self.columns["target"]], strict=True)
        return {"exact": sum(source == target for source, target in pairs) / len(rows)}

    def examples(self, count: int) -> list[tuple[Any, str]]:
        rows = self.rows["validation"].select(range(min(count, len(self.rows["validation"]))))
        return [(row[self.columns["source"]], row[self.columns["target"]]) for row in rows]
