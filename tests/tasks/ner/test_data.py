"""Words with tags, texts with places and column files become the same batches; what cannot is one error with a row."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from seqeval.metrics.sequence_labeling import get_entities

from loralight.errors import InputError
from loralight.tasks.ner import NerData
from loralight.tasks.ner.tags import Span, tag_names, tags_of

COLUMNS = {"words": "tokens", "tags": "ner_tags", "text": "text", "entities": "entities"}
WORDS = [["Bob", "Lee", "left", "New", "York"], ["Nobody", "stayed"], ["Paris", "London", "!"]]
SPANS = [
    [Span(0, 2, "person"), Span(3, 5, "place")],
    [],
    [Span(0, 1, "place"), Span(1, 2, "place")],
]
NUMBERS = [[1, 2, 0, 3, 4], [0, 0], [3, 3, 0]]
TEXT_ROWS = [
    {
        "text": " ".join(words),
        "entities": [
            {
                "start": len(" ".join([*words[: span.start], ""])),
                "end": len(" ".join(words[: span.end])),
                "label": span.label,
            }
            for span in spans
        ],
    }
    for words, spans in zip(WORDS, SPANS, strict=True)
]


def tagged(scheme: str = "IOB2") -> list[dict[str, Any]]:
    return [
        {"tokens": words, "ner_tags": tags_of(spans, len(words), scheme)}
        for words, spans in zip(WORDS, SPANS, strict=True)
    ]


def make(folder: Path, checkpoint: str, rows: dict[str, list[dict[str, Any]]] | Any, **arguments: Any) -> NerData:
    """The data of JSONL files with these splits; train's rows are those of validation too if it has none."""
    splits = rows if isinstance(rows, dict) else {"train": rows}
    for split, lines in {"validation": splits["train"], **splits}.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return made(checkpoint, path=str(folder), **arguments)


def made(checkpoint: str, **arguments: Any) -> NerData:
    defaults = {"columns": COLUMNS, "max_length": 32, "stride": 8, "length_grouped": False}
    data = NerData(checkpoint=checkpoint, **{**defaults, **arguments})
    data.setup()
    return data


def labels_of(data: NerData, split: str = "train") -> list[list[int]]:
    found: list[list[int]] = data.splits[split]["labels"][:]
    return found


def test_a_batch_has_each_word_s_tag_beside_its_first_sub_word(tmp_path: Path, tiny_bert: str) -> None:
    data = make(tmp_path, tiny_bert, tagged())
    batch = next(iter(data.val_dataloader()))
    assert batch.keys() == {"input_ids", "attention_mask", "window", "position", "labels", "lengths"}
    assert batch["labels"].tolist() == [tag for tags in NUMBERS for tag in tags]
    assert batch["lengths"].tolist() == [5, 2, 3]
    assert batch["attention_mask"].sum(1).tolist() == list(data.lengths("validation"))
    assert data.types == ["person", "place"]


def test_sentences_of_another_tokenizer_are_the_same_rows_and_other_entities_are_not(
    tmp_path: Path, tiny_bert: str, checkpoints: Callable[[str], str]
) -> None:
    here = make(tmp_path, tiny_bert, tagged()).identity()
    other = make(tmp_path, checkpoints("RoBERTa"), tagged("BILOU")).identity()
    assert other["digests"] != here["digests"]
    assert other["asked"] == here["asked"]
    retagged = [tagged()[0], {**tagged()[1], "ner_tags": ["B-person", "O"]}, tagged()[2]]
    assert make(tmp_path, tiny_bert, retagged).identity()["asked"] != here["asked"]


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOBES", "BILOU"])
def test_tags_of_every_scheme_give_the_same_labels_and_the_report_names_it(
    tmp_path: Path, tiny_bert: str, scheme: str
) -> None:
    data = make(tmp_path, tiny_bert, tagged(scheme))
    assert labels_of(data) == NUMBERS
    said = [line for line in data.report() if scheme in line]
    assert said == (
        [] if scheme == "IOB2" else [f"{split}: its tags are {scheme}, and read as such" for split in data.splits]
    )


def test_tags_of_no_scheme_are_read_all_the_same_and_counted(tmp_path: Path, tiny_bert: str) -> None:
    rows = [*tagged(), {"tokens": ["in", "Rome"], "ner_tags": ["O", "I-place"]}]
    data = make(tmp_path, tiny_bert, {"train": rows, "validation": tagged()})
    assert labels_of(data)[-1] == [0, 3]
    assert [line for line in data.report() if "not sound" in line] == [
        "train: the tags of 1 rows are not sound IOB2; there, an entity begins where the type changes"
    ]


