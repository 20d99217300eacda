"""Sentences with their entities, as windows of tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor

from loralight.data import (
    FORMATS,
    Origin,
    Splits,
    TaskData,
    check_spelling,
    check_splits,
    count_classes,
    counts_line,
    few_rows,
    names_beside,
    repeated_rows,
    strangers,
)
from loralight.errors import InputError, did_you_mean

from .conll import read_conll
from .metrics import entity_metrics
from .sentences import Sentences, is_marked, read_spans, read_tagged, tags_in_order
from .tags import OUTSIDE, Span, is_tag, spans_of, tag_names, tags_of
from .windows import Encoder, join
from .word_tables import read_word_table

_NUMBERS = List(Value("int32"))
_MOST_DIGITS = 4  # of a tag's number: names become a list, which a file of a billion would fill
_ENCODED = Features({"input_ids": List(_NUMBERS), "window": _NUMBERS, "position": _NUMBERS, "labels": _NUMBERS})
_CHUNK = 1000  # sentences that are encoded at a time


class NerData(TaskData):
    """Rows of words with a tag each, or of a text with the places of its entities.

    A row is a sentence or a document, with all its windows. A batch holds input_ids and attention_mask (windows,
    tokens); window and position (words,), the place of each word's first sub-word; labels (words,), numbers of tags;
    lengths (sentences,), in words.

    Args:
        checkpoint: the model whose tokenizer encodes the words.
        max_length: tokens of a window; longer rows are read in several windows, and nothing is cut off.
        stride: tokens that a window shares with the next. None: 32, or a quarter of a shorter window.
        columns: names of the columns: ``words`` and ``tags``, or else ``text`` and ``entities``, a list of objects
            with ``start``, ``end`` (in characters) and ``label``. ``sentence``, if files have a word in each row, see
            `read_word_table`.
        labels: entity types in order; else the types of the data set's tag names, or those found in training, sorted.
        tag_names: names of integer tags, in order; else the data set's own names, see `names_beside`, or O, B-a, I-a,
            B-b, ... of ``labels``.
        loading: where the rows are, batch size, workers, seed, see `TaskData`.
    """

    readers = dict.fromkeys((".conll", ".iob", ".bio", ".txt"), read_conll)

    def __init__(
        self,
        *,
        checkpoint: str,
        columns: Mapping[str, str | None],
        max_length: int = 128,
        stride: int | None = None,
        labels: Sequence[str] | None = None,
        tag_names: Sequence[str] | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.checkpoint, self.max_length, self.stride = checkpoint, max_length, stride
        self.columns = {role: str(name) for role, name in columns.items() if name is not None}
        if "sentence" in self.columns:
            read = partial(read_word_table, columns=self.columns, header=self.header, delimiter=self.delimiter)
            self.read_splits = partial(self.read_splits, readers={**self.readers, **dict.fromkeys(FORMATS, read)})
        self.given_types = None if labels is None else [str(label) for label in labels]
        self.given_names = None if tag_names is None else list(tag_names)
        self.types: list[str] = []
        self.rows = Splits({}, {})
        self.spans: dict[str, list[list[Span]]] = {}
        self.notes: list[str] = []
        self.cautions: list[str] = []

    def load(self) -> dict[str, Dataset]:
        self.rows = self.read_splits()
        self._as_text = self._is_text(self.rows["train"])
        columns = self._used_columns()
        left_out = check_splits(self.rows, columns, labels=columns[1:])
        self._beside, told = self._find_names()
        sentences = {split: self._read(rows, self.rows.origins[split]) for split, rows in self.rows.items()}
        self.spans = {split: read.spans for split, read in sentences.items()}
        self.notes = [*left_out, *told, *(note for read in sentences.values() for note in read.notes)]
        self.cautions = repeated_rows({split: map(tuple, read.words) for split, read in sentences.items()})
        self.types = self._find_types()
        encoder = Encoder(checkpoint=self.checkpoint, max_length=self.max_length, stride=self.stride)
        self._padding = encoder.padding
        return {split: self._encode(encoder, read, split) for split, read in sentences.items()}

    def _is_text(self, rows: Dataset) -> bool:
        """Whether rows are texts with places of entities, rather than words with tags."""
        has = set(rows.column_names)
        names = self.columns
        if {names["words"], names["tags"]} <= has:
            return False
        if {names["text"], names["entities"]} <= has:
            return True
        raise InputError(
            "E-COLUMN",
            f"the train split has {', '.join(map(repr, rows.column_names))}; it needs {names['words']!r} and "
            f"{names['tags']!r} (words and their tags), or {names['text']!r} and {names['entities']!r} (a text and the "
            f"places of its entities). Say which with data.columns.<role>=<name>{self._hint(rows)}",
        )

    def _hint(self, rows: Dataset) -> str:
        """A hint for a column of entities under another name."""
        found = [name for name in rows.column_names if rows[name] and is_marked(rows[name][0])]
        return f". {found[0]!r} holds entities: data.columns.entities={found[0]}" if found else ""

    def _used_columns(self) -> list[str]:
        return [self.columns[role] for role in (("text", "entities") if self._as_text else ("words", "tags"))]

    def _read(self, rows: Dataset, origin: Origin) -> Sentences:
        first, second = self._used_columns()
        if self._as_text:
            return read_spans(rows, first, second, origin)
        return read_tagged(rows, first, second, origin, self._tag_names())

    def _find_names(self) -> tuple[dict[str, str] | None, list[str]]:
        """The names of integer tags that are in another file or column, and a line that tells where."""
        if self._as_text or self.given_names is not None:
            return None, []
        names, told = names_beside(self.rows, self._used_columns()[1:], is_name=is_tag)
        if names and max(map(len, names)) > _MOST_DIGITS:
            return None, []
        return names, told

    def _tag_names(self) -> list[str] | None:
        """The names of integer tags, for a column that does not name them."""
        if self.given_names is not None:
            return self.given_names
        if self._beside:
            return [self._beside.get(str(number), OUTSIDE) for number in range(1 + max(map(int, self._beside)))]
        return tag_names(self.given_types) if self.given_types else None

    def _find_types(self) -> list[str]:
        """The entity types in order, including those of all splits."""
        found = {split: set(chain(*each)) for split, each in self._labels().items()}
        # a limited train split may lack some
        seen = found["train"] if self.limit_rows is None else set().union(*found.values())
        named = self.given_types or self._named_types()
        if not named:
            counts = Counter(span.label for each in self.spans.values() for spans in each for span in spans)
            check_spelling(counts, self._used_columns()[1])
        types = named or sorted({*seen, *strangers(self._labels(), seen)})
        if not types or not found["train"]:
            raise InputError("E-LABELS", "there are no entities in train. Check data.columns and the data")
        if odd := [label for label, count in Counter(types).items() if count > 1 or label == OUTSIDE]:
            raise InputError(
                "E-LABELS", f"data.labels has {', '.join(map(repr, odd))}; give each entity type once, and no tags"
            )
        for split, labels in found.items():
            for label in sorted(labels - set(types)):
                row = next(row for row, spans in enumerate(self.spans[split]) if label in {s.label for s in spans})
                where = self.rows.origins[split].row(row)
                raise InputError(
                    "E-LABEL-RANGE",
                    f"{where}: the entity type {label!r} is not one of {', '.join(map(repr, types))}."
                    f"{did_you_mean(label, types)} data.labels names them all",
                )
        return types

    def _labels(self) -> dict[str, list[list[str]]]:
        """The types of each row's entities, by split."""
        return {split: [[span.label for span in spans] for spans in each] for split, each in self.spans.items()}

    def _named_types(self) -> list[str]:
        """The types in the names of tags, in their order."""
        if self._as_text:
            return []
        names = tags_in_order(self.rows["train"], self.columns["tags"]) or self._tag_names() or []
        return list(dict.fromkeys(span.label for name in names for span in spans_of([name.strip()])))

    def _encode(self, encoder: Encoder, sentences: Sentences, split: str) -> Dataset:
        number = {tag: place for place, tag in enumerate(tag_names(self.types))}
        labels = [
            [number[tag] for tag in tags_of(spans, len(words))]
            for words, spans in zip(sentences.words, sentences.spans, strict=True)
        ]
        chunks = (sentences.words[start : start + _CHUNK] for start in range(0, len(labels), _CHUNK))
        before = encoder.num_unknown
        windows = [one for chunk in chunks for one in encoder(chunk)]
        if unknown := encoder.num_unknown - before:
            self.notes.append(f"{split}: {unknown} words that the tokenizer makes nothing of are read as unknown ones")
        columns = {name: [one[name] for one in windows] for name in ("input_ids", "window", "position")}
        return Dataset.from_dict({**columns, "labels": labels}, features=_ENCODED)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        labels = torch.tensor([label for row in rows for label in row["labels"]], dtype=torch.long)
        return {**join(rows, self._padding), "labels": labels}

    def lengths(self, split: str) -> Sequence[int]:
        return [sum(map(len, windows)) for windows in self.splits[split]["input_ids"]]

    def model_arguments(self) -> dict[str, Any]:
        return {
            "labels": self.types,
            "label_counts": count_classes(chain(*self.splits["train"]["labels"]), len(tag_names(self.types))),
            "text_column": self.columns["text"],
            "words_column": self.columns["words"],
        }

    def examples(self, count: int) -> list[tuple[Any, str]]:
        split = "test" if "test" in self.rows else "validation"
        rows = self.rows[split].select(range(min(count, len(self.rows[split]))))
        column = self._used_columns()[0]
        read = self._read(rows, self.rows.origins[split])
        truths = (
            "; ".join(f"{span.label}: {' '.join(words[span.start : span.end])}" for span in spans)
            for words, spans in zip(read.words, read.spans, strict=True)
        )
        return [({column: given}, truth) for given, truth in zip(rows[column], truths, strict=True)]

    def shown(self, split: str, row: int) -> list[str]:
        return self._read(self.rows[split].select([row]), self.rows.origins[split]).words[0]

    def asked(self, split: str, row: int) -> list[Any]:
        source, _ = self._used_columns()
        return [self.rows[split].select_columns(source)[row][source], self.spans[split][row]]

    def baseline(self, split: str) -> dict[str, float]:
        """The scores of never predicting an entity."""
        return dict.fromkeys(map(str, entity_metrics(self.types)), 0.0)

    def report(self) -> list[str]:
        lines = [self._describe(split) for split in self.splits]
        counts = Counter(span.label for spans in self.spans["train"] for span in spans)
        of_types = [counts[label] for label in self.types]
        few = few_rows(self.types, of_types, of="entities in train")
        return [*lines, f"entities in train: {counts_line(self.types, of_types)}", *self.notes, *few, *self.cautions]

    def _describe(self, split: str) -> str:
        rows, lengths = self.splits[split], self.lengths(split)
        words = sum(map(len, rows["labels"])) / len(rows)
        parts = [len(windows) for windows in rows["input_ids"] if len(windows) > 1]
        cut = f", {len(parts)} longer than {self.max_length} tokens, read in {sum(parts)} windows" if parts else ""
        return (
            f"{split}: {len(rows)} rows, {sum(map(len, self.spans[split]))} entities; on average {words:.0f} words, "
            f"{sum(lengths) / len(rows):.0f} tokens{cut}"
        )
