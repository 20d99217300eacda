"""The answers that a finished run has kept, read from its folder as data only."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from loralight.errors import InputError
from loralight.reports.runs import FinishedRun, of_same_rows
from loralight.training.answers_file import FILE, MOST_BYTES, MOST_OF_THUMBNAIL, OF_VALIDATION
from loralight.untrusted import read_json_lines

Labels = frozenset[str]
_MOST_LABELS = 10_000
_JPEG = re.compile(r"/9j/[A-Za-z0-9+/]+={0,2}")  # the first three bytes of a JPEG, and further ones
_MOST_OF_JPEG = 4 * MOST_OF_THUMBNAIL // 3 + 4


class Entity(NamedTuple):
    """A part of a row's input: its type, its first word and the word after its last."""

    type: str
    start: int
    end: int


class Answer(NamedTuple):
    """A run's answer to a row.

    Args:
        given: a text or number, or a tuple of labels or of entities, sorted.
        right: the right answer, likewise.
        confidence: the model's probability of its answer.
        input: a text, or a list of words.
        thumbnail: the input as a JPEG in base64.
    """

    given: Any
    right: Any
    confidence: float | None
    input: str | list[str] | None
    thumbnail: str | None = None

    @property
    def error(self) -> float | None:
        """How far a number is from the right one; None of other answers, which are right or wrong."""
        is_measured = isinstance(self.given, float) and isinstance(self.right, float)
        return abs(self.given - self.right) if is_measured else None

    @property
    def counts(self) -> tuple[float, float]:
        """The row's part of a score, which is the sum of the first numbers over that of the second.

        It is an accuracy or F1; of numbers with a fraction the mean error, negative, so that a higher score is better.
        """
        if self.error is not None:
            return -self.error, 1.0
        if not isinstance(self.right, tuple):
            return float(self.given == self.right), 1.0
        return 2.0 * len(set(self.given) & set(self.right)), float(len(self.given) + len(self.right))

    @property
    def score(self) -> float:
        """How right the answer is, from 0 to 1; of numbers with a fraction the error, negative."""
        hits, of = self.counts
        return hits / of if of else 1.0


@dataclass(frozen=True, kw_only=True)
class RunAnswers:
    """The answers of a run to the rows of a split.

    Args:
        split: the split's name.
        identity: see `FinishedRun.identity`.
        kind: see `loralight.training.Answers`; ``text`` for texts that are only shown.
        labels: all labels, or the types of entities.
        num_rows: the split's number of rows, of which some may not have been kept.
        rows: answers by the number of the row.
    """

    split: str
    identity: Mapping[str, str]
    kind: str
    labels: list[str]
    num_rows: int
    rows: Mapping[int, Answer]

    def of_same_rows(self, other: "RunAnswers") -> bool:
        """Whether the answers of two runs can be compared row by row."""
        mine, theirs = ((one.split, one.kind, one.labels) for one in (self, other))
        return mine == theirs and of_same_rows(self.identity, other.identity)

    @property
    def measure(self) -> str:
        """The name of the score of `Answer.counts`."""
        if any(answer.error is not None for answer in self.rows.values()):
            return "mean error, negative"
        return "F1" if self.kind in ("labels", "entities") else "accuracy"


def read_answers(run: FinishedRun, split: str | None = None) -> RunAnswers | None:
    """The answers that a run has kept; None if it has kept none, as one of an earlier version.

    Args:
        run: the run.
        split: of the rows; if None, test if the run has it, else validation.

    Raises:
        InputError: the file is damaged, or not of this run (``E-RUN``).
    """
    of_validation = run.folder / OF_VALIDATION
    file = of_validation if split == "validation" and os.path.lexists(of_validation) else run.folder / FILE
    if not os.path.lexists(file):
        return None
    try:
        head, *lines = read_json_lines(file, MOST_BYTES)
        found = _checked(head, lines, run)
        return found if split in (None, found.split) else None
    except (OSError, ValueError) as error:
        raise InputError("E-RUN", f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error


def _checked(head: Mapping[str, Any], lines: list[dict[str, Any]], run: FinishedRun) -> RunAnswers:
    split, kind, labels = (head.get(name) for name in ("split", "kind", "labels"))
    if split not in ("validation", "test") or kind not in list(_READERS):
        raise ValueError(f"its first line names no split and kind of {', '.join(_READERS)}")
    if not isinstance(labels, list) or len(labels) > _MOST_LABELS or not all(isinstance(one, str) for one in labels):
        raise ValueError("its first line names no labels")
    identity = run.identity(split)
    if head.get("digest") not in identity.values():
        raise ValueError(f"it is of other {split} rows than the run")
    known = frozenset(labels)
    rows = {_number(line.get("row")): answer_of(line, kind, known) for line in lines}
    if len(rows) < len(lines):
        raise ValueError("a row is in it twice")
    num_rows = _number(head.get("rows"))
    return RunAnswers(split=split, identity=identity, kind=kind, labels=labels, num_rows=num_rows, rows=rows)


def answer_of(line: Mapping[str, Any], kind: str, labels: Labels) -> Answer:
    """The answer in a line, which has ``given``, ``right``, and perhaps ``confidence`` and ``input``.

    Args:
        line: may be a stranger's.
        kind: see `loralight.training.Answers`.
        labels: all labels, or the types of entities.

    Raises:
        ValueError: the line is not of this kind.
    """
    read: Callable[[Any, Labels], Any] = _READERS[kind]
    confidence, shown = line.get("confidence"), line.get("input")
    if confidence is not None and not (isinstance(confidence, int | float) and 0 <= confidence <= 1):
        raise ValueError("a confidence is no probability")
    if not isinstance(shown, str | list | None) or not (isinstance(shown, str) or _are_texts(shown or [])):
        raise ValueError("an input is neither a text nor a list of words")
    small = line.get("thumbnail")
    if small is not None and not (isinstance(small, str) and _JPEG.fullmatch(small) and len(small) <= _MOST_OF_JPEG):
        raise ValueError("a thumbnail is no small JPEG in base64")
    return Answer(read(line.get("given"), labels), read(line.get("right"), labels), confidence, shown, small)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is no number of a row")
    return value


def _label(value: Any, labels: Labels) -> str:
    if not isinstance(value, str) or value not in labels:
        raise ValueError(f"{str(value)[:40]!r} is none of its labels")
    return value


def _labels(value: Any, labels: Labels) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("an answer is no list of labels")
    return tuple(sorted({_label(one, labels) for one in value}))


def _entities(value: Any, labels: Labels) -> tuple[Entity, ...]:
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise ValueError("an answer is no list of entities")
    found = {
        Entity(_label(one.get("type"), labels), _number(one.get("start")), _number(one.get("end"))) for one in value
    }
    return tuple(sorted(found, key=lambda entity: (entity.start, entity.end, entity.type)))


def _plain(value: Any, _: Labels) -> str | int | float | None:
    if not isinstance(value, str | int | float | None):
        raise ValueError("an answer is neither a text nor a number")
    return value


_READERS: dict[str, Callable[[Any, Labels], Any]] = {
    "label": _label,
    "labels": _labels,
    "entities": _entities,
    "other": _plain,
    "text": _plain,
}
