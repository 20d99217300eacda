"""The rows on which groups differ: the most telling first, as people read them."""

import json
from pathlib import Path

import pytest

from loralight.reports.examples import examples
from loralight.training.answers_file import FILE

from .kept import compared, make_run, page_of


def test_the_row_on_which_sure_models_differ_comes_first_and_those_on_which_all_agree_not_at_all(
    tmp_path: Path,
) -> None:
    right, inputs = ["good"] * 4, [f"text {row}" for row in range(4)]
    make_run(tmp_path / "a", right, right, inputs=inputs, confidences=[0.9, 0.6, 0.9, 0.9], accuracy=0.9)
    given = ["good", "bad", "bad", "good"]
    make_run(tmp_path / "b", given, right, inputs=inputs, confidences=[0.9, 0.6, 0.8, 0.9], adapter="full")
    found = examples(compared(tmp_path).rows)
    assert [(one.name, one.input) for one in found] == [("test row 2", "text 2"), ("test row 1", "text 1")]
    assert [(one.text, one.mark, one.by) for one in found[0].answers] == [
        ("good", "✓ right", ["lora (90% sure)"]),
        ("bad", "✗ wrong", ["full (80% sure)"]),
    ]


def test_seeds_of_a_group_are_counted_where_they_differ(tmp_path: Path) -> None:
    for seed, given in enumerate(("good", "good", "bad")):
        make_run(tmp_path / f"a{seed}", [given], ["good"], seed=seed, accuracy=0.9)
        make_run(tmp_path / f"b{seed}", ["bad"], ["good"], adapter="full", seed=seed)
    (found,) = examples(compared(tmp_path).rows)
    assert [one.by for one in found.answers] == [["lora (2 of 3 seeds)"], ["lora (1 of 3 seeds)", "full"]]


def test_entities_are_shown_with_their_words(tmp_path: Path) -> None:
    anna, beyond = ({"type": "person", "start": start, "end": start + 1} for start in (0, 7))
    common = {"kind": "entities", "labels": ["person"], "inputs": [["Anna", "sleeps"]]}
    make_run(tmp_path / "a", [[anna]], [[anna]], accuracy=0.9, **common)
    make_run(tmp_path / "b", [[beyond]], [[anna]], adapter="full", **common)
    make_run(tmp_path / "c", [[]], [[anna]], adapter="ia3", **common)
    (found,) = examples(compared(tmp_path).rows)
    assert (found.input, found.right) == ("Anna sleeps", "person: Anna")
    assert [one.text for one in found.answers] == ["person: Anna", "person: words 7 to 8", "none"]


def test_a_long_text_is_cut_in_its_middle(tmp_path: Path) -> None:
    text = f"begins {'x' * 1900} ends"
    make_run(tmp_path / "a", ["good"], ["good"], inputs=[text], accuracy=0.9)
    make_run(tmp_path / "b", ["bad"], ["good"], inputs=[text], adapter="full")
    (found,) = examples(compared(tmp_path).rows)
    assert len(found.input) < 700 and found.input.startswith("begins") and found.input.endswith("ends")


def test_texts_that_models_wrote_to_the_same_prompts_stand_side_by_side(tmp_path: Path) -> None:
    common = {"kind": "text", "labels": [], "inputs": ["say hello"]}
    make_run(tmp_path / "a", ["hello"], ["hello!"], accuracy=0.9, **common)
    make_run(tmp_path / "b", ["bye"], ["hello!"], adapter="full", **common)
    comparison = compared(tmp_path)
    assert comparison.rows.pairs == {}  # no text is right or wrong
    (found,) = examples(comparison.rows)
    assert [(one.text, one.by) for one in found.answers] == [("hello", ["lora"]), ("bye", ["full"])]
    page = page_of(comparison, tmp_path / "report")
    assert "Texts side by side" in page and "✗" not in page


def test_many_groups_and_rows_make_a_short_page(tmp_path: Path) -> None:
    for number in range(20):
        given = ["bad" if row % 20 == number else "good" for row in range(100)]
        make_run(tmp_path / f"{number}", given, ["good"] * 100, adapter=f"method{number}", accuracy=number / 20)
    found = examples(compared(tmp_path).rows)
    assert len(found) == 30
    assert all(len(answer.by) <= 13 for one in found for answer in one.answers)
    assert found[0].answers[0].by[-1] == "and 7 more"


def test_numbers_are_compared_by_how_far_off_they_are(tmp_path: Path) -> None:
    right = [1.0, 2.0, 3.0, 4.0]
    make_run(tmp_path / "a", [1.1, 2.0, 3.25, 4.0], right, kind="other", labels=[], inputs=["x"] * 4, accuracy=0.9)
    make_run(tmp_path / "b", [1.5, 2.0, 3.5, 3.9], right, kind="other", labels=[], inputs=["x"] * 4, adapter="full")
    comparison = compared(tmp_path)
    found = examples(comparison.rows)
    assert [one.name for one in found] == ["test row 0", "test row 2", "test row 3"], "by the difference of errors"
    assert [(one.text, one.mark) for one in found[0].answers] == [("1.1", "off by 0.1"), ("1.5", "off by 0.5")]
    (pair,) = comparison.rows.pairs.values()
    assert (pair.better, pair.worse) == (3, 0) and pair.difference == pytest.approx((0.4 + 0.25 + 0.1) / 4)
    assert "off by 0.25: 3.25" in page_of(comparison, tmp_path / "report")


def test_an_image_on_which_runs_differ_is_shown(tmp_path: Path) -> None:
    small = "/9j/AAAA"
    make_run(tmp_path / "a", ["good", "bad"], ["good", "bad"], accuracy=0.9)
    make_run(tmp_path / "b", ["bad", "bad"], ["good", "bad"], adapter="full", inputs=["cat/1.jpg"] * 2)
    file = tmp_path / "b" / FILE
    head, *lines = file.read_text().splitlines()
    lines = [json.dumps(json.loads(line) | {"thumbnail": small}) for line in lines]
    file.write_text("\n".join([head, *lines]))
    page = page_of(compared(tmp_path / "a", tmp_path / "b"), tmp_path / "report")
    assert page.count(f'src="data:image/jpeg;base64,{small}" alt="cat/1.jpg"') == 1
