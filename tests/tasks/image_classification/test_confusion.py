"""The confusion matrix is that of scikit-learn, as a table, and as a picture at any number of labels."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

from loralight.tasks.image_classification.confusion import draw, most_confused, write_table


def test_the_table_has_a_row_for_each_right_label(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = ["ash", 'a "birch"', "Äsche, grau"]
    targets, answers = random.integers(0, 3, 40), random.integers(0, 3, 40)
    matrix = confusion_matrix(targets, answers)
    write_table(torch.tensor(matrix), labels, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == labels == [row[0] for row in rows]
    assert [[int(count) for count in row[1:]] for row in rows] == matrix.tolist()


def pixels(file: Path) -> np.ndarray[Any, Any]:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("num_labels", [2, 10, 100])
def test_the_picture_is_dark_where_the_counts_are(tmp_path: Path, num_labels: int) -> None:
    labels = [f"label number {number}" for number in range(num_labels)]
    confusion = torch.zeros(num_labels, num_labels, dtype=torch.long)
    confusion[:, 0] = 9  # all taken for the first
    draw(confusion, labels, "test split", tmp_path / "picture.png")
    picture = pixels(tmp_path / "picture.png")
    assert 300 < picture.shape[0] < 5000 and 300 < picture.shape[1] < 5000
    dark = (picture[..., 2] - picture[..., 0] > 60) & (picture[..., 0] < 40)  # the blue of a share of 1
    columns = np.flatnonzero(dark.sum(0) > 0.4 * picture.shape[0])
    assert len(columns) and np.ptp(columns) < picture.shape[1] / num_labels


def test_labels_of_any_letters_are_drawn_even_one_that_does_not_occur(tmp_path: Path) -> None:
    draw(torch.tensor([[3, 1], [0, 0]]), ["1 $ or 2 $", "狗"], "test split", tmp_path / "picture.png")
    assert np.ptp(pixels(tmp_path / "picture.png")) == 255


def test_the_worst_pairs_are_told_and_no_right_answers() -> None:
    confusion = torch.tensor([[90, 2, 8], [0, 50, 0], [9, 1, 40]])
    told = most_confused(confusion, ["ash", "birch", "elm"])
    assert told == [
        "elm taken for ash 9 times of 50",
        "ash taken for elm 8 times of 100",
        "ash taken for birch 2 times of 100",
    ]
    assert most_confused(torch.eye(3, dtype=torch.long), ["ash", "birch", "elm"]) == []
