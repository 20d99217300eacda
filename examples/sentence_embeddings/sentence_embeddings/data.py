"""Pairs of texts that mean the same, tokenised."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding

from loralight import TaskData
from loralight.data import check_columns
from loralight.models import load_tokenizer


class TextPairsData(TaskData):
    """A batch: input_ids, attention_mask (2 * pairs, tokens), the first texts of all pairs and then the second."""

    def __init__(self, *, checkpoint: str, columns: Mapping[str, str], max_length: int = 64, **loading: Any) -> None:
        super().__init__(**loading)
        self.checkpoint, self.columns, self.max_length = checkpoint, columns, max_length

    def load(self) -> dict[str, Dataset]:
        tokenizer = load_tokenizer(self.checkpoint)
        self.pad = DataCollatorWithPadding(tokenizer)
        self.rows, encoded = self.read_splits(), {}
        for split, rows in self.rows.items():
            names = [self.columns[side] for side in ("first", "second")]
            check_columns(rows, names, split)
            texts = [tokenizer(list(rows[name]), truncation=True, max_length=self.max_length) for name in names]
            encoded[split] = Dataset.from_dict({"first": texts[0]["input_ids"], "second": texts[1]["input_ids"]})
        return encoded

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return dict(self.pad([{"input_ids": row[side]} for side in ("first", "second") for row in rows]))

    def lengths(self, split: str) -> Sequence[int]:
        rows = self.splits[split]
        return [max(len(first), len(second)) for first, second in zip(rows["first"], rows["second"], strict=True)]

    def baseline(self, split: str) -> dict[str, float]:
        return {"recall_at_1": 1 / len(self.splits[split])}  # by chance

    def report(self) -> list[str]:
        texts = list(self.rows["train"][self.columns["second"]])
        twice = len(texts) - len(set(texts))
        caution = [f"{twice} second texts of train are there already: as negatives they are wrong"] if twice else []
        return [*super().report(), *caution]

    def examples(self, count: int) -> list[tuple[Any, str]]:
        rows = self.rows["validation"].select(range(min(count, len(self.rows["validation"]))))
        return [(row[self.columns["first"]], f"like: {row[self.columns['second']]}") for row in rows]
