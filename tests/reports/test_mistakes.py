"""Confusion of labels and F1 by label, as scikit-learn and seqeval count them."""

import random
from pathlib import Path
from typing import Any

import pytest

from loralight.reports.mistakes import Grid, mistakes

from .kept import compared, make_run

LABELS = ["a", "b", "c"]


def cells(grid: Grid) -> dict[str, list[str]]:
    return {name: [text for text, _ in row] for name, row in grid.rows}


def drawn(seed: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    right = [draw.choice(LABELS) for _ in range(200)]
    return [draw.choice([one, one, *LABELS]) for one in right], right


def test_counts_and_f1_are_those_of_scikit_learn(tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    given, right = drawn(0)
    make_run(tmp_path / "a", given, right, labels=LABELS)
    by_label, pairs, matrix = mistakes(compared(tmp_path).rows)
    expected = metrics.confusion_matrix(right, given, labels=LABELS)
    assert [[int(cell or 0) for cell in row] for row in cells(matrix).values()] == expected.tolist()
    scores = metrics.f1_score(right, given, labels=LABELS, average=None)
    found = [float(row[0]) for row in cells(by_label).values()]
    assert found == pytest.approx(list(scores), abs=6e-4)
    assert list(cells(by_label)) == [f"{label} ({right.count(label)})" for label in LABELS]
    off = [
        (expected[n][m], f"{one} taken for {two}")
        for n, one in enumerate(LABELS)
        for m, two in enumerate(LABELS)
        if n != m
    ]
    assert cells(pairs)[max(off)[1]] == [str(max(off)[0])]
    assert [int(row[0]) for row in cells(pairs).values()] == sorted((count for count, _ in off), reverse=True)


def test_of_many_labels_the_worst_pairs_are_shown_and_no_matrix(tmp_path: Path) -> None:
    labels = [f"label {number:03}" for number in range(100)]
    given = [labels[1] if number < 7 else labels[number] for number in range(100)]
    right = [labels[0] if number < 7 else labels[number] for number in range(100)]
    make_run(tmp_path / "a", given, right, labels=labels, accuracy=0.9)
    make_run(tmp_path / "b", right, right, labels=labels, adapter="full", accuracy=0.8)
    by_label, pairs = mistakes(compared(tmp_path).rows)
    assert cells(pairs) == {"label 000 taken for label 001": ["7", ""]}
    assert len(by_label.rows) == 40 and by_label.rows[0][0] == "label 000 (7)"


def test_seeds_are_means(tmp_path: Path) -> None:
    for seed, given in enumerate((["b", "b"], ["b", "a"])):
        make_run(tmp_path / f"{seed}", given, ["a", "a"], labels=["a", "b"], seed=seed)
    pairs = next(grid for grid in mistakes(compared(tmp_path).rows) if grid.title.startswith("Most often"))
    assert cells(pairs) == {"a taken for b": ["1.5"]}


def test_the_f1_of_a_type_of_entity_is_seqeval_s(tmp_path: Path) -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    draw = random.Random(1)
    tags = [[[draw.choice(["O", "B-x", "B-y"]) for _ in range(6)] for _ in range(50)] for _ in range(2)]

    def entities(row: list[str]) -> list[dict[str, Any]]:
        return [{"type": tag[2:], "start": at, "end": at + 1} for at, tag in enumerate(row) if tag != "O"]

    given, right = ([entities(row) for row in rows] for rows in tags)
    make_run(tmp_path / "a", given, right, kind="entities", labels=["x", "y"])
    (grid,) = mistakes(compared(tmp_path).rows)
    expected = seqeval.f1_score(tags[1], tags[0], average=None)
    assert [float(row[0]) for row in cells(grid).values()] == pytest.approx(list(expected), abs=6e-4)


def test_free_texts_have_no_labels_to_confuse(tmp_path: Path) -> None:
    make_run(tmp_path / "a", ["x"], ["y"], kind="other", labels=[])
    assert mistakes(compared(tmp_path).rows) == []
