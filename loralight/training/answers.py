"""The answers of a model to the rows that it is measured on, beside the right ones; a run keeps them for reports."""

import inspect
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning
import torch.distributed as dist
from torch import Tensor

from loralight.data import TaskData
from loralight.logs import logger
from loralight.training.answers_file import FILE, MOST_OF_THUMBNAIL, OF_VALIDATION, write

MOST_ROWS = 10_000
"""Rows of a split that are kept; of a longer split every second, third, ..."""
_MOST_LETTERS = 2000
_MOST_ITEMS = 500
_MOST_THUMBNAILS = 500  # a millisecond and 3 kB each
_MOST_CLASSES = 1000  # that are told apart by their numbers alone


class Answers(NamedTuple):
    """A model's answers to the rows of a batch, as plain data.

    Args:
        kind: ``label``, a text of ``labels``; ``labels``, a list of such texts; ``entities``, a list of mappings of
            ``type``, ``start`` and ``end`` (in words); or ``other``, any text or number.
        given: the answer to each row.
        right: the right answer to each row.
        labels: all labels, or the types of entities.
        confidences: the model's probability of each answer, if it has one.
    """

    kind: Literal["label", "labels", "entities", "other"]
    given: Sequence[Any]
    right: Sequence[Any]
    labels: Sequence[str] = ()
    confidences: Sequence[float] | None = None


def answers_of_labels(predictions: Tensor, targets: Tensor, labels: Sequence[str]) -> Answers:
    """The answers of a classifier.

    Args:
        predictions: logits (rows, labels); or, if a row may have several labels, numbers that are above one half for
            those that are chosen.
        targets: class numbers (rows,), or 0 and 1 (rows, labels).
        labels: names of the labels.
    """
    if targets.ndim == 1:
        confidences, numbers = predictions.float().softmax(-1).max(-1)
        given, right = ([labels[number] for number in chosen.tolist()] for chosen in (numbers, targets))
        return Answers("label", given, right, labels, confidences.tolist())
    given, right = ([_chosen(row, labels) for row in (each > 0.5).tolist()] for each in (predictions, targets))
    return Answers("labels", given, right, labels)


def answers_of_rows(task: Any, batch: Any, outputs: Mapping[str, Any], num_rows: int) -> Answers | None:
    """A task's answers to a batch; of a task that gives none, a number or a class for each row, if it has these.

    Args:
        task: an `AdapterTask`.
        batch: as its `step` takes it.
        outputs: with ``predictions``, ``targets`` and perhaps ``arguments``, as its `step` gives them.
        num_rows: the batch's.
    """
    found = own_answers(task, batch, outputs)
    return answers_by_shape(outputs["predictions"], outputs["targets"], num_rows) if found is None else found


def own_answers(task: Any, batch: Any, outputs: Mapping[str, Any]) -> Answers | None:
    """What a task's own `answers` says, which gets those ``arguments`` that it declares; see `answers_of_rows`."""
    declared = inspect.signature(task.answers).parameters
    named = {name: value for name, value in outputs.get("arguments", {}).items() if name in declared}
    found: Answers | None = task.answers(batch, outputs["predictions"], outputs["targets"], **named)
    return found


def answers_by_shape(predictions: Any, targets: Any, num_rows: int) -> Answers | None:
    """The answers that shapes tell.

    Args:
        predictions: as a task's `step` gives them: a number for each row, (rows,) or (rows, 1), or logits
            (rows, classes), whose classes are named by their numbers.
        targets: likewise: numbers of the same shape, or class numbers (rows,).
        num_rows: the batch's.

    Returns:
        None for predictions of any other shape, such as those of tokens.
    """
    if not isinstance(predictions, Tensor) or not isinstance(targets, Tensor):
        return None
    if not len(predictions) == len(targets) == num_rows or not predictions.is_floating_point():
        return None
    if targets.is_floating_point() and targets.shape == predictions.shape and targets.numel() == num_rows:
        given, right = ([_rounded(number) for number in one.flatten().tolist()] for one in (predictions, targets))
        return Answers("other", given, right)
    if targets.ndim == 1 and not targets.is_floating_point() and predictions.ndim == 2:
        num_classes = predictions.shape[1]
        if 1 < num_classes <= _MOST_CLASSES and int(targets.min()) >= 0 and int(targets.max()) < num_classes:
            return answers_of_labels(predictions, targets, [str(number) for number in range(num_classes)])
    return None


def _rounded(number: float) -> float | None:
    return float(f"{number:.6g}") if math.isfinite(number) else None


