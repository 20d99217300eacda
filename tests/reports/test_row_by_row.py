"""Groups on the same rows: exact tests, intervals, and what is said of them."""

import math
import random
from pathlib import Path
from statistics import mean, pstdev

import pytest

from loralight.reports.row_by_row import is_told_apart, sign_test
from loralight.reports.runs import read_run
from loralight.training.answers_file import OF_VALIDATION

from .kept import compared, make_run, page_of

GOOD = ["good"] * 40


def wrong(*rows: int) -> list[str]:
    return ["bad" if row in rows else "good" for row in range(40)]


def test_the_sign_test_is_scipy_s() -> None:
    stats = pytest.importorskip("scipy.stats")
    for better, worse in [(0, 0), (1, 0), (5, 5), (6, 0), (12, 5), (300, 250), (5000, 4800)]:
        expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
        assert sign_test(better, worse) == pytest.approx(expected, rel=1e-6)


def test_one_seed_is_compared_row_by_row_and_the_page_has_the_numbers(tmp_path: Path) -> None:
    make_run(tmp_path / "a", wrong(1), GOOD, accuracy=0.975)
    make_run(tmp_path / "b", wrong(1, 2, 3, 4, 5, 6, 7, 8, 9), GOOD, adapter="full", accuracy=0.775)
    comparison = compared(tmp_path)
    (pair,) = comparison.rows.pairs.values()
    assert (pair.num_rows, pair.better, pair.worse) == (40, 8, 0)
    assert pair.difference == pytest.approx(0.2) and 0.05 < pair.low < 0.12 < 0.28 < pair.high < 0.35
    (said,) = (line for line in comparison.verdict() if line.startswith("full is"))
    assert "row by row the best is better on 8 and worse on 0 of 40 rows, more than chance would give (p = 0.0" in said
    assert "no difference can be told from chance" in comparison.verdict()[-1]  # of the methods
    assert "<td>40</td><td>8</td><td>0</td>" in page_of(comparison, tmp_path / "report")
    assert "| full | 40 | 8 | 0 | 0.00781 | 0.2000 |" in (tmp_path / "report" / "report.md").read_text()


def test_the_parts_of_f1_make_the_difference_of_f1(tmp_path: Path) -> None:
    right = [["a"], ["a", "b"], [], ["b"]]
    given = [["a"], ["a"], ["b"], ["b"]]
    make_run(tmp_path / "a", right, right, kind="labels", labels=["a", "b"], accuracy=0.9)
    make_run(tmp_path / "b", given, right, kind="labels", labels=["a", "b"], adapter="full")
    comparison = compared(tmp_path)
    (pair,) = comparison.rows.pairs.values()
    metrics = pytest.importorskip("sklearn.metrics")
    table = [[[int(label in row) for label in "ab"] for row in rows] for rows in (right, given)]
    assert pair.difference == pytest.approx(1 - metrics.f1_score(*table, average="micro"))
    assert comparison.rows.kept.measure == "F1"


@pytest.mark.parametrize(
    ("better", "worse", "is_so"),
    [
        (range(1), range(0), False),  # a row of 40: the standard error is as large
        (range(3), range(10, 11), False),
        (range(9), range(10, 17), False),
        (range(4), range(0), True),
        (range(9), range(10, 12), True),
    ],
)
def test_two_rates_are_told_apart_by_the_standard_error_over_validation_rows(
    tmp_path: Path, better: range, worse: range, is_so: bool
) -> None:
    """The error of a mean of paired differences, which resampling rows draws."""
    runs = {
        name: read_run(make_run(tmp_path / name, wrong(*rows), GOOD, accuracy=1 - len(rows) / 40, split="validation"))
        for name, rows in (("one", worse), ("other", better))
    }
    differences = [(row in better) - (row in worse) for row in range(40)]
    error = pstdev(differences) / math.sqrt(40)
    assert (abs(mean(differences)) > 1.05 * error) is is_so
    assert is_told_apart(runs["one"], runs["other"], "validation/accuracy") is is_so
    assert is_told_apart(runs["other"], runs["one"], "validation/accuracy") is is_so


def test_what_the_rows_do_not_tell_is_told_apart_by_the_score(tmp_path: Path) -> None:
    one = read_run(make_run(tmp_path / "one", wrong(1), GOOD, accuracy=0.975, split="validation"))
    other = read_run(make_run(tmp_path / "other", wrong(1, 2), GOOD, accuracy=0.95, split="validation"))
    assert not is_told_apart(one, other, "validation/accuracy")
    assert is_told_apart(one, other, "validation/loss"), "there is none"
    third = read_run(make_run(tmp_path / "third", wrong(1, 2), GOOD, accuracy=0.7, split="validation"))
    assert is_told_apart(one, third, "validation/accuracy"), "the metric is not of these answers"
    (tmp_path / "other" / OF_VALIDATION).write_text("{}")
    assert is_told_apart(one, other, "validation/accuracy"), "damaged"
    (tmp_path / "other" / OF_VALIDATION).unlink()
    assert is_told_apart(one, other, "validation/accuracy"), "of an earlier version"


def test_only_rows_that_all_have_kept_and_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    make_run(tmp_path / "a0", wrong(), GOOD, accuracy=0.9)
    make_run(tmp_path / "a1", wrong(3), GOOD, accuracy=0.9, seed=1)
    make_run(tmp_path / "b1", wrong(3, 4)[:30], GOOD[:30], adapter="full", seed=1)
    make_run(tmp_path / "b2", wrong(*range(30)), GOOD, adapter="full", seed=2)
    make_run(tmp_path / "c7", wrong(5), GOOD, adapter="ia3", seed=7)
    comparison = compared(tmp_path)
    (pair,) = comparison.rows.pairs.values()
    assert (pair.num_rows, pair.better, pair.worse) == (30, 1, 0)


def test_answers_to_other_labels_are_left_out_with_a_word(tmp_path: Path) -> None:
    make_run(tmp_path / "a", wrong(1), GOOD, accuracy=0.9)
    make_run(tmp_path / "b", wrong(2), GOOD, adapter="full", labels=["good", "bad", "ugly"])
    comparison = compared(tmp_path)
    assert comparison.rows.pairs == {}
    assert any("are to other rows or of other labels" in line for line in comparison.verdict())


def test_few_of_many_pairs_of_equal_models_are_told_apart(tmp_path: Path) -> None:
    draw = random.Random(0)
    claims = 0
    for number in range(60):
        for name, adapter in (("a", "lora"), ("b", "full")):
            given = ["good" if draw.random() < 0.8 else "bad" for _ in range(40)]
            accuracy = given.count("good") / 40
            make_run(tmp_path / f"{number}" / name, given, GOOD, adapter=adapter, accuracy=accuracy)
        claims += any("more than chance" in line for line in compared(tmp_path / f"{number}").verdict())
    assert claims <= 6
