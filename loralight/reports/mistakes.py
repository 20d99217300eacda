"""What groups of runs take for what: confusion of labels, and F1 of each label or type of entity."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from loralight.reports.answers import Answer, Entity
from loralight.reports.row_by_row import OfGroup, RowByRow

MOST_IN_MATRIX = 12
"""Labels of which a whole matrix is shown; of more the worst pairs."""
_MOST_PAIRS = 12
_MOST_LABELS = 40
_MOST_GROUPS = 8


class Grid(NamedTuple):
    """A table of numbers.

    Args:
        title: what it shows.
        columns: their headings, that of the rows' names first.
        rows: a name and a cell for each other column: its text, and how dark it is, from 0 to 1.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]


def mistakes(found: RowByRow) -> list[Grid]:
    """The tables for which the groups' answers have numbers."""
    groups = found.groups[:_MOST_GROUPS]
    if not groups or not found.kept.labels or found.kept.kind not in ("label", "labels", "entities"):
        return []
    grids = [_by_label(found, groups)]
    if found.kept.kind == "label":
        confusions = [_confusion(one) for one in groups]
        grids.append(_worst_pairs(groups, confusions))
        if len(found.kept.labels) <= MOST_IN_MATRIX:
            each = zip(groups, confusions, strict=True)
            grids += [_matrix(one, confusion, found.kept.labels) for one, confusion in each]
    return [grid for grid in grids if grid.rows]


def _answers(one: OfGroup) -> Iterable[Answer]:
    return (answer for run in one.runs.values() for answer in run.rows.values())


def _confusion(one: OfGroup) -> Counter[tuple[Any, Any]]:
    """How often each right label was answered by each label, over all seeds."""
    return Counter((answer.right, answer.given) for answer in _answers(one))


def _matrix(one: OfGroup, confusion: Counter[tuple[Any, Any]], labels: Sequence[str]) -> Grid:
    totals = {right: sum(confusion[right, given] for given in labels) for right in labels}
    rows = [
        (right, [_count(confusion[right, given], len(one.runs), of=totals[right]) for given in labels])
        for right in labels
    ]
    return Grid(f"{one.group.name}: right answers down, its answers across", ["", *labels], rows)


def _worst_pairs(groups: Sequence[OfGroup], confusions: Sequence[Counter[tuple[Any, Any]]]) -> Grid:
    """The confusions of two labels that are most frequent in any group."""
    most: dict[tuple[Any, Any], float] = {}
    for one, confusion in zip(groups, confusions, strict=True):
        for pair, count in confusion.items():
            if pair[0] != pair[1]:
                most[pair] = max(most.get(pair, 0.0), count / len(one.runs))
    worst = sorted(most, key=lambda pair: (-most[pair], pair))[:_MOST_PAIRS]
    rows = [
        (
            f"{pair[0]} taken for {pair[1]}",
            [
                _count(confusion[pair], len(one.runs), of=most[worst[0]] * len(one.runs))
                for one, confusion in zip(groups, confusions, strict=True)
            ],
        )
        for pair in worst
    ]
    return Grid("Most often confused, number of rows", ["", *(one.group.name for one in groups)], rows)


def _count(count: int, num_runs: int, *, of: float) -> tuple[str, float]:
    """A mean over seeds, and its share of the most that it could be."""
    return f"{count / num_runs:.4g}" if count else "", count / of if of else 0.0


def _by_label(found: RowByRow, groups: Sequence[OfGroup]) -> Grid:
    """The F1 of each label or type; of many, of those that are worst in the first group."""
    scores = [_f1(one) for one in groups]
    there = Counter(item[0] for answers in groups[0].answers.values() for item in _items(answers[0].right))
    shown = [label for label in found.kept.labels if any(label in score for score in scores)]
    if len(shown) > _MOST_LABELS:
        shown = sorted(shown, key=lambda label: scores[0].get(label, 1.0))[:_MOST_LABELS]
    rows = [(f"{label} ({there[label]})", [_score(score.get(label)) for score in scores]) for label in shown]
    kind = "type" if found.kept.kind == "entities" else "label"
    title = f"F1 of each {kind}, and how often {found.kept.split} has it"
    return Grid(title, ["", *(one.group.name for one in groups)], rows)


def _f1(one: OfGroup) -> dict[str, float]:
    """The F1 of each label that is in right or given answers, over all seeds."""
    hits, there = Counter[str](), Counter[str]()
    for answer in _answers(one):
        given, right = _items(answer.given), _items(answer.right)
        hits.update(item[0] for item in given & right)
        there.update(item[0] for items in (given, right) for item in items)
    return {label: 2 * hits[label] / count for label, count in there.items()}


def _items(answer: Any) -> set[tuple[Any, ...]]:
    """The labels or entities of an answer, as tuples that begin with the label or type."""
    each = answer if isinstance(answer, tuple) else (answer,)
    return {item if isinstance(item, Entity) else (item,) for item in each}


def _score(score: float | None) -> tuple[str, float]:
    return ("", 0.0) if score is None else (f"{score:.3f}", score)
