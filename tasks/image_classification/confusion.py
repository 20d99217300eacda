"""The confusion matrix of a run, as a table and as a picture."""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

MOST_DRAWN = 200
"""Most labels whose names can be read next to the picture."""
_MOST_NUMBERS = 30
"""Most labels for which numbers can be read inside the cells."""


def write_table(confusion: Tensor, labels: Sequence[str], file: Path) -> None:
    """Write counts as CSV: a row for each right label, a column for each predicted label."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        rows = ([label, *row] for label, row in zip(labels, confusion.tolist(), strict=True))
        csv.writer(opened).writerows([["right answer \\ predicted", *labels], *rows])


def most_confused(confusion: Tensor, labels: Sequence[str], count: int = 3) -> list[str]:
    """Descriptions of the most frequent confusions of two labels, the worst first."""
    wrong = confusion - confusion.diag().diag()
    order = wrong.flatten().sort(descending=True, stable=True).indices[:count].tolist()
    pairs = [divmod(place, len(labels)) for place in order]
    return [
        f"{labels[right]} taken for {labels[taken]} {int(wrong[right, taken])} times of {int(confusion[right].sum())}"
        for right, taken in pairs
        if wrong[right, taken]
    ]


def draw(confusion: Tensor, labels: Sequence[str], title: str, file: Path) -> None:
    """Draw a confusion matrix: the shares of each row as colours and, for few labels, the counts as numbers.

    Args:
        confusion: counts, (right label, predicted label).
        labels: names of the labels.
        title: title of the picture.
        file: the PNG file to write.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.colors import PowerNorm  # the `report` extra
    from matplotlib.figure import Figure

    num_labels, names = len(labels), [label.replace("$", r"\$") for label in labels]  # else $ would begin a formula
    shares = confusion.float() / confusion.sum(1, keepdim=True).clamp(min=1)
    cell = 0.5 if num_labels <= _MOST_NUMBERS else 0.2  # inches
    side = max(4.0, min(cell * num_labels, 40.0))
    letters = max(4, min(9, round(72 * side / num_labels * 0.6)))
    longest = max(map(len, labels)) * letters * 0.6 / 72
    figure = Figure(figsize=(side + longest + 1.5, side + longest + 0.8), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    colours = axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # shows rare mistakes
    ticks = range(num_labels)
    axes.set_xticks(ticks, names, rotation=90, fontsize=letters)
    axes.set_yticks(ticks, names, fontsize=letters)
    axes.set_xlabel("predicted")
    axes.set_ylabel("right answer")
    axes.set_title(title)
    if num_labels <= _MOST_NUMBERS:
        for row in ticks:
            for column in ticks:
                if count := int(confusion[row, column]):
                    colour = "white" if shares[row, column] > 0.3 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=letters, color=colour)
    figure.colorbar(colours, ax=axes, shrink=0.8, aspect=30, label="share of the row")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that the font lacks become boxes
        figure.savefig(file)