def _chosen(row: Sequence[bool], labels: Sequence[str]) -> list[str]:
    return [label for label, is_chosen in zip(labels, row, strict=True) if is_chosen]


class KeepAnswers(lightning.Callback):
    """Writes a task's answers to a split into a file, from the batches that measure it.

    The first line describes the file, each further line is a row. The input is kept of rows with a wrong answer alone:
    where two models differ, one of them is wrong. Every process keeps its own rows; the first writes those of all.

    Args:
        folder: the run's folder.
        split: ``validation`` or ``test``.
        is_judged: whether reports are on this split, so that inputs are kept too.
    """

    def __init__(self, folder: Path, split: str, *, is_judged: bool = True) -> None:
        self._file, self._split, self._is_judged = folder / (FILE if is_judged else OF_VALIDATION), split, is_judged
        self._head: dict[str, Any] = {}
        self._lines: dict[int, dict[str, Any]] = {}
        self._thumbnails = 0

    def on_validation_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *done: Any) -> None:
        self._add("validation", trainer, pl_module, *done)

    def on_test_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *done: Any) -> None:
        self._add("test", trainer, pl_module, *done)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._finish("validation", trainer)

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._finish("test", trainer)

    def _add(
        self, split: str, trainer: lightning.Trainer, task: Any, outputs: Any, batch: Any, number: int, *_: Any
    ) -> None:
        if split != self._split:
            return
        data = _data(trainer)
        rows, every = data.rows_of(split, number), -(-len(data.splits[split]) // MOST_ROWS)
        found = answers_of_rows(task, batch, outputs, len(rows))
        if found is None:
            return
        if not len(rows) == len(found.given) == len(found.right):
            logger.info("%s.answers: %d for %d rows, not kept", type(task).__name__, len(found.given), len(rows))
            return
        sure: Sequence[float | None] = found.confidences or [None] * len(rows)
        self._head = {"split": split, "kind": found.kind, "labels": list(found.labels)}
        for row, given, right, confidence in zip(rows, found.given, found.right, sure, strict=True):
            if row % every == 0:
                has_input = self._is_judged and given != right
                line = _line(row, given, right, confidence, data.shown(split, row) if has_input else None)
                self._lines[row] = line | self._thumbnail(split, row, data) if has_input else line

    def _thumbnail(self, split: str, row: int, data: TaskData) -> dict[str, str]:
        """The row's thumbnail as a part of its line, if it has one and there is room."""
        self._thumbnails += 1
        if self._thumbnails > _MOST_THUMBNAILS or (small := data.thumbnail(split, row)) is None:
            return {}
        return {"thumbnail": b64encode(small).decode()} if len(small) <= MOST_OF_THUMBNAIL else {}

    def _finish(self, split: str, trainer: lightning.Trainer) -> None:
        parts: list[Any] = [(self._head, self._lines)]
        if split != self._split:
            return
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, (self._head, self._lines))
        lines = {row: line for _, rows in parts for row, line in rows.items()}
        if lines and trainer.is_global_zero:
            head = next(head for head, _ in parts if head)
            write(self._file, {**head, **_of_split(trainer, split)}, [lines[row] for row in sorted(lines)])


def keep_texts(trainer: lightning.Trainer, split: str, texts: Sequence[Mapping[str, str]]) -> None:
    """Write texts that the trained model has written itself into ``predictions.jsonl``; the first process calls this.

    Args:
        trainer: of the run.
        split: the split of the inputs.
        texts: mappings of ``input``, ``given`` and ``right``: a prompt, the model's text and the data's.
    """
    head = {"split": split, "kind": "text", "labels": [], **_of_split(trainer, split)}
    lines = [{"row": row, **{name: _cut(text) for name, text in one.items()}} for row, one in enumerate(texts)]
    write(Path(trainer.default_root_dir) / FILE, head, lines)


def _of_split(trainer: lightning.Trainer, split: str) -> dict[str, Any]:
    data = _data(trainer)
    return {"rows": len(data.splits[split]), "digest": data.identity()["digests"][split]}


def _line(row: int, given: Any, right: Any, confidence: float | None, shown: Any) -> dict[str, Any]:
    line = {"row": row, "given": _cut(given), "right": _cut(right)}
    if confidence is not None and math.isfinite(confidence):
        line["confidence"] = round(confidence, 4)
    return line if shown is None else {**line, "input": _cut(shown)}


def _cut(value: Any) -> Any:
    """A text or a list of bounded length."""
    return (
        value[:_MOST_LETTERS] if isinstance(value, str) else value[:_MOST_ITEMS] if isinstance(value, list) else value
    )


def _data(trainer: lightning.Trainer) -> TaskData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, TaskData)
    return data
