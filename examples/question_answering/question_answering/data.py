"""Questions, texts, and the places of answers in these, as in SQuAD."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor

from loralight import TaskData
from loralight.data import Readers, Splits, check_columns
from loralight.errors import InputError
from loralight.models import check_length, load_tokenizer

from .encoding import encode, padded, span_of


def read_squad(file: str) -> Dataset:
    """A file in SQuAD's original format: articles with paragraphs with questions."""
    articles = json.loads(Path(file).read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    questions = [(paragraph["context"], asked) for paragraph in paragraphs for asked in paragraph["qas"]]
    rows = [{"context": text, "question": asked["question"], "answers": asked["answers"]} for text, asked in questions]
    return Dataset.from_list(rows)


class QuestionsData(TaskData):
    """A batch: input_ids, attention_mask, allowed (batch, tokens); labels (batch, 2): first and last token."""

    readers: ClassVar[Readers] = {".json": read_squad}

    def __init__(self, *, checkpoint: str, columns: Mapping[str, str], max_length: int = 256, **loading: Any) -> None:
        super().__init__(**loading)
        self.checkpoint, self.columns, self.max_length = checkpoint, columns, max_length

    def load(self) -> dict[str, Dataset]:
        tokenizer = load_tokenizer(self.checkpoint)
        check_length(self.max_length, self.checkpoint, tokenizer, pair=True)
        self.padding = tokenizer.pad_token_id or 0
        self.rows = self.read_splits()
        return {split: self._encoded(tokenizer, split) for split in self.rows}

    def _encoded(self, tokenizer: Any, split: str) -> Dataset:
        rows, (question, context, answers) = self.rows[split], self.names
        check_columns(rows, (question, context, answers), split)
        encoded = encode(tokenizer, rows[question], rows[context], self.max_length)
        places = [_place(given, self.rows, split, number) for number, given in enumerate(rows[answers])]
        labels = [
            span_of(allowed, offsets, *place)
            for allowed, offsets, place in zip(encoded["allowed"], encoded["offsets"], places, strict=True)
        ]
        return Dataset.from_dict({"input_ids": encoded["input_ids"], "allowed": encoded["allowed"], "labels": labels})

    @property
    def names(self) -> list[str]:
        """The columns of the question, its text and the answers."""
        return [self.columns[role] for role in ("question", "context", "answers")]

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = padded([row["input_ids"] for row in rows], [row["allowed"] for row in rows], self.padding)
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    def lengths(self, split: str) -> Sequence[int]:
        return [len(ids) for ids in self.splits[split]["input_ids"]]

    def shown(self, split: str, row: int) -> str:
        question, context, _ = self.names
        return f"{self.rows[split][row][question]}\n{self.rows[split][row][context]}"

    def report(self) -> list[str]:
        lines = super().report()
        for split, rows in self.splits.items():
            if cut := sum(label == [0, 0] for label in rows["labels"]):
                lines.append(f"{split}: {cut} questions without an answer in the first {self.max_length} tokens")
        return lines

    def examples(self, count: int) -> list[tuple[Any, str]]:
        rows = self.rows["validation"].select(range(min(count, len(self.rows["validation"]))))
        question, context, answers = self.names
        return [
            ({"question": row[question], "context": row[context]}, _first(row[answers])[0] or "no answer")
            for row in rows
        ]


def _first(answers: Any) -> tuple[str, int]:
    """The first answer and its place, from a list of answers or from separate lists of texts and places."""
    if isinstance(answers, Mapping):
        answers = [
            {"text": text, "answer_start": at}
            for text, at in zip(answers["text"], answers["answer_start"], strict=True)
        ]
    return (answers[0]["text"], answers[0]["answer_start"]) if answers else ("", 0)


def _place(answers: Any, rows: Splits, split: str, number: int) -> tuple[int, int]:
    try:
        text, start = _first(answers)
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            "E-LABEL", f"{rows.origins[split].row(number)}: {answers!r:.80} has no text and answer_start"
        ) from error
    return start, start + len(text)