def test_texts_with_places_give_the_same_batches_as_words_with_tags(tmp_path: Path, tiny_bert: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    text = make(tmp_path / "a", tiny_bert, TEXT_ROWS)
    words = make(tmp_path / "b", tiny_bert, tagged())
    assert text.splits["train"].to_list() == words.splits["train"].to_list()
    assert text.model_arguments() == words.model_arguments()


@pytest.mark.parametrize("suffix", ["conll", "txt", "iob", "bio"])
def test_column_files_give_the_same_batches(tmp_path: Path, tiny_bert: str, suffix: str) -> None:
    (tmp_path / "words").mkdir()
    words = make(tmp_path / "words", tiny_bert, tagged())
    sentences = ["\n".join(f"{w} x {t}" for w, t in zip(*row.values(), strict=True)) for row in tagged()]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.{suffix}").write_text("\n\n".join(sentences))
    data = made(tiny_bert, path=str(tmp_path))
    assert data.splits["validation"].to_list() == words.splits["train"].to_list()


def as_parquet(folder: Path, tags: list[list[Any]], feature: Any) -> str:
    features = Features({"tokens": List(Value("string")), "ner_tags": List(feature)})
    rows = Dataset.from_dict({"tokens": WORDS, "ner_tags": tags}, features=features)
    for split in ("train", "validation"):
        rows.to_parquet(str(folder / f"{split}.parquet"))
    return str(folder)


ORDER = ["O", "B-place", "I-place", "B-person", "I-person", "B-never", "I-never"]
IN_ORDER = [[3, 4, 0, 1, 2], [0, 0], [1, 1, 0]]


def test_spaces_around_a_tag_or_a_type_are_not_part_of_it(tmp_path: Path, tiny_bert: str) -> None:
    spaced = [{**row, "ner_tags": [f"{tag} " for tag in row["ner_tags"]]} for row in tagged()]
    entities = [
        {**row, "entities": [{**one, "label": f" {one['label']}"} for one in row["entities"]]} for row in TEXT_ROWS
    ]
    for rows in (spaced, entities):
        assert make(tmp_path, tiny_bert, rows).types == ["person", "place"]


def test_types_that_differ_in_case_alone_are_refused_unless_they_are_named(tmp_path: Path, tiny_bert: str) -> None:
    rows = [*tagged(), {"tokens": ["Oslo"], "ner_tags": ["B-Place"]}]
    with pytest.raises(InputError, match=r"^E-LABELS: column 'ner_tags': 'Place' .* and 'place' .* differ in case"):
        make(tmp_path, tiny_bert, rows)
    names = ["person", "place", "Place"]
    assert make(tmp_path, tiny_bert, rows, labels=names).types == names


def test_a_test_split_without_tags_is_left_out_and_said_so(tmp_path: Path, tiny_bert: str) -> None:
    data = make(tmp_path, tiny_bert, {"train": tagged(), "test": [{"tokens": words} for words in WORDS]})
    assert set(data.splits) == {"train", "validation"}
    assert any("it has no labels (no column 'ner_tags')" in line for line in data.report())


def test_class_labels_name_the_types_in_their_order(tmp_path: Path, tiny_bert: str) -> None:
    path = as_parquet(tmp_path, IN_ORDER, ClassLabel(names=ORDER))
    data = made(tiny_bert, path=path)
    assert data.types == ["place", "person", "never"]
    assert labels_of(data) == IN_ORDER
    assert data.model_arguments()["label_counts"] == [4, 3, 1, 1, 1, 0, 0]


def test_numbers_are_named_by_the_setting_a_file_beside_them_or_the_order_of_types(
    tmp_path: Path, tiny_bert: str
) -> None:
    path = as_parquet(tmp_path, IN_ORDER, Value("int64"))
    with pytest.raises(
        InputError, match=r"^E-NER-TAG: .+: train row 0, .*: the tag of word 0 is the number 3; give the names of"
    ):
        made(tiny_bert, path=path)
    by_order = made(tiny_bert, path=path, labels=["place", "person"])
    assert (by_order.types, labels_of(by_order)) == (["place", "person"], IN_ORDER)
    (tmp_path / "labels.json").write_text(json.dumps(ORDER))
    beside = made(tiny_bert, path=path)
    assert (beside.types, labels_of(beside)) == (["place", "person", "never"], IN_ORDER)
    by_setting = made(tiny_bert, path=path, tag_names=["O", "S-x", "I-x", "S-y", "I-y"])
    assert by_setting.types == ["x", "y"]
    assert by_setting.spans["train"][2] == [Span(0, 1, "x"), Span(1, 2, "x")]


def test_numbers_are_named_for_files_given_one_by_one_too_by_a_file_or_a_column_of_tags(
    tmp_path: Path, tiny_bert: str
) -> None:
    folder = Path(as_parquet(tmp_path, IN_ORDER, Value("int64")))
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation")}
    for file in files.values():
        rows = Dataset.from_parquet(file)
        chunks = [["B-NP"] * len(words) for words in WORDS]
        tags = [[ORDER[number] for number in numbers] for numbers in IN_ORDER]
        rows.add_column("chunks", chunks).add_column("tags", tags).to_parquet(file)
    by_column = made(tiny_bert, **files)
    (folder / "labels.json").write_text(json.dumps(ORDER))
    by_file = made(tiny_bert, **files)
    assert (by_column.types, labels_of(by_column)) == (["place", "person"], IN_ORDER)
    assert (by_file.types, labels_of(by_file)) == (["place", "person", "never"], IN_ORDER)
    told = "the numbers in column 'ner_tags' have their names from"
    assert f"{told} column 'tags'" in by_column.report()
    assert f"{told} {folder / 'labels.json'}" in by_file.report()


def test_a_file_of_names_does_not_choose_how_many_tags_there_are(tmp_path: Path, tiny_bert: str) -> None:
    folder = Path(as_parquet(tmp_path, IN_ORDER, Value("int64")))
    names = {**{str(number): tag for number, tag in enumerate(ORDER)}, "9" * 5000: "B-more"}
    (folder / "labels.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match=r"^E-NER-TAG: .* give the names of all in order"):
        made(tiny_bert, path=str(folder))


def test_types_given_by_name_are_in_the_order_given(tmp_path: Path, tiny_bert: str) -> None:
    data = make(tmp_path, tiny_bert, tagged(), labels=["place", "thing", "person"])
    assert labels_of(data) == [[5, 6, 0, 1, 2], [0, 0], [1, 1, 0]]
    assert data.model_arguments()["labels"] == ["place", "thing", "person"]


def test_a_few_rows_of_train_do_not_hide_the_types_of_the_rest(tmp_path: Path, tiny_bert: str) -> None:
    data = make(tmp_path, tiny_bert, {"train": tagged()[2:] * 2, "validation": tagged()}, limit_rows=1)
    assert data.types == ["person", "place"]


def test_a_long_row_is_one_row_in_several_windows_and_said_so(tmp_path: Path, tiny_bert: str) -> None:
    rows = [{"tokens": ["Bob", "ran"] * 40, "ner_tags": ["B-person", "O"] * 40}, *tagged()]
    data = make(tmp_path, tiny_bert, rows)
    row = data.splits["train"][0]
    assert len(row["labels"]) == len(row["window"]) == 80
    assert max(map(len, row["input_ids"])) == 32 and len(row["input_ids"]) == 4
    assert "1 longer than 32 tokens, read in 4 windows" in data.report()[0]
    assert data.lengths("train")[0] == sum(map(len, row["input_ids"]))
    batch = data.collate([data.splits["train"][1], row])
    assert batch["lengths"].tolist() == [5, 80]
    assert batch["input_ids"].shape == (5, 32)


def test_an_empty_text_is_a_row_without_words(tmp_path: Path, tiny_bert: str) -> None:
    data = make(tmp_path, tiny_bert, [*TEXT_ROWS, {"text": " ", "entities": []}])
    assert labels_of(data)[-1] == []
    assert data.collate([data.splits["train"][3]])["labels"].dtype == torch.long


def test_words_that_are_nothing_to_the_tokenizer_are_counted(tmp_path: Path, tiny_bert: str) -> None:
    rows = {"train": [*tagged(), {"tokens": ["\u200d", "Bob"], "ner_tags": ["O", "B-person"]}], "validation": tagged()}
    data = make(tmp_path, tiny_bert, rows)
    assert labels_of(data)[-1] == [0, 1]
    assert "train: 1 words that the tokenizer makes nothing of are read as unknown ones" in data.report()


def test_the_report_counts_rows_words_and_entities(tmp_path: Path, tiny_bert: str) -> None:
    data = make(tmp_path, tiny_bert, {"train": tagged(), "test": tagged()[:1]})
    assert data.report() == [
        "train: 3 rows, 4 entities; on average 3 words, 5 tokens",
        "validation: 3 rows, 4 entities; on average 3 words, 5 tokens",
        "test: 1 rows, 2 entities; on average 5 words, 7 tokens",
        "entities in train: person 1, place 3",
        "caution: 2 of 2 labels have fewer than 5 entities in train: person 1, place 3. Give more of them, or join "
        "labels",
        "caution: 3 of 3 rows of validation are in train too, word for word: take them out of one",
        "caution: 1 of 1 rows of test are in train too, word for word: take them out of one",
        "caution: 1 of 1 rows of test are in validation too, word for word: take them out of one",
    ]


@pytest.mark.parametrize("rows", [tagged(), TEXT_ROWS])
def test_examples_are_of_rows_that_training_does_not_see_with_their_entities(
    tmp_path: Path, tiny_bert: str, rows: list[dict[str, Any]]
) -> None:
    data = make(tmp_path, tiny_bert, {"train": rows, "test": rows[::-1]})
    key = next(iter(rows[0]))
    assert data.examples(9) == [
        ({key: rows[2][key]}, "place: Paris; place: London"),
        ({key: rows[1][key]}, ""),
        ({key: rows[0][key]}, "person: Bob Lee; place: New York"),
    ]
    assert len(data.examples(1)) == 1


def test_the_trivial_answer_finds_nothing(tmp_path: Path, tiny_bert: str) -> None:
    baseline = make(tmp_path, tiny_bert, tagged()).baseline("validation")
    assert baseline == dict.fromkeys(["f1", "precision", "recall", "f1_person", "f1_place"], 0.0)


def test_the_data_can_be_sent_to_worker_processes(tmp_path: Path, tiny_bert: str) -> None:
    data = make(tmp_path, tiny_bert, tagged())
    twin = pickle.loads(pickle.dumps(data))
    assert twin.splits["train"].to_list() == data.splits["train"].to_list()


def test_wnut17_has_the_entities_that_seqeval_counts(tiny_bert: str, shared_data: Path) -> None:
    data = made(tiny_bert, path=str(shared_data / "wnut17"), max_length=64)
    assert data.types == ["person", "location", "corporation", "group", "creative-work", "product"]
    for split, rows in data.rows.items():
        tags = rows["tags"][:]
        assert [[tuple(span) for span in spans] for spans in data.spans[split]] == [
            [(start, end + 1, label) for label, start, end in get_entities(each)] for each in tags
        ]
        names = tag_names(data.types)
        assert [[names[number] for number in row] for row in labels_of(data, split)] == tags


def one(**columns: Any) -> list[dict[str, Any]]:
    """Sound rows and, as the fourth, one with these columns."""
    return [*tagged(), {**tagged()[0], **columns}]


def test_a_rare_type_may_have_entities_in_another_split_alone(tmp_path: Path, tiny_bert: str) -> None:
    train = [{"tokens": ["in", f"town{n}"], "ner_tags": ["O", "B-place"]} for n in range(20)]
    rare = {"tokens": ["by", "sword"], "ner_tags": ["O", "B-weapon"]}
    assert make(tmp_path, tiny_bert, {"train": train, "validation": [*train[:9], rare]}).types == ["place", "weapon"]
    with pytest.raises(InputError, match=r"E-LABEL-RANGE: .+: validation row 3: the entity type 'weapon'"):
        make(tmp_path, tiny_bert, {"train": train, "validation": [*train[:3], rare]})


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no columns of either form": (
        {"rows": [{"words": ["a"], "ner": ["O"]}]},
        r"E-COLUMN: the train split has 'words', 'ner'; it needs 'tokens' and 'ner_tags' .*, or 'text' and 'entities'",
    ),
    "entities under another name": (
        {"rows": [{"text": "Bob", "labels": [{"start": 0, "end": 3, "label": "person"}]}]},
        "E-COLUMN: the train split has 'text', 'labels'; .* 'labels' holds entities: data.columns.entities=labels$",
    ),
    "a column that only train has": (
        {"rows": {"train": tagged(), "validation": [{"tokens": ["a"]}]}},
        "E-COLUMN: the validation split has no column 'ner_tags'; it has 'tokens'",
    ),
    "fewer tags than words": (
        {"rows": one(ner_tags=["O"] * 4)},
        "E-NER-ALIGN: .+: train row 3: 5 words in 'tokens', 4 tags in 'ner_tags'",
    ),
    "more tags than words": (
        {"rows": one(tokens=["a"])},
        "E-NER-ALIGN: .+: train row 3: 1 words in 'tokens', 5 tags in 'ner_tags'",
    ),
    "no tags": ({"rows": one(ner_tags=None)}, "E-NER-ALIGN: .+: train row 3: 5 words in 'tokens', None for tags"),
    "a text for words": (
        {"rows": [{"tokens": "Bob", "ner_tags": "B-person"}]},
        "E-NER-ALIGN: .+: train row 0: 'Bob' for words in 'tokens'",
    ),
    "an empty word": (
        {"rows": {"train": tagged(), "validation": one(tokens=["a", "", "b", "c", "d"])}},
        "E-NER-EMPTY-WORD: .+: validation row 3, column 'tokens': word 1 is ''",
    ),
    "a word of white space": (
        {"rows": one(tokens=["a", "b", "c", "d", " \u00a0"])},
        "E-NER-EMPTY-WORD: .+: train row 3, column 'tokens': word 4 is ",
    ),
    "a word is missing": (
        {"rows": one(tokens=["a", None, "b", "c", "d"])},
        "E-NER-EMPTY-WORD: .+: train row 3, column 'tokens': word 1 is None",
    ),
    "a tag without a type": (
        {"rows": one(ner_tags=["O", "B", "O", "O", "O"])},
        "E-NER-TAG: .+: train row 3, column 'ner_tags': 'B', of word 1, is no tag; a tag is O, or one of",
    ),
    "a tag with an odd letter": (
        {"rows": one(ner_tags=["X-PER", *"OOOO"])},
        "E-NER-TAG: .*'X-PER', of word 0, is no tag",
    ),
    "a tag that is true or false": (
        {"rows": [{"tokens": ["a"], "ner_tags": [True]}], "labels": ["x"]},
        "E-NER-TAG: .*True, of word 0, is no tag",
    ),
    "a tag is missing": ({"rows": one(ner_tags=[None, *"OOOO"])}, "E-NER-TAG: .*None, of word 0, is no tag"),
    "a number without a name": (
        {"rows": [{"tokens": ["a"], "ner_tags": [5]}], "tag_names": ["O", "B-x"]},
        r"E-NER-TAG: .*: the tag of word 0 is the number 5; there are 0\.\.1 \(O, B-x\)",
    ),
    "a number below 0": (
        {"rows": [{"tokens": ["a"], "ner_tags": [-100]}], "labels": ["x"]},
        r"E-NER-TAG: .*: the tag of word 0 is the number -100; there are 0\.\.2",
    ),
    "no entities": (
        {"rows": [{"tokens": ["a", "b"], "ner_tags": ["O", "O"]}]},
        "E-LABELS: there are no entities in train",
    ),
    "a type that training has not": (
        {"rows": {"train": tagged(), "test": one(ner_tags=["B-persn", *"OOOO"])}},
        r"E-LABEL-RANGE: .+: test row 3: the entity type 'persn' is not one of 'person', 'place'\. Did you mean",
    ),
    "a type that was not given": (
        {"rows": tagged(), "labels": ["person"]},
        "E-LABEL-RANGE: .+: train row 0: the entity type 'place' is not one of 'person'",
    ),
    "a type twice": ({"rows": tagged(), "labels": ["person", "place", "place"]}, "E-LABELS: data.labels has 'place'; "),
    "tags for types": (
        {"rows": tagged(), "labels": ["O", "B-person", "B-place"]},
        "E-LABELS: data.labels has 'O'; give each entity type once, and no tags",
    ),
    "windows that do not fit": ({"rows": tagged(), "max_length": 65}, r"E-SEQ-LEN: model\.max_length=65"),
    "no such model": ({"rows": tagged(), "checkpoint": "/no/such"}, "E-MODEL: model.checkpoint=/no/such"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_learnt_from_is_one_clear_error(tmp_path: Path, tiny_bert: str, fault: str) -> None:
    arguments, message = FAULTS[fault]
    with pytest.raises(InputError, match=f"^{message}"):
        make(tmp_path, **{"checkpoint": tiny_bert, **arguments})


def test_a_line_of_a_column_file_that_is_short_is_named(tmp_path: Path, tiny_bert: str) -> None:
    (tmp_path / "train.conll").write_text("Bob B-person\nran\n")
    with pytest.raises(InputError, match=r"^E-DATA: .*train\.conll, line 2: 'ran' has 1 columns, the first line 2"):
        made(tiny_bert, train=str(tmp_path / "train.conll"))


def test_the_demo_is_read_without_a_word_divided(checkpoints: Callable[[str], str]) -> None:
    data = made(checkpoints("BERT"), path="pkg://loralight.tasks.ner/demo", max_length=64)
    sizes = {split: len(rows) for split, rows in data.splits.items()}
    assert sizes == {"train": 1000, "validation": 150, "test": 200}
    assert data.types == ["date", "email", "iban", "location", "organisation", "person", "phone"]
    assert not data.notes
    texts = [set(rows["text"]) for rows in data.rows.values()]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 1350, "no text is in two splits"
