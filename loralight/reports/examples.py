"""The rows on which groups of runs differ, and texts that they wrote to the same prompts, for people to read."""

from collections.abc import Sequence
from typing import NamedTuple

from loralight.reports.answers import Answer, Entity
from loralight.reports.row_by_row import OfGroup, RowByRow

_MOST = 30  # examples
_LETTERS = 600  # of an input or an answer
_MOST_GROUPS = 12  # named at an answer


class Given(NamedTuple):
    """An answer to a row.

    Args:
        text: the answer, for people.
        mark: whether it is the right one, or how far from it.
        by: the groups that gave it, with the share of their seeds, and their mean confidence.
    """

    text: str
    mark: str
    by: Sequence[str]


class Example(NamedTuple):
    """A row, and what was answered.

    Args:
        name: such as ``test row 7``, counted from 0.
        input: the row's beginning and end, if it was kept.
        right: the right answer.
        answers: the best ones first.
        thumbnail: the input as a JPEG in base64, if it was kept.
    """

    name: str
    input: str
    right: str
    answers: Sequence[Given]
    thumbnail: str | None = None


def shown(words: str | list[str] | None) -> str:
    """An input as people read it, of bounded length."""
    return _cut(" ".join(words) if isinstance(words, list) else words or "")


def examples(found: RowByRow) -> list[Example]:
    """The rows that some groups get right and others wrong, the most telling first; of texts those that all wrote.

    A row tells the more, the farther apart the groups' mean scores are, and then the surer they are of their answers.
    """
    if not found.groups or (len(found.groups) < 2 and found.kept.kind != "text"):
        return []
    common = sorted(set.intersection(*(set(one.answers) for one in found.groups)))
    if found.kept.kind == "text":
        return [_example(found, row) for row in common[:_MOST]]
    ranks = {row: _telling([one.answers[row] for one in found.groups]) for row in common}
    telling = sorted((row for row in common if ranks[row][0] > 0), key=lambda row: (ranks[row], -row), reverse=True)
    return [_example(found, row) for row in telling[:_MOST]]


def _telling(answers: Sequence[Sequence[Answer]]) -> tuple[float, float]:
    means = [sum(answer.score for answer in of_group) / len(of_group) for of_group in answers]
    sure = [answer.confidence for of_group in answers for answer in of_group if answer.confidence is not None]
    return max(means) - min(means), sum(sure) / len(sure) if sure else 0.0


def _example(found: RowByRow, row: int) -> Example:
    every = [(one, answer) for one in found.groups for answer in one.answers[row]]
    words = next((answer.input for _, answer in every if answer.input is not None), None)
    given: dict[str, list[tuple[OfGroup, Answer]]] = {}
    for one, answer in every:
        given.setdefault(said(answer.given, words), []).append((one, answer))
    ordered = sorted(given.items(), key=lambda one: -one[1][0][1].score)
    return Example(
        name=f"{found.kept.split} row {row}",
        input=shown(words),
        right=said(every[0][1].right, words),
        thumbnail=next((answer.thumbnail for _, answer in every if answer.thumbnail is not None), None),
        answers=[Given(text, marked(by[0][1]), _by(by)) for text, by in ordered],
    )


def marked(answer: Answer) -> str:
    """Whether an answer is right, or how far from it."""
    if answer.error is not None:
        return f"off by {answer.error:.3g}"
    return "✓ right" if answer.given == answer.right else "✗ wrong"


def _by(given: Sequence[tuple[OfGroup, Answer]]) -> list[str]:
    """The groups that gave an answer."""
    of: dict[str, tuple[int, list[Answer]]] = {}
    for one, answer in given:
        of.setdefault(one.group.name, (len(one.runs), []))[1].append(answer)
    named = [_name(name, num_runs, answers) for name, (num_runs, answers) in of.items()]
    more = [f"and {len(named) - _MOST_GROUPS} more"] if len(named) > _MOST_GROUPS else []
    return [*named[:_MOST_GROUPS], *more]


def _name(name: str, num_runs: int, answers: Sequence[Answer]) -> str:
    sure = [answer.confidence for answer in answers if answer.confidence is not None]
    notes = [f"{len(answers)} of {num_runs} seeds"] if len(answers) < num_runs else []
    notes += [f"{sum(sure) / len(sure):.0%} sure"] if sure else []
    return f"{name} ({', '.join(notes)})" if notes else name


def said(answer: object, words: str | list[str] | None) -> str:
    """An answer as people read it; entities with their words."""
    if isinstance(answer, float):
        return f"{answer:.4g}"
    if not isinstance(answer, tuple):
        return _cut(str(answer))
    return _cut("; ".join(_named(one, words) if isinstance(one, Entity) else str(one) for one in answer) or "none")


def _named(entity: Entity, words: str | list[str] | None) -> str:
    inside = words[entity.start : entity.end] if isinstance(words, list) else []
    return f"{entity.type}: {' '.join(inside) or f'words {entity.start} to {entity.end}'}"


def _cut(text: str) -> str:
    """A text of bounded length, cut in its middle."""
    half = _LETTERS // 2
    return text if len(text) <= _LETTERS else f"{text[:half].rstrip()} … {text[-half:].lstrip()}"
