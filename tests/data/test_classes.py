"""What stands in a label column becomes classes only where it is classes; else one message says what to do."""

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features

from loralight.data.classes import find_classes
from loralight.data.labels import read_labels
from loralight.data.origin import Origin
from loralight.data.splits import Splits, load_splits
from loralight.errors import InputError

CITIES = ["Washington, DC", "Portland, OR", "Portland, ME", "Salem, OR", "Salem, MA", "Boston, MA", "Washington"]


def classes(
    train: list[Any], validation: list[Any] | None = None, *, feature: Any = None, given: list[str] | None = None
) -> list[str]:
    """The classes of splits with these labels."""
    parts = {"train": train, "validation": train if validation is None else validation}
    features = Features({"label": feature}) if feature else None
    splits = Splits(
        {split: Dataset.from_dict({"label": values}, features) for split, values in parts.items()},
        {split: Origin(split=split, source="rows.csv") for split in parts},
    )
    labels = {split: read_labels(part, ["label"], splits.origins[split], given) for split, part in splits.items()}
    return find_classes(splits, ["label"], labels, given=given, limited=False, several="Say so")


CLASSES: dict[str, tuple[list[Any], list[str]]] = {
    "cities with their states": (CITIES, sorted(CITIES)),
    "one name with a comma": (["none", "red, or so", "blue"] * 3, ["blue", "none", "red, or so"]),
    "two parties": ([-1, 1, 1], ["-1", "1"]),
    "a scale around zero": ([-2, -1, 0, 1, 2], ["-2", "-1", "0", "1", "2"]),
    "stars in halves": ([n / 2 for n in range(1, 11)] * 3, ["0.5", "1", "1.5", *map(str, [2, 2.5, 3, 3.5, 4, 4.5, 5])]),
    "many numbered classes": (list(range(150)) * 2, [str(n) for n in range(150)]),
    "numbers with gaps": ([10 * n for n in range(30)] * 10, [str(10 * n) for n in range(30)]),
    "truth values": ([True, False, True], ["False", "True"]),
    "letters of both cases, named by the data set": ([0, 1], ["a", "A"]),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_classes_has_their_names(kind: str) -> None:
    values, names = CLASSES[kind]
    assert classes(values, feature=ClassLabel(names=["a", "A"]) if "letters" in kind else None) == names


def test_a_rare_class_may_have_rows_in_another_split_alone() -> None:
    train, validation = ["earn", "trade"] * 20, ["earn"] * 18 + ["cocoa", "cocoa"]
    assert classes(train, validation) == ["cocoa", "earn", "trade"]
    assert classes(train, ["cocoa", *validation]) == ["earn", "trade"], "more than a tenth: the splits do not fit"
    assert classes(train, [*["earn"] * 19, "trad"]) == ["earn", "trade"], "a slip of the pen"
    assert classes(train, validation, given=["earn", "trade"]) == ["earn", "trade"]


def test_so_it_may_where_the_splits_name_their_classes_themselves() -> None:
    parts = {"train": (["cat", "dog"], [0, 1] * 10), "validation": (["cat", "dog", "owl"], [0] * 10 + [2])}
    splits = Splits(
        {
            split: Dataset.from_dict({"label": numbers}, Features({"label": ClassLabel(names=names)}))
            for split, (names, numbers) in parts.items()
        },
        {split: Origin(split=split, source=split) for split in parts},
    )
    labels = {split: read_labels(part, ["label"], splits.origins[split]) for split, part in splits.items()}
    assert find_classes(splits, ["label"], labels, given=None, limited=False, several="") == ["cat", "dog", "owl"]


REFUSED: dict[str, tuple[list[Any], str]] = {
    "numbers of labels": (["0", "1", "0,1", "1"], r"'0,1' \(2 times\) looks like several labels, '0' and '1'"),
    "names of labels": (["toxic", "toxic,insult", "clean"], "'toxic,insult' .* several labels, 'toxic' and 'insult'"),
    "labels that never stand alone": (["action; drama", "comedy; drama", "drama; war"], "several labels, 'action' and"),
    "lists as Python writes them": (["['a', 'b']", "['a']"], r"\"\['a', 'b'\]\" is a list written as text\. Say so"),
    "a score each": ([0.37, 4.2, 1.85, 2.0], r"4 different numbers in 8 rows \(0\.37, 4\.2, 1\.85, \.\.\.\)"),
    "many scores": ([n / 10 for n in range(30)] * 9, "30 different numbers in 540 rows"),
    "scores as text": (["0.37", "4.2", "1.85"], "3 different numbers in 6 rows"),
    "prices": ([7 * n * n for n in range(200)], "200 different numbers in 400 rows .*predicts no numbers"),
    "a number for each row": (list(range(300)), "300 different numbers in 300 rows"),
    "two spellings": (["pos", "Pos", "neg", "pos"], r"'Pos' \(2 times\) and 'pos' \(4 times\) differ in case alone"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_classes_is_refused_with_what_to_do_unless_the_user_names_them(kind: str) -> None:
    values, message = REFUSED[kind]
    validation = [] if kind == "a number for each row" else None
    with pytest.raises(InputError, match=f"^E-LABELS: column 'label'.*{message}"):
        classes(values, validation)
    names = sorted({str(value).removesuffix(".0") for value in values})
    assert classes(values, validation, given=names) == names


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("labels", [[0, 1, -1], [1, 2, -1], ["good", "bad", "-1"], [0.0, 1.0, -1.0]], ids=str)
def test_minus_one_marks_a_row_without_a_label_and_is_told_by_its_row(split: str, labels: list[Any]) -> None:
    train, validation = (labels, None) if split == "train" else (labels[:2], labels)
    with pytest.raises(InputError, match=rf"^E-LABEL-RANGE: rows.csv: {split} row 2, column 'label': -1 is no label"):
        classes(train, validation)


def test_minus_one_is_a_class_where_the_user_names_it() -> None:
    assert classes([-1, 0, 1], given=["-1", "0", "1"]) == ["-1", "0", "1"]


def test_a_class_of_one_row_is_known_wherever_chance_puts_that_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"row {n},{'rare' if n == 7 else n % 2}\n" for n in range(10)))
    held_out = set()
    for seed in range(12):
        splits = load_splits(train=str(file), validation_fraction=0.3, split_seed=seed)
        labels = {split: read_labels(part, ["label"], splits.origins[split]) for split, part in splits.items()}
        held_out.add(["rare"] in labels["validation"])
        assert find_classes(splits, ["label"], labels, given=None, limited=False, several="") == ["0", "1", "rare"]
    assert held_out == {False, True}
