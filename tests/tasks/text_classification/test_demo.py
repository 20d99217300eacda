"""The demo's rows are what their README says, and no score on them is owed to a sentence that was learnt."""

import csv
import re
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import pytest

from loralight.tasks import text_classification

FOLDER = Path(text_classification.__file__).with_name("demo")
SPLITS = ("train", "validation", "test")
Rows = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    def read(split: str) -> list[dict[str, str]]:
        with (FOLDER / f"{split}.csv").open(encoding="ascii", newline="") as file:
            return list(csv.DictReader(file))

    return {split: read(split) for split in SPLITS}


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))


def alike(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("split", SPLITS)
def test_the_demo_has_the_rows_that_its_readme_counts(rows: Rows, split: str) -> None:
    labels = Counter(row["label"] for row in rows[split])
    counts = (labels.total(), labels["positive"], labels["negative"])
    table = re.sub(" +", " ", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert "| `{}.csv` | {} | {} | {} |".format(split, *counts) in table
    assert labels["positive"] == labels["negative"]


def test_a_sentence_of_the_demo_has_4_to_23_words(rows: Rows) -> None:
    lengths = [len(row["text"].split()) for split in rows.values() for row in split]
    assert min(lengths) >= 4 and max(lengths) <= 23


def test_no_sentence_of_the_demo_stands_twice(rows: Rows) -> None:
    counted = Counter(row["text"].lower() for split in rows.values() for row in split)
    assert counted.most_common(1)[0][1] == 1


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_no_sentence_of_one_split_is_nearly_one_of_another(rows: Rows, one: str, other: str) -> None:
    pairs = product(*([words(row["text"]) for row in rows[split]] for split in (one, other)))
    assert max(alike(*pair) for pair in pairs) < 0.5
