"""Pairs of texts with a number each, tokenised."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding

from loralight import TaskData
from loralight.data import check_columns
from loralight.models import load_tokenizer


class SentencePairsData(TaskData):
    """A batch: input_ids, attention_mask (batch, tokens); labels (batch,)."""

    def __init__(self, *, checkpoint: str, columns: Mapping[str, str], max_length: int = 128, **loading: Any) -> None:
        super().__init__(**loading)
        self.checkpoint, self.columns, self.max_length = checkpoint, columns, max_length

    def load(self) -> dict[str, Dataset]:
        first, second, score = (self.columns[role] for role in ("first", "second", "score"))
        tokenizer = load_tokenizer(self.checkpoint)
        self.pad = DataCollatorWithPadding(tokenizer)
        self.rows = self.read_splits()
        encoded = {}
        for split, rows in self.rows.items():
            check_columns(rows, (first, second, score), split)
            tokens = tokenizer(list(rows[first]), list(rows[second]), truncation=True, max_length=self.max_length)
            encoded[split] = Dataset.from_dict({**tokens, "labels": [float(value) for value in rows[score]]})
        return encoded

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return dict(self.pad(rows))

    def lengths(self, split: str) -> Sequence[int]:
        return [len(ids) for ids in self.splits[split]["input_ids"]]

    def model_arguments(self) -> dict[str, Any]:
        return {"mean_score": float(torch.tensor(self.splits["train"]["labels"]).mean())}

    def examples(self, count: int) -> list[tuple[Any, str]]:
        rows = self.rows["validation"].select(range(min(count, len(self.rows["validation"]))))
        first, second, score = (self.columns[role] for role in ("first", "second", "score"))
        return [({"first": row[first], "second": row[second]}, str(row[score])) for row in rows]
