"""Reliability diagrams: scikit-learn's bins, and a line for each method on the page."""

import random
from pathlib import Path

import pytest

from loralight.reports.answers import Answer
from loralight.reports.reliability import bins

from .kept import compared, make_run, page_of


def answers(count: int) -> list[Answer]:
    drawn = random.Random(0)
    confidences = [drawn.choice([drawn.random(), round(drawn.random(), 1)]) for _ in range(count)]  # also at edges
    return [Answer("a", drawn.choice("ab"), confidence, None) for confidence in confidences]


def test_the_bins_are_scikit_learn_s() -> None:
    calibration = pytest.importorskip("sklearn.calibration")
    given = answers(500)
    right, confidence = [one.given == one.right for one in given], [one.confidence for one in given]
    shares, means = calibration.calibration_curve(right, confidence, n_bins=10, strategy="uniform")
    found = bins(given)
    assert [one.right for one in found] == pytest.approx(shares)
    assert [one.confidence for one in found] == pytest.approx(means)
    assert sum(one.rows for one in found) == 500


def test_the_page_has_a_line_for_each_method_and_none_without_probabilities(tmp_path: Path) -> None:
    given, right, confidences = zip(*((one.given, one.right, one.confidence) for one in answers(300)), strict=True)
    make_run(tmp_path / "runs/a", given, right, labels=["a", "b"], confidences=confidences)
    make_run(tmp_path / "runs/b", right, right, labels=["a", "b"], confidences=confidences, adapter="full")
    make_run(tmp_path / "without/a", given, right, labels=["a", "b"])
    title = "How often answers of a probability are right"
    page = page_of(compared(tmp_path / "runs"), tmp_path / "report")
    diagram = page[page.index(title) :].partition("</figure>")[0]
    assert all(f">{name}</text>" in diagram for name in ("calibrated", "lora", "full"))
    assert title not in page_of(compared(tmp_path / "without"), tmp_path / "other")


def test_a_method_has_its_colour_in_each_picture_though_another_has_no_probabilities(tmp_path: Path) -> None:
    given, right, confidences = zip(*((one.given, one.right, one.confidence) for one in answers(300)), strict=True)
    make_run(tmp_path / "bitfit", given, right, labels=["a", "b"], adapter="bitfit", accuracy=0.4)
    for number, adapter in enumerate(("full", "ia3")):
        made = {"labels": ["a", "b"], "confidences": confidences, "adapter": adapter, "accuracy": 0.5 + number / 10}
        make_run(tmp_path / adapter, given, right, **made)
    comparison = compared(tmp_path)
    page = page_of(comparison, tmp_path / "report")
    assert [group.name for group in comparison.groups] == ["bitfit", "full", "ia3"]
    for title, colours in (("by trainable parameters", (0, 1, 2)), ("answers of a probability", (1, 2))):
        picture = page[page.index(title) :].partition("</figure>")[0]
        drawn = [place for place, colour in enumerate(("#1f77b4", "#ff7f0e", "#2ca02c")) if colour in picture]
        assert drawn == [*colours], title
